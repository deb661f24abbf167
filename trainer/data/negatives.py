"""Uniform negatives: catalogue rows that a step takes besides its batch."""

import numpy as np


def uniform_rows(seed: int, step: int, num_items: int, how_many: int) -> np.ndarray:
    """Different catalogue rows, each as likely as any other: a function of (seed, step) alone.

    Takes memory and time in proportion to `how_many`, however large the catalogue is.

    Args:
        seed: of the run.
        step: global step.
        num_items: rows of the catalogue.
        how_many: rows to draw, num_items at most.

    Returns:
        int64 [how_many], ascending.
    """
    # with a spawn key, the numbers are not those that data/order.py draws from the same seed
    rng = np.random.default_rng(np.random.SeedSequence((seed, step), spawn_key=(1,)))
    return np.sort(rng.choice(num_items, how_many, replace=False, shuffle=False))
