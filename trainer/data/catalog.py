"""The items, memory-mapped: all processes of a node share one copy in the page cache."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.catalog_file import CHECKSUM, checksum
from trainer.data.contract import Column, catalog_columns, check_alike, is_list
from trainer.data.footers import check_known
from trainer.data.ragged import Ragged, gather_lists
from trainer.data.schema import RAW_ITEM_ID, TRAIN_COUNT, VALIDATION_COUNT, Feature, Schema
from trainer.errors import UserError


class Catalog:
    """Item features by catalogue row.

    Args:
        data_dir: prepared folder.
        schema: of that folder.

    Raises:
        UserError: catalog.arrow is missing or damaged, or breaks the contract.
    """

    def __init__(self, data_dir: str | Path, schema: Schema) -> None:
        path = Path(data_dir) / "catalog.arrow"
        remedy = "prepare the data anew; catalogue, vocabulary and events must come from one run of prepare"
        try:
            file = pa.ipc.open_file(pa.memory_map(str(path)))
            self._table, batches = file.read_all(), file.num_record_batches
            there = self._table.column_names
        except (OSError, ValueError, pa.ArrowException) as error:  # names may be no text any more
            raise UserError("data.dir", data_dir, f"a readable catalog.arrow ({error})", remedy) from None
        columns = catalog_columns(schema)
        if not columns.keys() <= set(there) or self._table.num_rows != schema.num_items or batches != 1:
            expected = f"{schema.num_items} rows in one record batch, with columns {', '.join(columns)}"
            raise UserError(str(path), f"{self._table.num_rows} in {batches}, {', '.join(there)}", expected, remedy)
        for name, column in columns.items():
            if not column.accepts(self._table.schema.field(name).type):
                raise UserError(f"{path} column {name}", self._table.schema.field(name).type, column.expected, remedy)
            self._check(path, name, column, remedy)
        unlike = check_alike(columns, self._column)
        if unlike is not None:
            name, (row, value, expected) = unlike
            raise UserError(f"{path} column {name} row {row}", value, expected, remedy)
        check_known(path.parent, schema, path.name)
        self._arrays: dict[str, np.ndarray] = {}
        self._num_events = schema.num_events["train"]
        self._num_embeddings = {feature.name: feature.num_embeddings for feature in schema.features}

    def _check(self, path: Path, name: str, column: Column, remedy: str) -> None:
        """Looks at all that memory is later addressed by; not at floats, which may be more than one wants to read."""
        values = self._column(name)
        floats = pa.types.is_floating(values.type) or (
            pa.types.is_fixed_size_list(values.type) and pa.types.is_floating(values.type.value_type)
        )
        try:
            values.validate(full=is_list(values.type) and not floats)
        except pa.ArrowInvalid as error:
            raise UserError(f"{path} column {name}", "damaged", f"sound Arrow data ({error})", remedy) from None
        stated = (self._table.schema.field(name).metadata or {}).get(CHECKSUM)
        if stated is not None and not floats and stated != str(checksum(values)).encode():
            raise UserError(f"{path} column {name}", "damaged", "the bytes that were written", remedy)
        found = None if floats else column.first_wrong(values)
        if found is not None:
            row, value, expected = found
            raise UserError(f"{path} column {name} row {row}", value, expected, remedy)

    def __len__(self) -> int:
        return self._table.num_rows

    def checksums(self) -> dict[str, str]:
        """CRC-32 of each column as `prepare` has noted it; another engine may have noted none."""
        stated = {field.name: (field.metadata or {}).get(CHECKSUM) for field in self._table.schema}
        return {name: crc.decode() for name, crc in stated.items() if crc is not None}

    def raw_ids(self, rows: np.ndarray) -> pa.Array:
        """The user's own item ids (int64 or string) of catalogue rows."""
        ids = self._column(RAW_ITEM_ID).take(pa.array(rows))
        return ids.cast(pa.string()) if pa.types.is_large_string(ids.type) else ids

    def rows_of(self, other: "Catalog") -> np.ndarray:
        """int64 [items of other]: the row here of each item of another catalogue, -1 for one that is not here."""
        here, there = self._column(RAW_ITEM_ID), other._column(RAW_ITEM_ID)
        return pc.index_in(there.cast(here.type), here).fill_null(-1).to_numpy().astype(np.int64)

    def train_counts(self) -> np.ndarray:
        """int64 [items]: training events of each item."""
        return self._numbers(TRAIN_COUNT)

    def counts_before(self, split: str) -> np.ndarray:
        """int64 [items]: events of each item that come before a held-out split; an item without any is cold there.

        Before validation come the training events, before test those of validation too: they are in histories by then.
        """
        return self.train_counts() + (self._numbers(VALIDATION_COUNT) if split == "test" else 0)

    def train_share(self, rows: np.ndarray) -> np.ndarray:
        """float32 [rows]: each item's share of the training events."""
        return (self.train_counts()[rows] / self._num_events).astype(np.float32)

    def dense(self, feature: Feature, rows: np.ndarray) -> np.ndarray:
        """[rows, dim] of a numeric or vector, float32 or, where the files have it so, float16; missing for row -1."""
        found = self._numbers(feature.name).reshape(len(self), feature.dim)[rows]
        found[rows < 0] = 0 if feature.kind == "vector" else np.nan
        return found

    def sparse(self, feature: Feature, rows: np.ndarray) -> Ragged:
        """Table rows of a feature, a list for each catalogue row; out-of-vocabulary or none for row -1.

        The feature may be that of a folder which this one extends: of its table, rows beyond are out of vocabulary.
        """
        found = self._sparse(feature, rows)
        if feature.num_embeddings < self._num_embeddings[feature.name]:
            return replace(found, values=np.where(found.values < feature.num_embeddings, found.values, 0))
        return found

    def _sparse(self, feature: Feature, rows: np.ndarray) -> Ragged:
        values = self._numbers(feature.name)
        if not feature.is_list:
            return Ragged(np.where(rows < 0, 0, values[rows]), np.ones(len(rows), np.int64))
        offsets = self._column(feature.name).offsets.to_numpy()
        weights = self._numbers(feature.weight_column) if feature.weighted else None
        begins = offsets[rows]
        lengths = np.where(rows < 0, 0, offsets[rows + 1] - begins)
        return gather_lists(values, begins, lengths, weights)

    def _column(self, name: str) -> pa.Array:
        # prepare writes one record batch, so a column is one array that lies in the file as it is
        return self._table.column(name).chunk(0)

    def _numbers(self, name: str) -> np.ndarray:
        """The values of a column, those of lists end to end, as they lie in the file."""
        if name not in self._arrays:
            column = self._column(name)
            self._arrays[name] = (column.values if hasattr(column, "values") else column).to_numpy()
        return self._arrays[name]
