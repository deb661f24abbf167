"""Lists of any lengths, end to end."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Lists end to end.

    Attributes:
        values: [total].
        lengths: integer [lists].
        weights: float [total], or None where all values of a list count alike.
    """

    values: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray | None = None

    @property
    def offsets(self) -> np.ndarray:
        """int64 [lists + 1]: where each begins."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    @property
    def owner(self) -> np.ndarray:
        """int64 [total]: the list that each value is of."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def take(self, lists: np.ndarray) -> "Ragged":
        """The chosen lists."""
        return gather_lists(self.values, self.offsets[:-1][lists], self.lengths[lists], self.weights)


def gather_lists(
    values: np.ndarray, begins: np.ndarray, lengths: np.ndarray, weights: np.ndarray | None = None
) -> Ragged:
    """Stretches of values, and of their weights, as lists."""
    ends = np.cumsum(lengths, dtype=np.int64)
    position = np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins - (ends - lengths), lengths)
    return Ragged(values[position], lengths, None if weights is None else weights[position])
