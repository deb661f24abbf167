"""Which ids a step hides, so that the features beside them learn to stand alone."""

import hashlib

import numpy as np


def hidden_ids(seed: int, step: int, name: str, ids: np.ndarray, share: float) -> np.ndarray:
    """Whether each id is hidden: a function of (seed, step, name, id), so the same on every rank and in every row.

    Args:
        seed: of the run.
        step: global step.
        name: of the feature.
        ids: integer [any].
        share: of all ids that are hidden, in expectation.

    Returns:
        bool [any].
    """
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=8).digest(), "little")
    # SplitMix64, which spreads consecutive numbers evenly: Steele et al. 2014, doi 10.1145/2660193.2660195
    with np.errstate(over="ignore"):
        mixed = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) < np.uint64(int(share * (2**64 - 1)))
