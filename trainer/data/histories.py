"""Histories: what a user did before an event and how long ago, as slices of flat arrays."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.engine import Connection, columns, first_row, stream
from trainer.data.lists import lists_of
from trainer.data.schema import TIMESTAMP


class Histories:
    """Catalogue rows and times of all events, a user's after another's and in order of time, in memory-mapped files.

    An unknown item is -1. The `position` events before the event at `place` are then
    `rows[place - position : place]`: nothing is sorted or copied per event, whatever the length of a user's past.
    """

    def __init__(self, rows: NDArray[np.int32], times: NDArray[np.int64] | None = None) -> None:
        self.rows, self.times = rows, times

    @classmethod
    def build(cls, connection: Connection, folder: Path) -> "Histories":
        """Reads them off the engine's table `events`."""
        (num_events,) = first_row(connection, "SELECT count(*) FROM events")
        kinds: dict[str, type] = {"item_row": np.int32}
        if TIMESTAMP in columns(connection, "events"):
            kinds[TIMESTAMP] = np.int64
        flat = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=(num_events,))
            for name, kind in kinds.items()
        }
        query = f"SELECT start + position AS place, {', '.join(kinds)} FROM events"
        for batch in stream(connection, query, 1 << 18):
            for name, values in flat.items():
                values[batch["place"].to_numpy()] = batch[name].to_numpy()
        return cls(flat["item_row"], flat.get(TIMESTAMP))

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
        offsets, places = _places(begin, lengths)
        return lists_of(offsets, pa.array(self.rows[places]))

    def ages(self, place: NDArray[np.int64], position: NDArray[np.int64], length: int) -> pa.ListArray:
        """How long before each event those of `before` were: list<int64> [B] of seconds, for events with times."""
        assert self.times is not None
        lengths = np.minimum(position, length)
        offsets, earlier = _places(place - lengths, lengths)
        return lists_of(offsets, pa.array(np.repeat(self.times[place], lengths) - self.times[earlier]))


def _places(begin: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets [B + 1] of lists of so many places from each `begin` on, and the places end to end."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return offsets, np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], lengths)
