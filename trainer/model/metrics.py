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


METRICS = {"recall": recall_at_k, "ndcg": ndcg_at_k, "mrr": mrr_at_k, "hit_rate": hit_rate_at_k}


def ranking_metrics(rank_T: Tensor, length_Q: Tensor, ks: Sequence[int]) -> dict[str, float]:
    """Means over the queries by name, such as `recall@10`."""
    return {f"{name}@{k}": metric(rank_T, length_Q, k).mean().item() for name, metric in METRICS.items() for k in ks}


def _sum(value_T: Tensor, length_Q: Tensor) -> Tensor:
    return torch.segment_reduce(value_T, "sum", lengths=length_Q)


def _first(rank_T: Tensor, length_Q: Tensor) -> Tensor:
    # ranks are exact in float64, which segment_reduce wants
    return torch.segment_reduce(rank_T.double(), "min", lengths=length_Q).long()
