"""Ranking metrics of queries with one relevant item, from the rank at which it was found."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Q queries, K cut-off


def recall_at_k(rank_Q: Tensor, k: int) -> Tensor:
    """1 where the target is among the first k: with one target, the hit rate. int64 [Q] from 1 -> float64 [Q]."""
    return (rank_Q <= k).double()


def ndcg_at_k(rank_Q: Tensor, k: int) -> Tensor:
    """1 / log2(1 + rank) where the target is among the first k, else 0 (the ideal gain is 1). [Q] -> float64 [Q]."""
    return recall_at_k(rank_Q, k) / torch.log2(rank_Q.double() + 1)


def mrr_at_k(rank_Q: Tensor, k: int) -> Tensor:
    """1 / rank where the target is among the first k, else 0. [Q] -> float64 [Q]."""
    return recall_at_k(rank_Q, k) / rank_Q


METRICS = {"recall": recall_at_k, "ndcg": ndcg_at_k, "mrr": mrr_at_k}


def ranking_metrics(rank_Q: Tensor, ks: Sequence[int]) -> dict[str, float]:
    """Means over the queries by name, such as `recall@10`."""
    return {f"{name}@{k}": metric(rank_Q, k).mean().item() for name, metric in METRICS.items() for k in ks}
