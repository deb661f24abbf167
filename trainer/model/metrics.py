"""Ranking metrics of queries with one target or several, from the ranks at which these were found."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Q queries, T targets of all of them, each query's together, K cut-off


def recall_at_k(rank_T: Tensor, length_Q: Tensor, k: int) -> Tensor:
    """Share of a query's targets that are among the first k, as LightGCN's evaluation has it (He et al., SIGIR 2020).

    Others divide by min(k, targets), so that a perfect list always has 1; here a query with more than k targets
    cannot reach it. With one target it is the hit rate.

    Args:
        rank_T: int64 ranks from 1.
        length_Q: int64, how many of them each query has: one or more.
        k: Cut-off.

    Returns:
        float64 [Q].
    """
    return _sum((rank_T <= k).double(), length_Q) / length_Q


def hit_rate_at_k(rank_T: Tensor, length_Q: Tensor, k: int) -> Tensor:
    """1 where a target is among the first k, else 0. As recall_at_k."""
    return (_first(rank_T, length_Q) <= k).double()


def ndcg_at_k(rank_T: Tensor, length_Q: Tensor, k: int) -> Tensor:
    """Sum of 1 / log2(1 + rank) over targets among the first k, over what min(k, targets) first places would give.

    The binary-relevance case of Jarvelin and Kekalainen, 2002. As recall_at_k.
    """
    gain_K = 1 / torch.log2(torch.arange(2, k + 2, device=rank_T.device).double())
    found = rank_T <= k
    gain_T = torch.where(found, gain_K[rank_T.clamp(max=k) - 1], 0.0)
    return _sum(gain_T, length_Q) / gain_K.cumsum(0)[length_Q.clamp(max=k) - 1]


def mrr_at_k(rank_T: Tensor, length_Q: Tensor, k: int) -> Tensor:
    """1 / rank of the first target found where that is among the first k, else 0. As recall_at_k."""
    first_Q = _first(rank_T, length_Q)
    return (first_Q <= k) / first_Q.double()


def map_at_k(rank_T: Tensor, length_Q: Tensor, k: int) -> Tensor:
    """Average precision, whose mean over queries is MAP.

    Sum over targets among the first k of the share of targets in the list up to that one, over min(k, targets), so that
    a perfect list always has 1: McFee et al. 2012, "The Million Song Dataset Challenge". With one target it is
    mrr_at_k. As recall_at_k.
    """
    query_T = torch.repeat_interleave(torch.arange(len(length_Q), device=rank_T.device), length_Q)
    by_rank = torch.argsort(rank_T, stable=True)
    rank_T = rank_T[by_rank[torch.argsort(query_T[by_rank], stable=True)]]  # each query's ascending
    place_T = torch.arange(1, len(rank_T) + 1, device=rank_T.device) - (length_Q.cumsum(0) - length_Q)[query_T]
    precision_T = torch.where(rank_T <= k, place_T / rank_T.double(), 0.0)
    return _sum(precision_T, length_Q) / length_Q.clamp(max=k)


METRICS = {
    "recall": recall_at_k, "ndcg": ndcg_at_k, "mrr": mrr_at_k, "hit_rate": hit_rate_at_k, "map": map_at_k,
}  # fmt: skip


def ranking_values(rank_T: Tensor, length_Q: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """float64 [Q], of every query, by names such as `recall@10`."""
    return {f"{name}@{k}": metric(rank_T, length_Q, k) for name, metric in METRICS.items() for k in ks}


def ranking_metrics(rank_T: Tensor, length_Q: Tensor, ks: Sequence[int]) -> dict[str, float]:
    """Means over the queries of `ranking_values`."""
    return {name: value_Q.mean().item() for name, value_Q in ranking_values(rank_T, length_Q, ks).items()}


def sliced_metrics(rank_T: Tensor, query_T: Tensor, label_T: Tensor, ks: Sequence[int]) -> dict[int, dict[str, float]]:
    """Recall and NDCG by label: of the queries with a target of that label, as if it had no other targets.

    Args:
        rank_T: int64 ranks from 1, among all items.
        query_T: int64 ascending, the query of each target.
        label_T: integer.
        ks: cut-offs.

    Returns:
        For each label in ascending order `queries`, how many have such a target, and means over these by name.
    """
    order_T = torch.argsort(label_T, stable=True)
    labels, sizes = torch.unique_consecutive(label_T[order_T], return_counts=True)
    found: dict[int, dict[str, float]] = {}
    for label, of_label in zip(labels.tolist(), order_T.split(sizes.tolist()), strict=True):
        _, length_Q = torch.unique_consecutive(query_T[of_label], return_counts=True)
        found[label] = {"queries": len(length_Q)} | {
            f"{name}@{k}": METRICS[name](rank_T[of_label], length_Q, k).mean().item()
            for name in ("recall", "ndcg")
            for k in ks
        }
    return found


def _sum(value_T: Tensor, length_Q: Tensor) -> Tensor:
    return torch.segment_reduce(value_T, "sum", lengths=length_Q)


def _first(rank_T: Tensor, length_Q: Tensor) -> Tensor:
    # ranks are exact in float64, which segment_reduce wants
    return torch.segment_reduce(rank_T.double(), "min", lengths=length_Q).long()
