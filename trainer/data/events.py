"""The reader: Parquet row groups to batches, in the order that order.py lays down."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.data.assembly import DROPPED, BatchAssembler
from trainer.data.batch import QueryBatch, RetrievalBatch
from trainer.data.order import EpochOrder, Piece, streams_of_rank
from trainer.data.prefetch import Prefetch
from trainer.data.schema import ITEM_ROW, SEEN, Schema
from trainer.errors import UserError


class EventFiles:
    """The Parquet files of one split, seen as one sequence of row groups.

    Args:
        data_dir: prepared folder.
        split: train, validation or test.
        columns: those that will be read; None for all.

    Raises:
        UserError: the split has no files or no rows, a file cannot be read, or a column is missing.
    """

    def __init__(self, data_dir: str | Path, split: str, columns: Sequence[str] | None = None) -> None:
        folder = Path(data_dir) / "events" / split
        paths = sorted(folder.glob("part-*.parquet"))
        self._columns = None if columns is None else list(columns)
        self._groups: list[tuple[Path, int]] = []
        sizes: list[int] = []
        for path in paths:
            metadata = _open(path, self._columns).metadata
            for group in range(metadata.num_row_groups):
                self._groups.append((path, group))
                sizes.append(metadata.row_group(group).num_rows)
        self.row_group_sizes = tuple(sizes)
        if self.num_rows == 0:
            raise UserError("data.dir", data_dir, f"at least one row in {folder}", "prepare the data with more events")

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return sum(self.row_group_sizes)

    def check_indices(self, limits: dict[str, int]) -> None:
        """Refuses rows that point outside a table or the catalogue, from the files' statistics where they have them.

        Args:
            limits: for every integer column (or list of integers), what its values must stay below.

        Raises:
            UserError: a value is negative or too large.
        """
        for path in dict.fromkeys(path for path, _ in self._groups):
            file = _open(path, None)
            for group in range(file.metadata.num_row_groups):
                for name, low, high in _bounds(file, group, limits.keys()):
                    if low < 0 or high >= limits[name]:
                        raise UserError(
                            f"{path} row group {group} column {name}", high if low >= 0 else low,
                            f"row numbers from 0 to {limits[name] - 1}, the last of its table",
                            "prepare the data anew; events, vocabulary and catalogue must come from one prepare",
                        )  # fmt: skip

    def read(self, row_group: int) -> pa.Table:
        """One row group, counted over all files."""
        path, group = self._groups[row_group]
        return _open(path, self._columns).read_row_group(group, columns=self._columns, use_threads=False)

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


class TrainingReader:
    """This rank's share of every global batch, without end; `iter` starts at `next_step`.

    Args:
        files: of the train split.
        assembler: lays rows out as batches.
        order: which rows train when.
        id_dropout: share of rows whose id is hidden, drawn for each id feature on its own.
        rank: of this process.
        world_size: processes in all.
    """

    def __init__(
        self, files: EventFiles, assembler: BatchAssembler, order: EpochOrder, id_dropout: float,
        rank: int, world_size: int,
    ) -> None:  # fmt: skip
        self.files, self.order = files, order
        self._assembler, self._id_dropout = assembler, id_dropout
        self._dropped = [feature.name for feature in assembler.features if feature.kind == "id"] if id_dropout else []
        self._streams = streams_of_rank(order.streams, rank, world_size)
        self._ahead: Prefetch[RetrievalBatch] | None = None
        self.next_step = 0
        """Global step, counted over all epochs, at which the next iteration begins."""

    def __iter__(self) -> Iterator[RetrievalBatch]:
        self.close()
        self._ahead = Prefetch(self._batches(self.next_step))
        return self._ahead

    def close(self) -> None:
        """Stops reading ahead."""
        if self._ahead is not None:
            self._ahead.close()

    def _batches(self, step: int) -> Iterator[RetrievalBatch]:
        while True:  # epoch after epoch: whoever iterates knows when to stop
            epoch, step_in_epoch = divmod(step, self.order.steps_per_epoch)
            streams = [self._rows(stream, epoch, step_in_epoch) for stream in self._streams]
            for _ in range(step_in_epoch, self.order.steps_per_epoch):
                yield self._assembler.training_batch(pa.concat_tables([next(rows) for rows in streams]))
                step += 1

    def _rows(self, stream: int, epoch: int, step: int) -> Iterator[pa.Table]:
        """One stream's rows of each step; a step may span pieces."""
        take, pending = self.order.rows_per_step, None
        for piece, skip in self.order.stream(stream, epoch, step):
            fresh = self._shuffled(piece).slice(skip)
            pending = fresh if pending is None else pa.concat_tables([pending, fresh])
            while len(pending) >= take:
                yield pending.slice(0, take)
                pending = pending.slice(take)

    def _shuffled(self, piece: Piece) -> pa.Table:
        rng = piece.rng()
        table = self.files.read(piece.row_group).take(piece.start + rng.permutation(len(piece)))
        for name in self._dropped:
            table = table.append_column(DROPPED + name, pa.array(rng.random(len(piece)) < self._id_dropout))
        return table


class HeldOutReader:
    """A stretch of a held-out split, as batches of equal size.

    Args:
        files: of the split, all columns.
        assembler: lays rows out as batches.
        batch_size: of every batch; what lacks in the last is filled up with rows marked -1.
        rows: the stretch.
        steps: batches to make, where other ranks need more than this stretch does.
    """

    def __init__(self, files: EventFiles, assembler: BatchAssembler, batch_size: int, rows: range, steps: int) -> None:
        self._files, self._assembler, self._batch_size = files, assembler, batch_size
        self._rows, self._steps = rows, steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[QueryBatch]:
        return Prefetch(self._batches())

    def _batches(self) -> Iterator[QueryBatch]:
        filler = self._files.read(0).slice(0, 1)
        batches = self._files.batches(self._rows.start, self._rows.stop, self._batch_size)
        start = self._rows.start
        for _ in range(self._steps):
            events = next(batches, filler.slice(0, 0))
            row = np.full(self._batch_size, -1, np.int64)
            row[: len(events)] = np.arange(start, start + len(events))
            start += len(events)
            filled = pa.concat_tables([events, *[filler] * (self._batch_size - len(events))])
            yield self._assembler.query_batch(filled, row)


def index_limits(schema: Schema) -> dict[str, int]:
    """Columns of the events that hold row numbers, and what these must stay below."""
    limits = {ITEM_ROW: schema.num_items, SEEN: schema.num_items}
    for feature in schema.side("query"):
        if feature.is_sparse:
            limits[feature.name] = schema.num_items if feature.kind == "history" else feature.num_embeddings
    return limits


def _bounds(file: pq.ParquetFile, group: int, names: Collection[str]) -> Iterator[tuple[str, int, int]]:
    """Smallest and largest value of integer columns (or lists of integers) of a row group."""
    metadata = file.metadata.row_group(group)
    for leaf in (metadata.column(index) for index in range(metadata.num_columns)):
        name, statistics = leaf.path_in_schema.split(".")[0], leaf.statistics
        if name not in names:
            continue
        if statistics is not None and statistics.has_min_max:
            yield name, statistics.min, statistics.max
        else:  # written without statistics, or nothing but empty lists
            column = file.read_row_group(group, columns=[name]).column(name).combine_chunks()
            bounds = pc.min_max(column.flatten() if pa.types.is_list(column.type) else column).as_py()
            yield name, bounds["min"] or 0, bounds["max"] or 0


def _open(path: Path, columns: Sequence[str] | None) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError("data.dir", path, f"a readable Parquet file ({error})", "prepare the data anew") from None
    missing = [name for name in columns or () if name not in file.schema_arrow.names]
    if missing:
        raise UserError(
            "data.dir", path, f"columns {missing} beside {file.schema_arrow.names}", "prepare the data anew"
        )
    return file
