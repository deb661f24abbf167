"""Which rows train at which step: a pure function of (seed, epoch, step), whatever the ranks and workers.

An epoch lays the row groups of all files end to end in a permuted order and cuts that line into `streams` stretches,
equal but for one row. Each is a logical stream's share of the epoch; its rows are shuffled inside every piece of a row
group that it holds. Streams run on from epoch to epoch without a break, and every step takes the same number of rows
from each, in stream order: so a rank that reads a contiguous range of the streams holds a contiguous range of the
global batch, and the batch in which an epoch ends is filled up with the first rows of the next.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.errors import UserError


@dataclass(frozen=True)
class Piece:
    """A run of rows of one row group, which a stream takes in shuffled order."""

    row_group: int
    """Number of the row group, counted over all files."""
    start: int
    """First row within the row group."""
    stop: int
    """One past the last row within the row group."""
    rng_key: tuple[int, ...]
    """Key of the random numbers that shuffle these rows."""

    def __len__(self) -> int:
        return self.stop - self.start

    def rng(self) -> np.random.Generator:
        """A fresh generator, the same wherever and whenever the piece is read."""
        return np.random.default_rng(self.rng_key)


@dataclass(frozen=True)
class TrainingOrder:
    """The order of training rows over all epochs: each epoch holds every row once.

    Args:
        row_group_sizes: rows of each row group, over all files.
        global_batch_size: rows of one step over all ranks; a multiple of streams.
        streams: logical streams.
        seed: of all shuffling.

    Raises:
        UserError: there are fewer rows than one step takes.
    """

    row_group_sizes: tuple[int, ...]
    global_batch_size: int
    streams: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_rows // self.streams < self.rows_per_step:
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
    def fingerprint(self) -> str:
        """Digest of the row groups: with others, the same step would take other rows."""
        return hashlib.sha256(np.asarray(self.row_group_sizes, np.int64).tobytes()).hexdigest()

    def steps(self, epochs: float) -> int:
        """Steps until every row of so many epochs has been trained, equal for all ranks.

        The last of them takes fewer than global_batch_size rows of the epoch after.
        """
        return int(np.ceil(epochs * self.num_rows / self.global_batch_size))

    def stream(self, stream: int, step: int = 0) -> Iterator[tuple[Piece, int]]:
        """Pieces of one stream from a step on, without end, each with the number of its rows to skip.

        Args:
            stream: number of the stream.
            step: global step, counted over all epochs.
        """
        row = step * self.rows_per_step
        epoch = row * self.streams // self.num_rows  # or one beside it
        while self._first_row(stream, epoch) > row:
            epoch -= 1
        while self._first_row(stream, epoch + 1) <= row:
            epoch += 1
        behind = row - self._first_row(stream, epoch)
        while True:
            for piece in self._pieces(stream, epoch):
                if behind < len(piece):
                    yield piece, behind
                behind = max(0, behind - len(piece))
            epoch += 1

    def _pieces(self, stream: int, epoch: int) -> Iterator[Piece]:
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.row_group_sizes))
        begin, end = self._edge(stream, epoch), self._edge(stream + 1, epoch)
        ends = np.cumsum(np.asarray(self.row_group_sizes)[order])
        for position in range(int(np.searchsorted(ends, begin, side="right")), len(order)):
            row_group = int(order[position])
            first = int(ends[position]) - self.row_group_sizes[row_group]
            if first >= end:
                return
            start, stop = max(begin - first, 0), min(end, int(ends[position])) - first
            if start < stop:
                yield Piece(row_group, start, stop, rng_key=(self.seed, epoch, stream, row_group))

    # The rows that an even cut leaves over are dealt to the streams like cards, on and on over the epochs: so no stream
    # is ever more than a row ahead of another.

    def _first_row(self, stream: int, epoch: int) -> int:
        """Rows that a stream has given before an epoch."""
        even, over = divmod(self.num_rows, self.streams)
        return epoch * even + (epoch * over - stream + self.streams - 1) // self.streams

    def _edge(self, stream: int, epoch: int) -> int:
        """Place in the line of an epoch at which a stream's stretch begins."""
        even, over = divmod(self.num_rows, self.streams)

        def dealt_before(cards: int) -> int:
            """Of the first so many cards, those of the streams before this one."""
            rounds, rest = divmod(cards, self.streams)
            return rounds * stream + min(rest, stream)

        return stream * even + dealt_before((epoch + 1) * over) - dealt_before(epoch * over)


def streams_of_rank(streams: int, rank: int, world_size: int) -> Sequence[int]:
    """The contiguous range of streams that a rank reads; `streams` is a multiple of `world_size`."""
    share = streams // world_size
    return range(rank * share, (rank + 1) * share)
