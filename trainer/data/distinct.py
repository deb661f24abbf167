"""The distinct items of a batch: what its positives, its uniform draws and its histories name, each once."""

from dataclasses import dataclass

import numpy as np

# Q queries, H events of all histories, C candidates, U items


@dataclass(frozen=True)
class DistinctItems:
    """Items by number: the candidates first, in ascending order of their catalogue rows, then those of histories alone.

    Attributes:
        row: int64 [U], catalogue rows; -1 for unknown items of histories.
        positive: int64 [Q], number of each query's positive.
        history: int64 [H], number of each event's item.
        positive_count: float32 [C], queries whose positive it is.
        uniform_count: float32 [C], draws of it.
    """

    row: np.ndarray
    positive: np.ndarray
    history: np.ndarray
    positive_count: np.ndarray
    uniform_count: np.ndarray


def distinct_items(positive_row: np.ndarray, uniform_row: np.ndarray, history_row: np.ndarray) -> DistinctItems:
    """Numbers the items.

    Args:
        positive_row: integer [Q], catalogue row of each query's positive.
        uniform_row: integer [any], those drawn uniformly.
        history_row: integer [H], those of the histories that are to be looked at event by event, -1 for unknown ones.
    """
    candidate, number = np.unique(np.concatenate([positive_row, uniform_row]).astype(np.int64), return_inverse=True)
    positive, uniform = np.split(number, [len(positive_row)])
    others, history = np.unique(history_row.astype(np.int64), return_inverse=True)
    place = np.minimum(np.searchsorted(candidate, others), max(len(candidate) - 1, 0))
    is_candidate = candidate[place] == others if len(candidate) else np.zeros(len(others), bool)
    number_of_other = np.where(is_candidate, place, len(candidate) + np.cumsum(~is_candidate) - 1)
    return DistinctItems(
        row=np.concatenate([candidate, others[~is_candidate]]),
        positive=positive,
        history=number_of_other[history],
        positive_count=np.bincount(positive, minlength=len(candidate)).astype(np.float32),
        uniform_count=np.bincount(uniform, minlength=len(candidate)).astype(np.float32),
    )
