"""One batch on its way from the reader to the towers."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

# R rows on this rank, Q queries in them, P positives of theirs, U distinct items of which the first C are candidates, H
# events of histories, S = H + R states

_Batch = TypeVar("_Batch")


@dataclass
class EventHistories:
    """What encoders see that look at each event of a history.

    Rows are there by length, the longest first, so that those of similar length lie together. Each has P = 1 + its
    events states, S over all rows: one before its first event and one after each.

    Attributes:
        item: int64 [H], the events' items as numbers among the U, oldest first, one row's after another's.
        length: int64 [R], events of each row.
        state_of_event: int64 [H], number among the S of the state after each event.
        position: int64 [S], events of its row before each state.
        place: int64 [S], where a state stands when the rows of its stretch are padded to one length.
        stretches: rows, longest P and number of states of each stretch of rows that are padded together.
        row: int64 [Q], each query's row in this order.
        state: int64 [Q], number among the S of the state that each query is to know.
        own: int64 [Q], number among the H of the event that is each query's positive, which alone of its row it has not
            seen; or None where queries have seen what came before them.
        gap: int64 [H], seconds since the event before, 0 for the first; or None where events have no times.
        query_gap: int64 [Q], seconds from the last event that a query has seen to the query; or None.
    """

    item: Tensor
    length: Tensor
    state_of_event: Tensor
    position: Tensor
    place: Tensor
    stretches: list[tuple[int, int, int]]
    row: Tensor
    state: Tensor
    own: Tensor | None = None
    gap: Tensor | None = None
    query_gap: Tensor | None = None


@dataclass
class RetrievalBatch:
    """Inputs of both towers; a tower whose dense input is None does not run.

    Items are there once, however many queries and histories share them, so that each is looked up, exchanged and sent
    through its tower once.

    Attributes:
        sparse_features: every looked-up feature of both towers, table rows, jagged over as many slots as the largest of
            R, Q and U. Of a query feature the first R are filled, or Q where it is the event's and not the user's; of
            a candidate feature the first U.
        query_dense: float32 [Q, numerics and vectors of the query side], unstandardised, NaN where missing; or None.
        item_dense: float32 [U, those of the candidate side]; or None.
        item_row: int64 [U], catalogue row of each item: its identity. The candidates come first, in ascending order;
            then other items of histories, among which -1 stands for items that the catalogue lacks.
        positive_count: float32 [C], positives that are the candidate.
        uniform_count: float32 [C], uniform draws of the candidate.
        train_share: float32 [C], each candidate's share of the training events: how likely it is to be a positive.
        shared: int64 ascending, numbers among the C of those that all ranks take as negatives; None where all.
        positive: int64 [P], each positive among the C.
        positive_query: int64 [P] ascending, the query of each positive; None where every query has one.
        query_row: int64 [Q] ascending, the row that each query is of; None where every row is one query.
        weight: float32 [P], of the positives in the loss; or None.
        user: int64 [R], the row of each user's id, 0 where unknown; or None.
        known_row, known_length: int64 [total] and [R], catalogue rows that each row's user is known to have chosen, in
            order; or None.
        known_seen: int64 [Q], how many of those of its row had been chosen before the query; None where all count.
        history: or None.
        step: global step that it trains.
    """

    sparse_features: KeyedJaggedTensor
    query_dense: Tensor | None
    item_dense: Tensor | None
    item_row: Tensor
    positive_count: Tensor
    uniform_count: Tensor
    train_share: Tensor
    positive: Tensor
    shared: Tensor | None = None
    query_row: Tensor | None = None
    positive_query: Tensor | None = None
    weight: Tensor | None = None
    user: Tensor | None = None
    known_row: Tensor | None = None
    known_length: Tensor | None = None
    known_seen: Tensor | None = None
    history: EventHistories | None = None
    step: int = 0

    @property
    def num_candidates(self) -> int:
        """C."""
        return len(self.positive_count)

    @property
    def num_shared(self) -> int:
        """Candidates that all ranks score."""
        return self.num_candidates if self.shared is None else len(self.shared)

    @property
    def slots(self) -> int:
        """Bags of every looked-up feature."""
        return self.sparse_features.stride()

    def with_slots(self, slots: int) -> "RetrievalBatch":
        """The batch with further, empty bags: the exchange of embeddings wants equally many from every rank."""
        if slots == self.slots:
            return self
        features = self.sparse_features
        keys = features.keys()
        lengths = features.lengths().new_zeros(len(keys), slots)
        lengths[:, : self.slots] = features.lengths().view(len(keys), self.slots)
        padded = KeyedJaggedTensor(
            keys, features.values(), weights=features.weights_or_none(), lengths=lengths.view(-1)
        )
        return replace(self, sparse_features=padded)

    def to(self, device: torch.device, non_blocking: bool = False) -> "RetrievalBatch":
        """The batch on another device."""
        return _each(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory of the batch, on a GPU, until what the stream has been given to do is done."""
        _each(self, lambda tensor: tensor.record_stream(stream))

    def pin_memory(self) -> "RetrievalBatch":
        """The batch in pinned host memory, from which copies to a GPU need not be waited for."""
        return _each(self, lambda tensor: tensor.pin_memory())


@dataclass
class QueryBatch:
    """Held-out queries with what is needed to score them.

    Attributes:
        batch: RetrievalBatch whose query side is filled.
        row: int64 [B], row number in the split; -1 for a row that only fills the batch, so that every rank takes
            the same number of equal batches.
        target_rows: int64 [total], catalogue rows of the positives, of all B rows end to end.
        target_lengths: int64 [B], how many of them each row has: one or more.
        seen_rows: int64 [total], catalogue rows the users had already seen, of all B rows end to end.
        seen_lengths: int64 [B], how many of them each row has.
    """

    batch: RetrievalBatch
    row: Tensor
    target_rows: Tensor
    target_lengths: Tensor
    seen_rows: Tensor
    seen_lengths: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "QueryBatch":
        """The batch on another device."""
        return _each(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))


def _each(batch: _Batch, change: Callable[[Any], Any]) -> _Batch:
    """The same dataclass with every tensor in it changed."""
    changed: dict[str, Any] = {}
    for name in (part.name for part in fields(batch)):  # type: ignore[arg-type]
        part = getattr(batch, name)
        if isinstance(part, EventHistories | RetrievalBatch):
            changed[name] = _each(part, change)
        elif isinstance(part, Tensor | KeyedJaggedTensor):
            changed[name] = change(part)
    return replace(batch, **changed)  # type: ignore[type-var]


def int64_tensor(values: np.ndarray) -> Tensor:
    """Integers of any width, as batches hold them."""
    return torch.from_numpy(values.astype(np.int64))
