"""The reader: Parquet row groups to batches, in the order that order.py lays down."""

import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from trainer.data.assembly import BatchAssembler
from trainer.data.batch import QueryBatch, RetrievalBatch
from trainer.data.order import Piece, TrainingOrder, streams_of_rank
from trainer.data.prefetch import Prefetch
from trainer.data.row_groups import RowGroups
from trainer.errors import UserError


class TrainingReader:
    """This rank's share of every global batch, without end; `iter` starts at `next_step`.

    A thread reads ahead. Of each stream it holds the row group that the stream is in, and of one more a second copy
    while it is shuffled: `memory` says how much that is at most.

    Args:
        files: of the training rows.
        layout: of those rows: event or sequence.
        assembler: lays rows out as batches.
        order: which rows train when.
        rank: of this process.
        world_size: processes in all.
        pinned: whether batches are put into pinned memory, from which a GPU copies while it computes.
    """

    def __init__(
        self, files: RowGroups, layout: str, assembler: BatchAssembler, order: TrainingOrder,
        rank: int, world_size: int, pinned: bool = False,
    ) -> None:  # fmt: skip
        self.files, self.order = files, order
        self._layout, self._assembler, self._pinned = layout, assembler, pinned
        self._rank, self._world_size = rank, world_size
        self._streams = streams_of_rank(order.streams, rank, world_size)
        self._ahead: Prefetch[RetrievalBatch] | None = None
        self.next_step = 0
        """Global step, counted over all epochs, at which the next iteration begins."""

    @property
    def memory(self) -> int:
        """Bytes of row groups that this rank holds at most."""
        return (len(self._streams) + 2) * self.files.largest

    def check_memory(self, limit_gb: float) -> None:
        """Refuses row groups that are too large for so many streams.

        Raises:
            UserError: `memory` is above the limit.
        """
        if self.memory > limit_gb * 1e9:
            needed, largest = self.memory / 1e9, max(self.files.sizes)
            raise UserError(
                "data.memory_gb", limit_gb,
                f"at least {needed:.1f} for {len(self._streams)} streams a rank in row groups of {largest:,} rows",
                f"set data.memory_gb={needed:.1f}, use fewer streams or more ranks, or write smaller row groups",
            )  # fmt: skip

    def __iter__(self) -> Iterator[RetrievalBatch]:
        self.close()
        self._ahead = Prefetch(self.batches(self.next_step))
        return self._ahead

    def close(self) -> None:
        """Stops reading ahead."""
        if self._ahead is not None:
            self._ahead.close()

    def batches(self, step: int) -> Iterator[RetrievalBatch]:
        """The batches from a step on, made as they are taken; whoever iterates knows when to stop."""
        streams = [self._rows(stream, step) for stream in self._streams]
        for now in itertools.count(step):
            rows = pa.concat_tables([next(rows) for rows in streams])
            uniform_row = self._assembler.uniform_rows(now, self._rank, self._world_size)
            batch = self._assembler.training_batch(rows, self._layout, now, uniform_row)
            yield batch.pin_memory() if self._pinned else batch

    def rows(self, step: int) -> pa.Table:
        """This rank's rows of a step, read again."""
        return pa.concat_tables([next(self._rows(stream, step)) for stream in self._streams])

    def _rows(self, stream: int, step: int) -> Iterator[pa.Table]:
        """One stream's rows of each step; a step may span pieces."""
        take, pending = self.order.rows_per_step, None
        for piece, skip in self.order.stream(stream, step):
            fresh = self._shuffled(piece).slice(skip)
            pending = fresh if pending is None or not len(pending) else pa.concat_tables([pending, fresh])
            while len(pending) >= take:
                yield pending.slice(0, take)
                pending = pending.slice(take)

    def _shuffled(self, piece: Piece) -> pa.Table:
        return self.files.read(piece.row_group).take(piece.start + piece.rng().permutation(len(piece)))


class HeldOutReader:
    """A stretch of a held-out split, as batches of equal size.

    Args:
        files: of the split, all columns.
        assembler: lays rows out as batches.
        batch_size: of every batch; what lacks in the last is filled up with rows marked -1.
        rows: the stretch.
        steps: batches to make, where other ranks need more than this stretch does.
    """

    def __init__(self, files: RowGroups, assembler: BatchAssembler, batch_size: int, rows: range, steps: int) -> None:
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
