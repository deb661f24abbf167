"""Exact ranks of held-out items among the whole catalogue, spread over the processes."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.data.batch import QueryBatch
from trainer.runtime.gather import gather, gather_of_any_length
from trainer.runtime.scoring import ItemScores

# B queries on this rank, Q queries of all ranks, C scored and c of them compared at a time, T targets of these, K
# interests of a query, M items on this rank, N items of all ranks, D embedding dim

SCORES_AT_ONCE = 1 << 25
"""Scores that a process holds in memory, of all interests: 128 MB in float32."""
COMPARED_AT_ONCE = 1 << 19
"""Scores that are compared with their targets' at a time: few enough for a core's cache."""


@dataclass(frozen=True)
class TargetRanks:
    """Where targets stand in their queries' lists, those of a query together.

    Attributes:
        query_T: int64, row number of the query in the split; -1 for one that only filled a batch.
        rank_T: int64 from 1, among all items.
        is_cold_T: bool, whether the target is a cold item.
        own_rank_T: int64 from 1, among cold items for a cold target, among warm items for a warm one.
    """

    query_T: Tensor
    rank_T: Tensor
    is_cold_T: Tensor
    own_rank_T: Tensor


class CatalogRanker:
    """Scores queries against this rank's stretch of the catalogue and adds up the counts of all ranks.

    A query's list holds all items but those the user has already seen; its targets are never left out. Ties count
    against the targets: they stand behind all other items of the same score, in the order in which they are given. So
    the rank of a single target is 1 + the number of other items that do not score below it. A score that is not a
    number comes after all items.

    Args:
        items: those of this rank.
        first_row: catalogue row of the first of them; ranks hold contiguous stretches.
        is_cold_N: bool, which items of the whole catalogue are cold.
    """

    def __init__(self, items: ItemScores, first_row: int, is_cold_N: Tensor) -> None:
        is_cold_M = is_cold_N[first_row : first_row + len(items)]
        order_M = torch.argsort(is_cold_M.int(), stable=True)  # warm before cold, so that each is one stretch
        self._items, self._first_row, self._is_cold_N = items.permuted(order_M), first_row, is_cold_N
        self._column_M = torch.argsort(order_M)
        self._num_warm = int((~is_cold_M).sum())
        self._most_items = int(gather(torch.tensor([len(items)], device=order_M.device)).max())
        # Held for good, since fresh memory costs more than what is done with it.
        self._below_cM = items.empty(max(1, COMPARED_AT_ONCE // max(1, len(items))), len(items))

    def ranks(self, query_BD: Tensor, batch: QueryBatch) -> TargetRanks:
        """Ranks the targets of all processes' queries, on every process.

        Args:
            query_BD: this process's queries as the items' scores take them, or [B, K, D] of several interests.
            batch: they came from; every process must call with equally many rows.
        """
        length_Q = gather(batch.target_lengths)
        query_QKD = gather(query_BD).reshape(-1, query_BD.shape[1:-1].numel(), query_BD.shape[-1])
        target_Q = gather_of_any_length(batch.target_rows).split(length_Q.tolist())
        seen_Q = gather_of_any_length(batch.seen_rows).split(gather(batch.seen_lengths).tolist())
        # Queries with the most targets first, so that those which have a further one are always the first rows.
        order_Q = torch.argsort(length_Q, descending=True, stable=True)
        target_Q, seen_Q = ([rows_Q[query] for query in order_Q.tolist()] for rows_Q in (target_Q, seen_Q))
        at_once = max(1, SCORES_AT_ONCE // (query_QKD.shape[1] * self._most_items))  # the same on every process
        ranked = [
            self._rank(query_CKD, target_Q[start : start + at_once], seen_Q[start : start + at_once])
            for start, query_CKD in zip(
                range(0, len(query_QKD), at_once), query_QKD[order_Q].split(at_once), strict=True
            )
        ]
        rank_T, own_rank_T = torch.cat(ranked, dim=1)
        query_T = torch.repeat_interleave(gather(batch.row)[order_Q], length_Q[order_Q])
        return TargetRanks(query_T, rank_T, self._is_cold_N[torch.cat(target_Q)], own_rank_T)

    def _rank(self, query_CKD: Tensor, target_C: list[Tensor], seen_C: list[Tensor]) -> Tensor:
        """int64 [2, T]: ranks among all items, and among the target's own kind."""
        query_T, target_T = _pairs(target_C)
        score_CM = self._items.scores(query_CKD, 0, len(self._items))
        here_T, column = self._here(target_T)
        # from the same product as the scores it is compared with, whose rounding then is the same for equal items
        threshold_T = score_CM.new_full((len(target_T),), float("-inf"))
        threshold_T[here_T] = score_CM[query_T[here_T], column]
        dist.all_reduce(threshold_T, dist.ReduceOp.MAX)

        score_CM[query_T[here_T], column] = float("-inf")
        seen_query, seen_row = _pairs(seen_C)
        here_S, column = self._here(seen_row)
        score_CM[seen_query[here_S], column] = float("-inf")
        above_2T = self._count_others(score_CM, [len(rows) for rows in target_C], threshold_T)
        dist.all_reduce(above_2T)

        is_cold_T = self._is_cold_N[target_T]
        above_own_T = torch.where(is_cold_T, above_2T[1], above_2T[0])
        return torch.stack([
            above_2T.sum(dim=0) + _places(query_T, threshold_T),
            above_own_T + _places(2 * query_T + is_cold_T, threshold_T),
        ])  # fmt: skip

    def _count_others(self, score_CM: Tensor, length_C: list[int], threshold_T: Tensor) -> Tensor:
        """int64 [2, T]: warm and cold items here that do not score below a target; what is left out is at -inf."""
        count_2T = threshold_T.new_empty((2, len(threshold_T)), dtype=torch.int64)
        begin_C = torch.tensor([0, *length_C[:-1]], device=threshold_T.device).cumsum(0)
        at_once = len(self._below_cM)
        for first in range(0, len(score_CM), at_once):
            score_cM, length_c = score_CM[first : first + at_once], length_C[first : first + at_once]
            having = len(length_c)
            for number in range(length_c[0]):
                while length_c[having - 1] <= number:
                    having -= 1
                place_c = begin_C[first : first + having] + number
                # 1 where below, in the scores' type: counting booleans is ten times slower on a CPU
                below_cM = self._below_cM[:having]
                torch.lt(score_cM[:having], threshold_T[place_c, None], out=below_cM)
                for kind, below in enumerate((below_cM[:, : self._num_warm], below_cM[:, self._num_warm :])):
                    count_2T[kind, place_c] = below.shape[1] - _count(below)
        return count_2T

    def _here(self, row_T: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the catalogue rows are on this process, and those rows' columns in the scores."""
        place_T = row_T - self._first_row
        here_T = (place_T >= 0) & (place_T < len(self._items))
        return here_T, self._column_M[place_T[here_T]]


def _count(ones_cM: Tensor) -> Tensor:
    """int64 [c] sums of zeros and ones, in stretches within which float32 is exact."""
    return torch.stack([part.sum(dim=1).long() for part in ones_cM.split(1 << 24, dim=1)]).sum(dim=0)


def _places(list_T: Tensor, score_T: Tensor) -> Tensor:
    """int64 [T]: place from 1 of each target among those of the same list, by falling score, ties as they come."""
    by_score = torch.argsort(score_T, descending=True, stable=True)
    order_T = by_score[torch.argsort(list_T[by_score], stable=True)]
    _, lengths = torch.unique_consecutive(list_T[order_T], return_counts=True)
    begin_T = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    place_T = torch.empty_like(order_T)
    place_T[order_T] = torch.arange(1, len(order_T) + 1, device=order_T.device) - begin_T
    return place_T


def _pairs(rows_C: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(query, catalogue row) of everything in the queries' lists of rows."""
    lengths_C = torch.tensor([len(rows) for rows in rows_C], device=rows_C[0].device)
    return torch.repeat_interleave(torch.arange(len(rows_C), device=lengths_C.device), lengths_C), torch.cat(rows_C)
