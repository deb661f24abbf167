"""Exact ranks of held-out items among the whole catalogue, spread over the processes."""

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.data.batch import QueryBatch
from trainer.runtime.gather import gather

# B queries on this rank, Q queries of all ranks, M items on this rank, D embedding dim


class CatalogRanker:
    """Scores queries against this rank's stretch of the catalogue and adds up the counts of all ranks.

    A target's rank is 1 + the number of items with at least its score, leaving out the items the user has already
    seen; the target itself is never left out. So ties count against the target.

    Args:
        item_MD: embeddings of this rank's items.
        first_row: catalogue row of the first of them; ranks hold contiguous stretches.
    """

    def __init__(self, item_MD: Tensor, first_row: int) -> None:
        self._item_MD, self._first_row = item_MD, first_row

    def ranks(self, query_BD: Tensor, batch: QueryBatch) -> tuple[Tensor, Tensor]:
        """Ranks the targets of all processes' queries, on every process.

        Args:
            query_BD: this process's queries.
            batch: they came from; every process must call with equally many rows.

        Returns:
            int64 [Q] ranks from 1, and int64 [Q] row numbers in the split (-1: a row that only filled a batch).
        """
        query_QD, target_Q, row_Q = gather(query_BD), gather(batch.target_row), gather(batch.row)
        score_QM = query_QD @ self._item_MD.T
        column_Q = target_Q - self._first_row
        query_here = torch.nonzero((column_Q >= 0) & (column_Q < len(self._item_MD)))[:, 0]
        column_here = column_Q[query_here]

        target_score_Q = score_QM.new_full((len(target_Q),), float("-inf"))
        target_score_Q[query_here] = score_QM[query_here, column_here]
        dist.all_reduce(target_score_Q, dist.ReduceOp.MAX)

        self._leave_out_seen(score_QM, batch)
        score_QM[query_here, column_here] = target_score_Q[query_here]
        count_Q = (score_QM >= target_score_Q[:, None]).sum(dim=1)
        dist.all_reduce(count_Q)
        return count_Q, row_Q

    def _leave_out_seen(self, score_QM: Tensor, batch: QueryBatch) -> None:
        lengths_Q, seen = gather(batch.seen_lengths), _gather_ragged(batch.seen_rows)
        query = torch.repeat_interleave(torch.arange(len(lengths_Q), device=seen.device), lengths_Q)
        column = seen - self._first_row
        here = (column >= 0) & (column < len(self._item_MD))
        score_QM[query[here], column[here]] = float("-inf")


def _gather_ragged(local: Tensor) -> Tensor:
    """Concatenates tensors of any length over ranks."""
    length = gather(torch.tensor([len(local)], device=local.device))
    longest = int(length.max())
    padded = local.new_zeros(longest)
    padded[: len(local)] = local
    everyone = gather(padded).view(len(length), longest)
    return torch.cat([row[:n] for row, n in zip(everyone, length.tolist(), strict=True)])
