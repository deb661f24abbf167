"""The Parquet files of one split, as one sequence of row groups, each checked against the contract."""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.contract import event_columns
from trainer.data.schema import Schema
from trainer.errors import UserError

_REMEDY = "prepare the data anew, or have its writer keep to docs/prepared_folder.md"


class EventFiles:
    """Row groups, counted over all files in order of their names.

    What the files' footers and statistics tell is checked at once; values when a row group is read.

    Args:
        data_dir: prepared folder.
        schema: of that folder.
        split: train, validation or test.
        columns: those that will be read; None for all that the contract has.

    Raises:
        UserError: files or rows are missing, a file cannot be read, a column is missing or of another type than the
            contract's or than in the first file, or statistics show nulls or rows outside a table.
    """

    def __init__(
        self, data_dir: str | Path, schema: Schema, split: str, columns: Collection[str] | None = None
    ) -> None:
        folder = Path(data_dir) / "events" / split
        contract = event_columns(schema, split)
        self._columns = {name: contract[name] for name in (contract if columns is None else columns)}
        self._groups: list[tuple[Path, int]] = []
        sizes: list[int] = []
        self.largest_row_group = 0
        """Bytes that the columns of the largest row group take once read."""
        first: pa.Schema | None = None
        for path in sorted(folder.glob("part-*.parquet")):
            file = self._open(path)
            first = first or file.schema_arrow
            self._check_types(path, file.schema_arrow, first)
            for group in range(file.metadata.num_row_groups):
                self._check_statistics(path, file.metadata.row_group(group), group)
                self._groups.append((path, group))
                sizes.append(file.metadata.row_group(group).num_rows)
                self.largest_row_group = max(self.largest_row_group, self._bytes(file, group))
        self.row_group_sizes = tuple(sizes)
        if self.num_rows != schema.num_events[split] or not self.num_rows:
            alone = (
                " (it was prepared with data.layouts=[sequence] alone)" if schema.num_sequences and not sizes else ""
            )
            raise UserError(
                "data.dir", data_dir,
                f"the {schema.num_events[split]} rows of schema.json in {folder}, not {self.num_rows}{alone}", _REMEDY,
            )  # fmt: skip

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return sum(self.row_group_sizes)

    def read(self, row_group: int) -> pa.Table:
        """One row group, counted over all files.

        Raises:
            UserError: it cannot be read, or a value breaks the contract; file, row group, column and row are named.
        """
        path, group = self._groups[row_group]
        try:
            table = self._open(path).read_row_group(group, columns=list(self._columns), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path} row group {group}", "damaged", f"readable Parquet ({error})", _REMEDY) from None
        for name, column in self._columns.items():
            found = column.first_wrong(one_array(table, name))
            if found is not None:
                row, value, expected = found
                raise UserError(f"{path} row group {group} column {name} row {row}", value, expected, _REMEDY)
        return table

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[pa.Table]:
        """Rows start to stop in file order, batch_size at a time; the last batch may be shorter."""
        ends = np.cumsum(self.row_group_sizes)
        pending = self.read(0).slice(0, 0)
        for row_group in range(int(np.searchsorted(ends, start, side="right")), len(ends)):
            first = int(ends[row_group]) - self.row_group_sizes[row_group]
            if first >= stop:
                break
            begin, end = max(start - first, 0), min(stop - first, self.row_group_sizes[row_group])
            pending = pa.concat_tables([pending, self.read(row_group).slice(begin, end - begin)])
            while len(pending) >= batch_size:
                yield pending.slice(0, batch_size)
                pending = pending.slice(batch_size)
        if len(pending):
            yield pending

    def _open(self, path: Path) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise UserError("data.dir", path, f"a readable Parquet file ({error})", _REMEDY) from None

    def _check_types(self, path: Path, kinds: pa.Schema, first: pa.Schema) -> None:
        for name, column in self._columns.items():
            if name not in kinds.names:
                expected = f"a column {name} of {column.expected} beside {', '.join(kinds.names)}"
                raise UserError("data.dir", path, expected, _REMEDY)
            kind = kinds.field(name).type
            if not column.accepts(kind):
                raise UserError(f"{path} column {name}", kind, column.expected, _REMEDY)
            if kind != first.field(name).type:
                raise UserError(
                    f"{path} column {name}", kind, f"{first.field(name).type}, as in the first file", _REMEDY
                )

    def _check_statistics(self, path: Path, metadata: pq.RowGroupMetaData, group: int) -> None:
        """Files without statistics pass here, and are judged by their values."""
        for name, leaf in self._leaves(metadata):
            column, statistics = self._columns[name], leaf.statistics
            if statistics is None:
                continue
            where = f"{path} row group {group} column {name}"
            if column.lengths is None and statistics.has_null_count and statistics.null_count:
                raise UserError(where, f"{statistics.null_count} nulls", "none", _REMEDY)
            if column.bounds is not None and statistics.has_min_max:
                for value in (statistics.min, statistics.max):
                    if value not in column.bounds:
                        expected = f"rows {column.bounds.start} to {column.bounds.stop - 1}, the last of its table"
                        raise UserError(where, value, expected, _REMEDY)

    def _bytes(self, file: pq.ParquetFile, group: int) -> int:
        metadata = file.metadata.row_group(group)
        total = 0
        for name, leaf in self._leaves(metadata):
            kind = file.schema_arrow.field(name).type
            element = kind if self._columns[name].lengths is None else kind.value_type
            fixed = not pa.types.is_string(element) and not pa.types.is_large_string(element)
            total += leaf.num_values * element.bit_width // 8 if fixed else leaf.total_uncompressed_size
            total += 0 if self._columns[name].lengths is None else 4 * metadata.num_rows
        return total

    def _leaves(self, metadata: pq.RowGroupMetaData) -> Iterator[tuple[str, pq.ColumnChunkMetaData]]:
        """Those of the columns that will be read; lists have one leaf, their elements."""
        for index in range(metadata.num_columns):
            leaf = metadata.column(index)
            name = leaf.path_in_schema.split(".")[0]
            if name in self._columns:
                yield name, leaf


def one_array(table: pa.Table, name: str) -> pa.Array:
    """A column of a table in one piece."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
