"""Exact ranks of held-out items among the whole catalogue, spread over the processes."""

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.data.batch import QueryBatch
from trainer.runtime.gather import gather

# B queries on this rank, Q queries of all ranks, C of them scored at a time, M items on this rank, D embedding dim

SCORES_AT_ONCE = 1 << 26
"""Scores that a process holds in memory: 256 MB in float32."""


class CatalogRanker:
    """Scores queries against this rank's stretch of the catalogue and adds up the counts of all ranks.

    A target's rank is 1 + the number of items that do not score below it, leaving out the items the user has already
    seen; the target itself is never left out. So ties count against the target, and a score that is not a number
    comes last.

    Args:
        item_MD: embeddings of this rank's items.
        first_row: catalogue row of the first of them; ranks hold contiguous stretches.
    """

    def __init__(self, item_MD: Tensor, first_row: int) -> None:
        self._item_MD, self._first_row = item_MD, first_row
        most_items = gather(torch.tensor([len(item_MD)], device=item_MD.device)).max()
        self._queries_at_once = max(1, SCORES_AT_ONCE // int(most_items))  # the same on every process

    def ranks(self, query_BD: Tensor, batch: QueryBatch) -> tuple[Tensor, Tensor]:
        """Ranks the targets of all processes' queries, on every process.

        Args:
            query_BD: this process's queries.
            batch: they came from; every process must call with equally many rows.

        Returns:
            int64 [Q] ranks from 1, and int64 [Q] row numbers in the split (-1: a row that only filled a batch).
        """
        query_QD, target_Q, row_Q = gather(query_BD), gather(batch.target_row), gather(batch.row)
        seen_Q = _gather_ragged(batch.seen_rows).split(gather(batch.seen_lengths).tolist())
        at_once = self._queries_at_once
        rank_Q = [
            self._count(query_CD, target_C, seen_Q[start : start + len(target_C)])
            for start, query_CD, target_C in zip(
                range(0, len(target_Q), at_once), query_QD.split(at_once), target_Q.split(at_once), strict=True
            )
        ]
        return torch.cat(rank_Q), row_Q

    def _count(self, query_CD: Tensor, target_C: Tensor, seen_C: tuple[Tensor, ...]) -> Tensor:
        score_CM = query_CD @ self._item_MD.T
        query, column = self._here(torch.arange(len(target_C), device=target_C.device), target_C)
        # from the same product as the scores it is compared with, whose rounding then is the same for equal items
        target_score_C = score_CM.new_full((len(target_C),), float("-inf"))
        target_score_C[query] = score_CM[query, column]
        dist.all_reduce(target_score_C, dist.ReduceOp.MAX)

        lengths_C = torch.tensor([len(rows) for rows in seen_C], device=target_C.device)
        seen_query = torch.repeat_interleave(torch.arange(len(seen_C), device=target_C.device), lengths_C)
        score_CM[self._here(seen_query, torch.cat(seen_C))] = float("-inf")
        score_CM[query, column] = target_score_C[query]
        count_C = (~(score_CM < target_score_C[:, None])).sum(dim=1)
        dist.all_reduce(count_C)
        return count_C

    def _here(self, query: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the (query, catalogue row) pairs whose row is on this process, as positions in the scores."""
        column = row - self._first_row
        here = (column >= 0) & (column < len(self._item_MD))
        return query[here], column[here]


def _gather_ragged(local: Tensor) -> Tensor:
    """Concatenates tensors of any length over ranks."""
    length = gather(torch.tensor([len(local)], device=local.device))
    longest = int(length.max())
    padded = local.new_zeros(longest)
    padded[: len(local)] = local
    everyone = gather(padded).view(len(length), longest)
    return torch.cat([row[:n] for row, n in zip(everyone, length.tolist(), strict=True)])
