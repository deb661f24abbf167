"""One batch on its way from the reader to the towers."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

# B queries on this rank, each with its candidate in the same row


@dataclass
class RetrievalBatch:
    """Inputs of both towers for the same B rows; a tower whose dense input is None does not run.

    Attributes:
        sparse_features: every looked-up feature of both towers, jagged over the B rows; int64 table rows. Features of
            a tower that does not run are there with no values, since the sharded lookup expects all keys.
        query_dense: float32 [B, numerics and vectors of the query side], unstandardised, NaN where missing; or None.
        candidate_dense: the same of the candidate side; or None.
        candidate_row: int64 [B], catalogue row of each candidate: its identity.
        candidate_log_q: float32 [B], log of each candidate's share of the training events: how likely it is to come
            into a batch; -inf for an item without any, which no training batch holds.
    """

    sparse_features: KeyedJaggedTensor
    query_dense: Tensor | None
    candidate_dense: Tensor | None
    candidate_row: Tensor
    candidate_log_q: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "RetrievalBatch":
        """The batch on another device."""
        return RetrievalBatch(
            self.sparse_features.to(device, non_blocking),
            None if self.query_dense is None else self.query_dense.to(device, non_blocking=non_blocking),
            None if self.candidate_dense is None else self.candidate_dense.to(device, non_blocking=non_blocking),
            self.candidate_row.to(device, non_blocking=non_blocking),
            self.candidate_log_q.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "RetrievalBatch":
        """The batch in pinned host memory, from which copies to a GPU need not be waited for."""
        return RetrievalBatch(
            self.sparse_features.pin_memory(),
            None if self.query_dense is None else self.query_dense.pin_memory(),
            None if self.candidate_dense is None else self.candidate_dense.pin_memory(),
            self.candidate_row.pin_memory(),
            self.candidate_log_q.pin_memory(),
        )


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
        tensors = (self.row, self.target_rows, self.target_lengths, self.seen_rows, self.seen_lengths)
        return QueryBatch(
            self.batch.to(device, non_blocking), *(tensor.to(device, non_blocking=non_blocking) for tensor in tensors)
        )
