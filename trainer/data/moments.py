"""Mean and standard deviation of a numeric feature, over batches that need not be in memory together."""

import numpy as np
from numpy.typing import NDArray


class Moments:
    """Running mean and variance, merged batch by batch (Chan's formula), so that nothing large is ever subtracted.

    The batches come in a fixed order, so the result does not depend on threads.
    """

    def __init__(self, log1p: bool) -> None:
        self.log1p = log1p
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # sum of squared deviations from the mean
        self._low, self._high = np.inf, -np.inf

    def update(self, values: NDArray[np.float32]) -> None:
        """Adds values; NaN is missing and left out."""
        present = values[~np.isnan(values)].astype(np.float64)
        if not present.size:
            return
        if self.log1p:
            present = np.log1p(present)
        self._low, self._high = min(self._low, present.min()), max(self._high, present.max())
        mean, count = float(present.mean()), self.count + present.size
        delta = mean - self.mean
        self._squares += float(((present - mean) ** 2).sum()) + delta**2 * self.count * present.size / count
        self.mean += delta * present.size / count
        self.count = count

    @property
    def std(self) -> float:
        """Standard deviation of the population; 1 where all values are the same, so that one can divide by it."""
        return float(np.sqrt(self._squares / self.count)) if self._low < self._high else 1.0
