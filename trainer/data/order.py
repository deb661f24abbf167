"""Which rows train at which step: a pure function of (seed, epoch, step), whatever the ranks and workers.

An epoch lays the row groups of all files end to end in a permuted order and cuts that line into `streams` stretches
of equal length. Each stretch is a logical stream; its rows are shuffled inside every piece of a row group that it
holds. Step t takes the same number of rows from every stream, so the global batch is the streams' shares in stream
order, and a rank that reads a contiguous range of the streams holds a contiguous range of the global batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.errors import UserError


@dataclass(frozen=True)
class Piece:
    """A run of rows of one row group, in the shuffled order in which a stream takes them."""

    row_group: int
    """Number of the row group, counted over all files."""
    start: int
    """First row within the row group."""
    stop: int
    """One past the last row within the row group."""
    rng_key: tuple[int, ...]
    """Key of the random numbers that belong to these rows: their shuffle, then whatever is drawn for each."""

    def __len__(self) -> int:
        return self.stop - self.start

    def rng(self) -> np.random.Generator:
        """A fresh generator, the same wherever and whenever the piece is read."""
        return np.random.default_rng(self.rng_key)


@dataclass(frozen=True)
class EpochOrder:
    """The order of training rows over all epochs.

    Rows that do not fill a last global batch are left out of their epoch; the next epoch's permutation leaves out
    others. Their number, fewer than global_batch_size + streams, is the same for every rank and epoch.
    """

    row_group_sizes: tuple[int, ...]
    global_batch_size: int
    streams: int
    seed: int

    def __post_init__(self) -> None:
        if self.steps_per_epoch == 0:
            raise UserError(
                "data.global_batch_size", self.global_batch_size, f"at most the {self.num_rows} training rows",
                f"set data.global_batch_size={self.num_rows // self.streams * self.streams} or prepare more events",
            )  # fmt: skip

    @property
    def num_rows(self) -> int:
        """Training rows in all."""
        return sum(self.row_group_sizes)

    @property
    def rows_per_step(self) -> int:
        """Rows that one stream gives to one step."""
        return self.global_batch_size // self.streams

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, equal for all ranks."""
        return (self.num_rows // self.streams) // self.rows_per_step

    def stream(self, stream: int, epoch: int, step: int = 0) -> Iterator[tuple[Piece, int]]:
        """Pieces of one stream from a step of an epoch to its end, each with the number of its rows to skip."""
        behind = step * self.rows_per_step
        for piece in self._pieces(stream, epoch):
            if behind < len(piece):
                yield piece, behind
            behind = max(0, behind - len(piece))

    def _pieces(self, stream: int, epoch: int) -> Iterator[Piece]:
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.row_group_sizes))
        begin, end = (self.num_rows * edge // self.streams for edge in (stream, stream + 1))
        ends = np.cumsum(np.asarray(self.row_group_sizes)[order])
        for position in range(int(np.searchsorted(ends, begin, side="right")), len(order)):
            row_group = int(order[position])
            first = int(ends[position]) - self.row_group_sizes[row_group]
            if first >= end:
                return
            start, stop = max(begin - first, 0), min(end, int(ends[position])) - first
            if start < stop:
                yield Piece(row_group, start, stop, rng_key=(self.seed, epoch, stream, row_group))


def streams_of_rank(streams: int, rank: int, world_size: int) -> Sequence[int]:
    """The contiguous range of streams that a rank reads; `streams` is a multiple of `world_size`."""
    share = streams // world_size
    return range(rank * share, (rank + 1) * share)
