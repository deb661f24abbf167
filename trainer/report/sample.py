"""The same few of many in every report, whatever the number of ranks."""

import numpy as np

MOST_ITEMS = 5000
"""Of a picture."""


def fixed_sample(total: int, most: int) -> np.ndarray:
    """Ascending numbers below total, all of them or as many as `most`, drawn with a fixed seed: int64."""
    if total <= most:
        return np.arange(total)
    return np.sort(np.random.default_rng(0).choice(total, most, replace=False))
