"""Sequences: each user's training events in order, cut into rows of at most `sequence_length`."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.config import PreparedConfig
from trainer.data.encoding import ColumnEncoder
from trainer.data.engine import SAMPLE_WEIGHT, Connection, columns, first_row, shuffled, stream
from trainer.data.lists import lists_of
from trainer.data.prepared_files import regroup
from trainer.data.prepared_rows import joined, record_batch
from trainer.data.schema import ITEM_ROW, TIMESTAMP, WEIGHT
from trainer.errors import UserError


def count_trained_users(connection: Connection) -> list[str]:
    """A line for users with a single training event, who have no sequence.

    Raises:
        UserError: nobody has two.
    """
    trained = "SELECT count(*) AS events FROM events WHERE split = 'train' GROUP BY user_id"
    query = f"SELECT count(*) FILTER (events = 1), count(*) FILTER (events > 1) FROM ({trained})"
    single, several = first_row(connection, query)
    if several == 0:
        raise UserError("data.layouts", "sequence", "a user with two training events or more",
                        "give more events, or set data.layouts=[event]")  # fmt: skip
    return [f"sequences: {single} users have none, for they have a single training event"] if single else []


def sequence_batches(
    connection: Connection, encoders: list[ColumnEncoder], config: PreparedConfig
) -> Iterator[pa.RecordBatch]:
    """Rows of the sequences' files in pseudo-random order, in batches of about row_group_size events.

    A user's rows are counted from the last training event back, each `sequence_length` events long but for the oldest;
    one ends with the event that the next begins with, so that every event but the user's first has a row in which
    others come before it. Events of unknown items are there where they lie between training events.
    """
    size = config.row_group_size
    events = regroup(stream(connection, _query(connection, encoders, config), size), size)
    yield from (_rows(batch, encoders) for batch in _whole(events))


def _query(connection: Connection, encoders: list[ColumnEncoder], config: PreparedConfig) -> str:
    """SQL of the events of all rows, one row's after another's; `begins` is where one begins.

    `back` counts a user's events from the last training event, and `number` their rows, of which an event that ends
    one and begins the next has two.
    """
    # Sorted in the engine, which spills, rather than collected into lists, which it keeps in memory.
    step = config.sequence_length - 1  # events from the end of a row to that of the next
    there = columns(connection, "events")
    selected = "".join(f"{name}, " for name in (TIMESTAMP, SAMPLE_WEIGHT) if name in there)
    for encoder in encoders:
        for name, value in encoder.selected.items():
            # Once a row is enough for what is the user's: the sort need not carry it along.
            once = value if encoder.input.per_event else f"CASE WHEN begins THEN {value} END"
            selected += f"{once} AS {name}, "
    return f"""
        WITH trained AS (
            SELECT user_id, min(position) AS first, max(position) AS last
            FROM events WHERE split = 'train' GROUP BY user_id HAVING count(*) > 1
        ), members AS (
            SELECT events.*, first, last, last - position AS back,
                   unnest(range(greatest(back - 1, 0) // {step},
                                least(back, last - first - 1) // {step} + 1)) AS number
            FROM events JOIN trained USING (user_id) WHERE position BETWEEN first AND last
        ), numbered AS (
            SELECT *, back = least(last - first, (number + 1) * {step}) AS begins FROM members
        )
        SELECT {selected} item_row, begins
        FROM numbered {joined(connection, encoders)}
        ORDER BY {shuffled(config.seed, "(user_id || ':' || number)")}, position"""


def _whole(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same events in batches that end where a row does."""
    pending = None
    for batch in batches:
        whole = batch if pending is None else pa.concat_batches([pending, batch])
        last = int(_starts(whole)[-1])
        if last:
            yield whole.slice(0, last)
        pending = whole.slice(last)
    if pending is not None:
        yield pending


def _starts(events: pa.RecordBatch) -> NDArray[np.int64]:
    """Where rows begin among their events."""
    return np.flatnonzero(events["begins"].to_numpy(zero_copy_only=False))


def _rows(events: pa.RecordBatch, encoders: list[ColumnEncoder]) -> pa.RecordBatch:
    """The events as rows, each holding one value of what is its user's and a list of what is its events'."""
    starts = _starts(events)
    offsets = np.append(starts, len(events))
    stored = {ITEM_ROW: lists_of(offsets, events[ITEM_ROW])}
    for encoder in encoders:
        if encoder.input.per_event:
            stored |= {name: lists_of(offsets, column) for name, column in encoder.encode(events).items()}
        else:
            stored |= encoder.encode(events.select(list(encoder.selected)).take(pa.array(starts)))
    if TIMESTAMP in events.schema.names:
        stored[TIMESTAMP] = lists_of(offsets, events[TIMESTAMP].cast(pa.int64()))
    if SAMPLE_WEIGHT in events.schema.names:
        stored[WEIGHT] = lists_of(offsets, events[SAMPLE_WEIGHT].cast(pa.float32()))
    return record_batch(stored)
