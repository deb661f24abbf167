"""Rows of Parquet seen as queries: both layouts give the same answers to what a batch is made from."""

from typing import Protocol

import numpy as np
import pyarrow as pa

from trainer.data.contract import list_parts
from trainer.data.ragged import Ragged
from trainer.data.row_groups import one_array
from trainer.data.schema import HISTORY_AGE, ITEM_ROW, TIMESTAMP, WEIGHT, Feature

# R rows, Q queries, P positives


class Rows(Protocol):
    """What a batch is made from.

    Attributes:
        num_rows: R.
        num_queries: Q.
        seen: int64 [Q], how many events of its row each query has seen.
        positive_query: int64 [P] ascending, the query of each positive; None where each query has one.
    """

    num_rows: int
    num_queries: int
    seen: np.ndarray
    positive_query: np.ndarray | None

    @property
    def query_row(self) -> np.ndarray | None:
        """int64 [Q] ascending, the row of each query; None where each row is one."""
        ...

    @property
    def positive_row(self) -> np.ndarray:
        """int64 [P], catalogue rows, of training rows."""
        ...

    def sparse(self, feature: Feature) -> Ragged:
        """Table rows of a query feature: a list for each row, or for each query where it is the event's."""
        ...

    def dense(self, feature: Feature) -> np.ndarray:
        """[Q, dim] of a numeric or a vector."""
        ...

    def histories(self) -> Ragged:
        """Catalogue rows of the events that the row's queries may see, R lists, oldest first."""
        ...

    def own_events(self) -> np.ndarray | None:
        """int64 [Q]: the event of all rows that is each query's positive, where queries see all others; else None."""
        ...

    def gaps(self) -> tuple[np.ndarray, np.ndarray]:
        """int64: seconds to each event of the histories from the one before, and [Q] to each query from its last."""
        ...

    def known(self) -> Ragged:
        """Catalogue rows of all that the row's user is known to have done, R lists."""
        ...

    def weight(self) -> np.ndarray:
        """float32 [P]."""
        ...


class EventRows:
    """Layout `event`, and held-out rows: a row is one query."""

    def __init__(self, events: pa.Table, history: Feature | None) -> None:
        self._events, self._history = events, history
        self.num_rows = self.num_queries = len(events)
        self.query_row = None
        self.positive_query: np.ndarray | None = None
        self.seen = self.histories().lengths if history else np.zeros(len(events), np.int64)

    @property
    def positive_row(self) -> np.ndarray:
        """The column of that kind, which held-out rows lack."""
        return _scalars(self._events, ITEM_ROW)

    def sparse(self, feature: Feature) -> Ragged:
        """A list for each row."""
        return _values(self._events, feature)

    def dense(self, feature: Feature) -> np.ndarray:
        """[R, dim]."""
        return _numbers(one_array(self._events, feature.name), feature)

    def histories(self) -> Ragged:
        """The column of that kind."""
        return lists(self._events, self._history.name) if self._history else _nothing(self.num_rows)

    def own_events(self) -> None:
        """None is in its own history."""

    def gaps(self) -> tuple[np.ndarray, np.ndarray]:
        """From the ages of the history's events."""
        ages = lists(self._events, HISTORY_AGE)
        to_each = -np.diff(ages.values, prepend=0)
        offsets = ages.offsets
        some = ages.lengths > 0
        to_each[offsets[:-1][some]] = 0
        to_query = np.zeros(self.num_rows, np.int64)
        to_query[some] = ages.values[offsets[1:][some] - 1]
        return to_each, to_query

    def known(self) -> Ragged:
        """The history."""
        return self.histories()

    def weight(self) -> np.ndarray:
        """The column of that name."""
        return _scalars(self._events, WEIGHT)


class SequenceRows:
    """Layout `sequence`: every event of a row but the first is the positive of a query that has seen those before.

    Args:
        rows: of the files.
        sees: before; or others: every event is the positive of a query that has seen all other events of its row; or
            all: a row is one query that has seen all its events, and every event a positive of it.
    """

    def __init__(self, rows: pa.Table, sees: str) -> None:
        self._table, self._sees = rows, sees
        self._items = lists(rows, ITEM_ROW)
        self.num_rows = len(rows)
        offsets, owner = self._items.offsets, self._items.owner
        place = np.arange(len(owner)) - offsets[owner]
        self._last = np.zeros(len(owner), bool)
        self._last[offsets[1:] - 1] = True
        # an unknown item is nobody's positive
        is_query = self._items.values >= 0
        self._query = np.flatnonzero(is_query & (place > 0) if sees == "before" else is_query)  # its positive's event
        self.positive_row = self._items.values[self._query]
        self.query_row: np.ndarray | None = owner[self._query]
        self.positive_query: np.ndarray | None = None
        self.num_queries, self.seen = len(self._query), place[self._query]
        if sees == "all":
            self.query_row, self.positive_query = None, self.query_row
            self.num_queries, self.seen = self.num_rows, self._items.lengths

    def sparse(self, feature: Feature) -> Ragged:
        """A list for each row, or each query."""
        if not feature.per_event:
            return _values(self._table, feature)
        values, _ = list_parts(one_array(self._table, feature.name))
        if not feature.multi_valued:
            return _one_each(values.to_numpy()[self._query])
        inner, offsets = list_parts(values)
        weights = None
        if feature.weighted:
            nested, _ = list_parts(one_array(self._table, feature.weight_column))
            weights = list_parts(nested)[0].to_numpy()
        return Ragged(inner.to_numpy(), np.diff(offsets), weights).take(self._query)

    def dense(self, feature: Feature) -> np.ndarray:
        """[Q, dim]."""
        column = one_array(self._table, feature.name)
        if feature.per_event:
            return _numbers(list_parts(column)[0], feature)[self._query]
        numbers = _numbers(column, feature)
        return numbers if self.query_row is None else numbers[self.query_row]

    def histories(self) -> Ragged:
        """All events; but the last where no query of the row has seen it."""
        if self._sees != "before":
            return self._items
        return Ragged(self._items.values[~self._last], self._items.lengths - 1)

    def own_events(self) -> np.ndarray | None:
        """All events of known items, where queries see the others."""
        return self._query if self._sees == "others" else None

    def gaps(self) -> tuple[np.ndarray, np.ndarray]:
        """From the events' times."""
        to_each = np.diff(lists(self._table, TIMESTAMP).values, prepend=0)
        to_query = to_each[self._query]
        to_each[self._items.offsets[:-1]] = 0
        return to_each[~self._last], to_query

    def known(self) -> Ragged:
        """All events, those after a query too."""
        return self._items

    def weight(self) -> np.ndarray:
        """That of the event which is the positive."""
        return lists(self._table, WEIGHT).values[self._query]


def _values(table: pa.Table, feature: Feature) -> Ragged:
    if not feature.is_list:
        return _one_each(_scalars(table, feature.name))
    values = lists(table, feature.name)
    weights = lists(table, feature.weight_column).values if feature.weighted else None
    return Ragged(values.values, values.lengths, weights)


def _one_each(values: np.ndarray) -> Ragged:
    return Ragged(values, np.ones(len(values), np.int64))


def _nothing(lists: int) -> Ragged:
    return Ragged(np.empty(0, np.int64), np.zeros(lists, np.int64))


def _scalars(table: pa.Table, name: str) -> np.ndarray:
    return one_array(table, name).to_numpy(zero_copy_only=False)


def lists(table: pa.Table, name: str) -> Ragged:
    """A column of lists."""
    values, offsets = list_parts(one_array(table, name))
    return Ragged(values.to_numpy(), np.diff(offsets))


def _numbers(column: pa.Array, feature: Feature) -> np.ndarray:
    values = list_parts(column)[0] if feature.kind == "vector" else column
    return values.to_numpy(zero_copy_only=False).reshape(-1, feature.dim)
