"""Histories laid out for encoders that look at each of their events."""

from dataclasses import replace

import numpy as np

from trainer.data.batch import EventHistories, int64_tensor
from trainer.data.layouts import Rows
from trainer.data.ragged import Ragged

PADDED_AT_MOST = 1.25
"""How much longer than the shortest the longest row of a stretch may be."""


def event_histories(rows: Rows, item_number: np.ndarray, sees_gaps: bool) -> EventHistories:
    """Lays the histories of a batch out.

    Args:
        rows: of the batch.
        item_number: int64 [H], the events' items as numbers among those of the batch.
        sees_gaps: whether encoders know the time between events.
    """
    histories = replace(rows.histories(), values=item_number)
    order = np.argsort(-histories.lengths, kind="stable")
    place_of_row = np.empty(len(order), np.int64)
    place_of_row[order] = np.arange(len(order))
    ordered = histories.take(order)
    num_states = ordered.lengths + 1
    first_state = np.cumsum(num_states) - num_states
    row_of_state = np.repeat(np.arange(len(order)), num_states)
    position = np.arange(len(row_of_state)) - first_state[row_of_state]
    row = place_of_row if rows.query_row is None else place_of_row[rows.query_row]
    stretches, place = _stretches(num_states, row_of_state, position)
    own = rows.own_events()
    laid_out = EventHistories(
        item=int64_tensor(ordered.values),
        length=int64_tensor(ordered.lengths),
        state_of_event=int64_tensor(np.flatnonzero(position > 0)),
        position=int64_tensor(position),
        place=int64_tensor(place),
        stretches=stretches,
        row=int64_tensor(row),
        state=int64_tensor(first_state[row] + (rows.seen if own is None else 0)),
    )
    if own is not None:
        laid_out.own = int64_tensor(own - histories.offsets[rows.query_row] + ordered.offsets[row])
    if sees_gaps:
        to_each, to_query = rows.gaps()
        laid_out.gap = int64_tensor(Ragged(to_each, histories.lengths).take(order).values)
        laid_out.query_gap = int64_tensor(to_query)
    return laid_out


def _stretches(
    num_states: np.ndarray, row_of_state: np.ndarray, position: np.ndarray
) -> tuple[list[tuple[int, int, int]], np.ndarray]:
    """Cuts rows, the longest first, into stretches of similar length; and where their states stand when padded."""
    stretches, begin = [], 0
    place = position.copy()
    ends = np.cumsum(num_states)
    while begin < len(num_states):
        longest = int(num_states[begin])
        end = int(np.searchsorted(-num_states, -longest / PADDED_AT_MOST, side="right"))
        first, last = int(ends[begin]) - longest, int(ends[end - 1])
        place[first:last] += (row_of_state[first:last] - begin) * longest
        stretches.append((end - begin, longest, last - first))
        begin = end
    return stretches, place
