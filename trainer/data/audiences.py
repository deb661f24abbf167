"""Audiences: who chose an item in training, as slices of a flat array."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.encoding import ColumnEncoder
from trainer.data.engine import Connection, columns, first_row, shuffled, stream
from trainer.data.lists import lists_of
from trainer.data.schema import TIMESTAMP

STREAMED = 1 << 18


class Audiences:
    """Table rows of the users of every item, an item's after another's, in a memory-mapped file.

    Each user is there once, whatever their events, and unknown ones are not. Of more than `length` users those count
    whose last event with the item is newest; where events have no times, or it is as old, which of them is drawn.

    Args:
        connection: the engine, with its table `events` and the vocabularies.
        user_id: encodes the query's id, whose rows they are.
        length: users kept of an item.
        seed: of what is drawn.
        folder: for the file.
    """

    def __init__(self, connection: Connection, user_id: ColumnEncoder, length: int, seed: int, folder: Path) -> None:
        [row_of_user] = user_id.selected.values()
        newest = f"max({TIMESTAMP})" if TIMESTAMP in columns(connection, "events") else "0"
        connection.execute(f"""
            CREATE TABLE audience AS
            SELECT item_row, user_row
            FROM (SELECT item_row, {row_of_user} AS user_row, {newest} AS newest
                  FROM events {user_id.join} WHERE split = 'train' GROUP BY item_row, user_row)
            WHERE user_row > 0
            QUALIFY row_number() OVER (PARTITION BY item_row ORDER BY newest DESC, {shuffled(seed, "user_row")})
                <= {length}""")
        (size,) = first_row(connection, "SELECT count(*) FROM audience")
        (items,) = first_row(connection, "SELECT count(*) FROM catalog")
        # a file cannot be mapped where it is empty
        rows = np.lib.format.open_memmap(folder / "audience.npy", mode="w+", dtype=np.int32, shape=(max(size, 1),))
        counts, place = np.zeros(items, np.int64), 0
        for batch in stream(connection, "SELECT * FROM audience ORDER BY item_row, user_row", STREAMED):
            rows[place : place + len(batch)] = batch["user_row"].to_numpy()
            item = batch["item_row"].to_numpy()  # ascending, so that what a batch counts is one stretch
            counts[item[0] : item[-1] + 1] += np.bincount(item - item[0])
            place += len(batch)
        connection.execute("DROP TABLE audience")
        self._rows: NDArray[np.int32] = rows
        self._offsets = np.concatenate([[0], np.cumsum(counts)])

    def of(self, first_item: int, items: int) -> pa.ListArray:
        """list<int32> [items] of the users of so many catalogue rows from the first on."""
        offsets = self._offsets[first_item : first_item + items + 1]
        return lists_of(offsets - offsets[0], pa.array(self._rows[offsets[0] : offsets[-1]]))
