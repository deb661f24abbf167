"""Exact top-k lists over the whole catalogue, spread over the processes."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trainer.data.batch import QueryBatch
from trainer.runtime.gather import gather, gather_of_any_length
from trainer.runtime.scoring import ItemScores

# B queries on this rank, Q queries of all ranks, C of them scored at a time, I interests of a query, M items on this
# rank, m of them scored at a time, X candidates, G groups of g of them, K items of a list, S items left out of lists, D
# embedding dim

SCORES_AT_ONCE = 1 << 25
"""Scores that a process holds in memory, of all interests: 128 MB in float32."""
ITEMS_AT_ONCE = 1 << 18
"""Items that are scored at a time at most, by as many queries as SCORES_AT_ONCE leaves room for."""
GROUP = 64
"""Neighbouring items of which the best is found first."""


@dataclass(frozen=True)
class TopLists:
    """The best items of each query, by falling score, equal ones by ascending catalogue row.

    Attributes:
        row_BK: int64, catalogue rows; -1 at the end of a list for which there are too few items with a score.
        score_BK: the items' scores; -inf likewise.
    """

    row_BK: Tensor
    score_BK: Tensor


class CatalogTopK:
    """Scores queries against this rank's stretch of the catalogue and merges the best of all ranks.

    An item whose score is not a number, or -inf, is in no list. Memory is bounded whatever the sizes of catalogue and
    batch: a rank holds SCORES_AT_ONCE scores, at most thrice as much to choose among them, and K candidates from each
    rank for the queries that these are of.

    Args:
        items: those of this rank.
        first_row: catalogue row of the first of them; ranks hold contiguous stretches, in their order.
        k: length of the lists, the same on every rank.
    """

    def __init__(self, items: ItemScores, first_row: int, k: int) -> None:
        self._items, self._first_row, self._k = items, first_row, k
        most_items = int(gather(torch.tensor([len(items)], device=items.empty(0).device)).max())
        self._most_at_once = max(1, min(ITEMS_AT_ONCE, most_items))

    @torch.no_grad()
    def lists(self, query_BD: Tensor, left_out_row: Tensor, left_out_lengths: Tensor) -> TopLists:
        """Lists of this process's queries; every process must call with equally many.

        Args:
            query_BD: queries as the items' scores take them, [B, D] or [B, I, D] of several interests.
            left_out_row: int64 [total], catalogue rows that are not to be in the lists, of all B queries end to end;
                rows that the catalogue lacks do no harm.
            left_out_lengths: int64 [B], how many of them each query has.
        """
        query_QID = gather(query_BD).reshape(-1, query_BD.shape[1:-1].numel(), query_BD.shape[-1])
        end_Q = gather(left_out_lengths).cumsum(0)
        row_S = gather_of_any_length(left_out_row)
        query_S = torch.searchsorted(end_Q, torch.arange(len(row_S), device=end_Q.device), right=True)
        begin_Q = [0, *end_Q.tolist()]
        at_once = max(1, SCORES_AT_ONCE // (query_QID.shape[1] * self._most_at_once))  # the same on every process
        merged = []
        for start in range(0, len(query_QID), at_once):
            query_CID = query_QID[start : start + at_once]
            of = slice(begin_Q[start], begin_Q[start + len(query_CID)])
            merged.append(self._merge(*self._best_here(query_CID, query_S[of] - start, row_S[of])))
        row_QK, score_QK = (torch.cat(parts) for parts in zip(*merged, strict=True))
        first = dist.get_rank() * len(query_BD)
        return TopLists(row_QK[first : first + len(query_BD)], score_QK[first : first + len(query_BD)])

    def _best_here(self, query_CID: Tensor, query_S: Tensor, row_S: Tensor) -> tuple[Tensor, Tensor]:
        """Catalogue rows, ascending, and scores [C, up to K] of the best items of this rank."""
        row_CX = row_S.new_empty((len(query_CID), 0))
        score_CX = self._items.empty(len(query_CID), 0)
        for begin in range(0, len(self._items), ITEMS_AT_ONCE):
            score_Cm = self._items.scores(query_CID, begin, min(begin + ITEMS_AT_ONCE, len(self._items)))
            column_S = row_S - (self._first_row + begin)
            here_S = (column_S >= 0) & (column_S < score_Cm.shape[1])
            score_Cm[query_S[here_S], column_S[here_S]] = float("-inf")
            column_CX = best_columns(score_Cm, self._k)
            row_CX = torch.cat([row_CX, column_CX + (self._first_row + begin)], dim=1)
            score_CX = torch.cat([score_CX, score_Cm.gather(1, column_CX)], dim=1)
            best_CX = best_columns(score_CX, self._k)
            row_CX, score_CX = row_CX.gather(1, best_CX), score_CX.gather(1, best_CX)
        return row_CX, score_CX

    def _merge(self, row_CX: Tensor, score_CX: Tensor) -> tuple[Tensor, Tensor]:
        """[C, K] of all ranks, by falling score."""
        lacking = self._k - row_CX.shape[1]
        row_CX = F.pad(row_CX, (0, lacking), value=-1)
        score_CX = F.pad(score_CX, (0, lacking), value=float("-inf"))
        # rank after rank, so that rows ascend here too
        row_CX, score_CX = (
            gather(part).view(-1, *part.shape).transpose(0, 1).flatten(1) for part in (row_CX, score_CX)
        )
        best_CK = best_columns(score_CX, self._k)
        score_CK, order_CK = score_CX.gather(1, best_CK).sort(dim=1, descending=True, stable=True)
        row_CK = row_CX.gather(1, best_CK.gather(1, order_CK))
        return torch.where(score_CK == float("-inf"), -1, row_CK), score_CK


def best_columns(score_CX: Tensor, k: int) -> Tensor:
    """The k largest scores of each row, the leftmost among equals.

    The best of a list of groups are found first: an item among the k best lies in one of the k groups with the largest
    maxima, of which the leftmost come first among equals too. Scores that are not a number become -inf.

    Returns:
        int64 [C, min(k, X)] columns, ascending.
    """
    num_rows, num_columns = score_CX.shape
    if num_columns <= k:
        _nan_to_least(score_CX, score_CX)
        return torch.arange(num_columns, device=score_CX.device).expand(num_rows, -1)
    in_groups = num_columns // GROUP * GROUP
    if in_groups <= 2 * k * GROUP:
        _nan_to_least(score_CX, score_CX)
        return _largest(score_CX, k)
    score_CGg = score_CX[:, :in_groups].unflatten(1, (-1, GROUP))
    best_CG = score_CGg.amax(dim=2)
    if _nan_to_least(score_CX, best_CG, score_CX[:, in_groups:]):
        best_CG = score_CGg.amax(dim=2)
    group_CK = _largest(best_CG, k)
    column_CX = (GROUP * group_CK[:, :, None] + torch.arange(GROUP, device=group_CK.device)).flatten(1)
    rest = torch.arange(in_groups, num_columns, device=group_CK.device).expand(num_rows, -1)
    column_CX = torch.cat([column_CX, rest], dim=1)
    return column_CX.gather(1, _largest(score_CX.gather(1, column_CX), k))


def _largest(score_CX: Tensor, k: int) -> Tensor:
    """`best_columns` of more than k numbers, without groups."""
    threshold_C1 = score_CX.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    above_CX, equal_CX = score_CX > threshold_C1, score_CX == threshold_C1
    wanted_C1 = k - above_CX.sum(dim=1, keepdim=True)
    chosen_CX = above_CX | (equal_CX & (equal_CX.cumsum(dim=1, dtype=torch.int32) <= wanted_C1))
    return chosen_CX.nonzero()[:, 1].view(len(score_CX), k)


def _nan_to_least(score_CX: Tensor, *told_by: Tensor) -> bool:
    """Makes -inf of scores that are not a number, where such are among what they are told by."""
    found = any(bool(part.isnan().any()) for part in told_by)
    if found:
        score_CX.nan_to_num_(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    return found


def seen_but_no_target(batch: QueryBatch) -> tuple[Tensor, Tensor]:
    """What a held-out query's list leaves out: catalogue rows of all B queries end to end, and their lengths [B]."""
    query_S, query_T = (
        torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        for lengths in (batch.seen_lengths, batch.target_lengths)
    )
    more_than_all = 1 + max((int(rows.max()) for rows in (batch.seen_rows, batch.target_rows) if len(rows)), default=0)
    left_out_S = ~torch.isin(query_S * more_than_all + batch.seen_rows, query_T * more_than_all + batch.target_rows)
    left_out_S &= batch.seen_rows >= 0
    lengths_B = torch.bincount(query_S[left_out_S], minlength=len(batch.seen_lengths))
    return batch.seen_rows[left_out_S], lengths_B
