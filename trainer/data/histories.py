"""Histories: what a user did before an event, as slices of one flat array."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.engine import Connection, first_row, stream
from trainer.data.lists import lists_of


class Histories:
    """Catalogue rows of all events, users one after another and each in order of time, in a memory-mapped file.

    An unknown item is -1. The `position` events before the event at `place` are then
    `rows[place - position : place]`: nothing is sorted or copied per event, whatever the length of a user's past.
    """

    def __init__(self, rows: NDArray[np.int32]) -> None:
        self.rows = rows

    @classmethod
    def build(cls, connection: Connection, folder: Path) -> "Histories":
        """Reads them off the engine's table `events`."""
        (num_events,) = first_row(connection, "SELECT count(*) FROM events")
        rows = np.lib.format.open_memmap(folder / "histories.npy", mode="w+", dtype=np.int32, shape=(num_events,))
        query = "SELECT start + position AS place, item_row FROM events"
        for batch in stream(connection, query, 1 << 18):
            rows[batch["place"].to_numpy()] = batch["item_row"].to_numpy()
        return cls(rows)

    def before(self, place: NDArray[np.int64], position: NDArray[np.int64], length: int | None = None) -> pa.ListArray:
        """The last `length` events (all, where None) before each event, oldest first.

        Args:
            place: [B] number of the event among all, in the order of `rows`.
            position: [B] number of the event among its user's, from 0.
            length: Events kept.

        Returns:
            list<int32> [B] of catalogue rows.
        """
        lengths = position if length is None else np.minimum(position, length)
        return self.stretches(place - lengths, lengths)

    def stretches(self, begin: NDArray[np.int64], lengths: NDArray[np.int64]) -> pa.ListArray:
        """list<int32> [B] of catalogue rows: so many events from each `begin` on, int64 [B] both."""
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(begin - offsets[:-1], lengths)
        return lists_of(offsets, pa.array(self.rows[np.arange(offsets[-1]) + shift]))
