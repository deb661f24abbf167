"""The items, memory-mapped: all processes of a node share one copy in the page cache."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.schema import RAW_ITEM_ID, TRAIN_COUNT, Feature, Schema
from trainer.errors import UserError


class Catalog:
    """Item features by catalogue row.

    Args:
        data_dir: prepared folder.
        schema: of that folder.

    Raises:
        UserError: catalog.arrow is missing, damaged, or lacks a column or rows that the schema declares.
    """

    def __init__(self, data_dir: str | Path, schema: Schema) -> None:
        path = Path(data_dir) / "catalog.arrow"
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                "data.dir", data_dir, f"a readable catalog.arrow ({error})", "prepare the data anew"
            ) from None
        declared = [RAW_ITEM_ID, TRAIN_COUNT, *(feature.name for feature in schema.side("candidate"))]
        missing = [name for name in declared if name not in self._table.column_names]
        if missing or self._table.num_rows != schema.num_items:
            raise UserError(
                "data.dir", data_dir, f"a catalog.arrow of {schema.num_items} rows with columns {declared}, "
                f"not {self._table.num_rows} rows with {self._table.column_names}", "prepare the data anew",
            )  # fmt: skip

        if self._table.column(0).num_chunks != 1:
            raise UserError("data.dir", data_dir, "one record batch in catalog.arrow", "write it as one, unbroken")
        for feature in schema.side("candidate"):
            if feature.is_sparse:
                column = self._column(feature.name)
                bounds = pc.min_max(column.values if feature.multi_valued else column).as_py()
                if bounds["min"] is not None and not 0 <= bounds["min"] <= bounds["max"] < feature.num_embeddings:
                    raise UserError(
                        f"{path} column {feature.name}", bounds, f"rows of a table of {feature.num_embeddings}",
                        "prepare the data anew; catalogue and vocabulary must come from one run of prepare",
                    )  # fmt: skip

        self._num_events = schema.num_events["train"]

    def __len__(self) -> int:
        return self._table.num_rows

    def raw_ids(self, rows: np.ndarray) -> pa.Array:
        """The user's own item ids (int64 or string) of catalogue rows."""
        return self._column(RAW_ITEM_ID).take(pa.array(rows))

    def train_counts(self) -> np.ndarray:
        """int64 [items]: training events of each item."""
        return self._column(TRAIN_COUNT).to_numpy()

    def log_q(self, rows: np.ndarray) -> np.ndarray:
        """float32 [rows]: log of each item's share of the training events."""
        with np.errstate(divide="ignore"):  # the log of an item without events is -inf
            return np.log(self.train_counts()[rows] / self._num_events).astype(np.float32)

    def dense(self, feature: Feature, rows: np.ndarray) -> np.ndarray:
        """float32 [rows, dim] of a numeric or vector."""
        column = self._column(feature.name)
        values = column.values if feature.kind == "vector" else column
        return values.to_numpy().reshape(len(self), feature.dim)[rows]

    def sparse(self, feature: Feature, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Table rows of an id or categorical, as (values, lengths), both integer [.]."""
        column = self._column(feature.name)
        if not feature.multi_valued:
            return column.to_numpy()[rows], np.ones(len(rows), np.int64)
        return _gather_lists(column.values.to_numpy(), column.offsets.to_numpy(), rows)

    def _column(self, name: str) -> pa.Array:
        # prepare writes one record batch, so a column is one array that lies in the file as it is
        return self._table.column(name).chunk(0)


def _gather_lists(values: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    begin = offsets[rows].astype(np.int64)
    lengths = offsets[rows + 1] - begin
    ends = np.cumsum(lengths)
    positions = np.arange(ends[-1] if len(ends) else 0) + np.repeat(begin - (ends - lengths), lengths)
    return values[positions], lengths
