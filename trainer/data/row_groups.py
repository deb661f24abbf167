"""The Parquet files of a folder as one sequence of row groups, each checked against the contract."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.contract import (
    Column,
    Lists,
    Values,
    check_alike,
    event_columns,
    is_list,
    sequence_columns,
    vocabulary_columns,
)
from trainer.data.footers import check_known, check_parts
from trainer.data.schema import Feature, Schema
from trainer.errors import UserError

_REMEDY = "prepare the data anew, or have its writer keep to docs/prepared_folder.md"


class RowGroups:
    """Row groups, counted over all files in order of their names.

    What footers and statistics tell is checked at once; values when a row group is read.

    Args:
        folder: with files part-*.parquet, or a single file.
        columns: those that will be read, and what is expected of them.

    Raises:
        UserError: a file cannot be read, a column is missing or of another type than expected or than in the first
            file, or statistics show nulls or integers out of bounds.
    """

    def __init__(self, folder: Path, columns: Mapping[str, Column]) -> None:
        self._columns = columns
        self._kinds: pa.Schema | None = None
        self._groups: list[tuple[Path, int]] = []
        self._sizes: list[int] = []
        self.largest = 0
        """Bytes that the columns of the largest row group take once read, to a few per cent."""
        for path in [folder] if folder.is_file() else sorted(folder.glob("part-*.parquet")):
            with _readable(path):
                self._add(path)

    def _add(self, path: Path) -> None:
        file = _open(path)
        self._kinds = self._kinds or file.schema_arrow
        self._check_types(path, file.schema_arrow, self._kinds)
        groups = range(file.metadata.num_row_groups)
        for group in groups:
            self._check_statistics(path, file.metadata.row_group(group), group)
            self.largest = max(self.largest, self._bytes(file, group))
        self._groups += [(path, group) for group in groups]
        self._sizes += [file.metadata.row_group(group).num_rows for group in groups]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each."""
        return tuple(self._sizes)

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        return sum(self._sizes)

    def kind(self, column: str) -> pa.DataType:
        """Type of a column; there is a file."""
        assert self._kinds is not None
        return self._kinds.field(column).type

    def read(self, row_group: int) -> pa.Table:
        """One row group, counted over all files.

        Raises:
            UserError: it cannot be read, or a value is not as expected; file, row group, column and row are named.
        """
        return self._read(*self._groups[row_group], list(self._columns))

    def _read(self, path: Path, group: int, names: list[str]) -> pa.Table:
        with _readable(f"{path} row group {group}"):
            table = _open(path).read_row_group(group, columns=names, use_threads=False)
        for name in names:
            found = self._columns[name].first_wrong(one_array(table, name))
            if found is not None:
                row, value, expected = found
                raise UserError(f"{path} row group {group} column {name} row {row}", value, expected, _REMEDY)
        unlike = check_alike({name: self._columns[name] for name in names}, partial(one_array, table))
        if unlike is not None:
            name, (row, value, expected) = unlike
            raise UserError(f"{path} row group {group} column {name} row {row}", value, expected, _REMEDY)
        return table

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[pa.Table]:
        """Rows start to stop in file order, batch_size at a time; the last batch may be shorter."""
        ends = np.cumsum(self._sizes)
        pending = self.read(0).slice(0, 0)
        for row_group in range(int(np.searchsorted(ends, start, side="right")), len(ends)):
            first = int(ends[row_group]) - self._sizes[row_group]
            if first >= stop:
                break
            begin, end = max(start - first, 0), min(stop - first, self._sizes[row_group])
            pending = pa.concat_tables([pending, self.read(row_group).slice(begin, end - begin)])
            while len(pending) >= batch_size:
                yield pending.slice(0, batch_size)
                pending = pending.slice(batch_size)
        if len(pending):
            yield pending

    def _check_types(self, path: Path, kinds: pa.Schema, first: pa.Schema) -> None:
        for name, column in self._columns.items():
            if name not in kinds.names:
                expected = f"a column {name} of {column.expected} beside {', '.join(kinds.names)}"
                raise UserError("data.dir", path, expected, _REMEDY)
            kind = kinds.field(name).type
            if not column.accepts(kind):
                raise UserError(f"{path} column {name}", kind, column.expected, _REMEDY)
            if kind != first.field(name).type:
                expected = f"{first.field(name).type}, as in the first file"
                raise UserError(f"{path} column {name}", kind, expected, _REMEDY)

    def _check_statistics(self, path: Path, metadata: pq.RowGroupMetaData, group: int) -> None:
        """Files without statistics pass here, and are judged by their values."""
        for name, leaf in self._leaves(metadata):
            column, statistics = self._columns[name], leaf.statistics
            if statistics is None:
                continue
            nulls = isinstance(column, Values) and statistics.has_null_count and statistics.null_count
            while isinstance(column, Lists):
                column = column.elements
            bounds = column.bounds if statistics.has_min_max else None
            if nulls or (bounds is not None and not (statistics.min in bounds and statistics.max in bounds)):
                self._read(path, group, [name])  # finds the row
                found = f"nulls, or {statistics.min} to {statistics.max}"
                where = f"{path} row group {group} column {name}"
                raise UserError(where, found, "statistics that are those of its values", _REMEDY)

    def _bytes(self, file: pq.ParquetFile, group: int) -> int:
        metadata = file.metadata.row_group(group)
        total = 0
        for name, leaf in self._leaves(metadata):
            kind = file.schema_arrow.field(name).type
            while is_list(kind):
                total += 4 * metadata.num_rows
                kind = kind.value_type
            text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            total += leaf.total_uncompressed_size if text else leaf.num_values * kind.bit_width // 8
        return total

    def _leaves(self, metadata: pq.RowGroupMetaData) -> Iterator[tuple[str, pq.ColumnChunkMetaData]]:
        """Those of the columns that will be read; lists have one leaf, their elements."""
        for index in range(metadata.num_columns):
            leaf = metadata.column(index)
            name = leaf.path_in_schema.split(".")[0]
            if name in self._columns:
                yield name, leaf


def open_events(data_dir: str | Path, schema: Schema, split: str, columns: Collection[str] | None = None) -> RowGroups:
    """The events of a split.

    Args:
        data_dir: prepared folder.
        schema: of that folder.
        split: train, validation or test.
        columns: those that will be read; None for all that the contract has.

    Raises:
        UserError: see RowGroups and check_parts; or there are not as many rows as the schema says.
    """
    rows = _open_folder(data_dir, schema, f"events/{split}", event_columns(schema, split), columns)
    if rows.num_rows != schema.num_events[split] or not rows.num_rows:
        why = ""
        if split == "train" and schema.num_sequences and not rows.num_rows:
            why = " (it was prepared with data.layouts=[sequence])"
        if split == "validation" and not schema.num_events[split]:
            why = " (it was prepared with data.split.validation=0)"
        expected = f"the {schema.num_events[split]} rows of schema.json in events/{split}, not {rows.num_rows}{why}"
        raise UserError("data.dir", data_dir, expected, _REMEDY)
    return rows


def open_sequences(data_dir: str | Path, schema: Schema, columns: Collection[str] | None = None) -> RowGroups:
    """The training events as sequences; arguments as of `open_events`.

    Raises:
        UserError: see RowGroups and check_parts; or there are not as many rows as the schema says.
    """
    if not schema.num_sequences:
        raise UserError("data.layout", "sequence", f"event, for {data_dir} has no sequences",
                        "prepare it with data.layouts=[sequence], or [event,sequence]")  # fmt: skip
    rows = _open_folder(data_dir, schema, "sequences", sequence_columns(schema), columns)
    if rows.num_rows != schema.num_sequences:
        expected = f"the {schema.num_sequences} rows of schema.json in sequences, not {rows.num_rows}"
        raise UserError("data.dir", data_dir, expected, _REMEDY)
    return rows


def open_vocabulary(data_dir: str | Path, schema: Schema, feature: Feature) -> RowGroups:
    """The vocabulary of a feature's table.

    Raises:
        UserError: see RowGroups and check_known; or it has not as many ids as the feature says.
    """
    path = Path(data_dir) / "vocabulary" / f"{feature.table}.parquet"
    rows = RowGroups(path, vocabulary_columns(feature))
    if rows.num_rows != feature.num_embeddings - 1 or not path.exists():
        expected = f"the {feature.num_embeddings - 1} ids of table {feature.table}, which schema.json knows"
        raise UserError(str(path), f"{rows.num_rows} ids", expected, _REMEDY)
    check_known(Path(data_dir), schema, f"vocabulary/{path.name}")
    return rows


def _open_folder(
    data_dir: str | Path, schema: Schema, folder: str, contract: dict[str, Column], columns: Collection[str] | None
) -> RowGroups:
    check_parts(Path(data_dir), schema, folder)
    return RowGroups(
        Path(data_dir) / folder, {name: contract[name] for name in (contract if columns is None else columns)}
    )


def _open(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)


@contextmanager
def _readable(where: object) -> Iterator[None]:
    """Around all that a damaged file may upset: footers may say anything."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(str(where), "damaged", f"readable Parquet ({error})", _REMEDY) from None


def one_array(table: pa.Table, name: str) -> pa.Array:
    """A column of a table in one piece."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
