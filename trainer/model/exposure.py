"""How recommendations spread over the catalogue, and how popular they are: what lists say without their targets."""

import torch
from torch import Tensor

# N items


def coverage(count_N: Tensor) -> float:
    """Share of the items that are in any list: Ge et al. 2010, "Beyond Accuracy", catalogue coverage.

    Args:
        count_N: integer, lists that each item is in.
    """
    return (count_N > 0).double().mean().item()


def gini(count_N: Tensor) -> float:
    """Gini index of how often items are in lists, as Shani and Gunawardana 2011 have it.

    0 where all are equally often, 1 where it is always the same one; so lists of several items cannot reach 1. As
    `coverage`.

    Returns:
        NaN where there is no list, or one item.
    """
    ascending_N = count_N.double().sort().values
    n = len(ascending_N)
    weight_N = 2 * torch.arange(1, n + 1, device=count_N.device).double() - n - 1
    spread = (weight_N * ascending_N).sum() / ascending_N.sum()
    return spread.item() / (n - 1) if n > 1 else float("nan")


def popularity_percentile(events_N: Tensor) -> Tensor:
    """Share of the other items that have fewer events, those with as many counted half.

    So 0 is the least popular item and 1 the most, ties share their average, and the mean of all items is 1/2.

    Args:
        events_N: integer, training events of each item.

    Returns:
        float64 [N]; 1/2 for a single item.
    """
    _, level_N, size = events_N.unique(return_inverse=True, return_counts=True)
    fewer, others = (size.cumsum(0) - size)[level_N], len(events_N) - 1
    return (fewer + (size[level_N] - 1) / 2) / others if others else torch.full((1,), 0.5, dtype=torch.float64)


def mean_percentile(count_N: Tensor, percentile_N: Tensor) -> float:
    """Mean over the places of all lists of the percentile of the item there.

    Args:
        count_N: as of `coverage`.
        percentile_N: from `popularity_percentile`.
    """
    return ((count_N * percentile_N).sum() / count_N.sum()).item()


def exposure_metrics(count_N: Tensor, percentile_N: Tensor) -> dict[str, float]:
    """All of them by name; arguments as of `mean_percentile`."""
    return {
        "coverage": coverage(count_N),
        "popularity_percentile": mean_percentile(count_N, percentile_N),
        "gini": gini(count_N),
    }
