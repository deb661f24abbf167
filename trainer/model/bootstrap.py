"""How far a metric might be off, had other users been asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Q queries, U users, R resamples, V values of a query

USERS_AT_ONCE = 4096
LEVEL = 0.95


@dataclass(frozen=True)
class QueryValues:
    """What metrics are the means of.

    Attributes:
        query_Q: int64, the queries, by their row in the split.
        values: float64 [Q] by name.
    """

    query_Q: np.ndarray
    values: Mapping[str, np.ndarray]


def bootstrap_intervals(
    found: Sequence[QueryValues], user_of_query: np.ndarray, resamples: int, seed: int = 0
) -> list[dict[str, tuple[float, float]]]:
    """95 % percentile intervals (Efron and Tibshirani 1993, chapter 13) of means over queries.

    Users are resampled, with all queries of theirs, since these are not independent. Each user counts as often as a
    Poisson variable of mean 1 says, in place of drawing with replacement (Chamandy et al. 2012, "Estimating
    uncertainty for massive data streams"), and for all metrics alike.

    Args:
        found: sets of queries, which may overlap.
        user_of_query: int64 from 0, the user of each query of the split.
        resamples: R.
        seed: of the draws.

    Returns:
        Of each set, (low, high) by name.
    """
    users = int(user_of_query.max()) + 1
    sums_VU = [_by_user(of, user_of_query[of.query_Q], users) for of in found]
    sums_VR = [np.zeros((len(of_U), resamples)) for of_U in sums_VU]
    rng = np.random.default_rng(seed)
    for start in range(0, users, USERS_AT_ONCE):
        here = slice(start, min(start + USERS_AT_ONCE, users))
        times_UR = rng.poisson(1.0, (here.stop - here.start, resamples)).astype(np.float64)
        for of_R, of_U in zip(sums_VR, sums_VU, strict=True):
            of_R += of_U[:, here] @ times_UR
    return [_intervals(of, of_R) for of, of_R in zip(found, sums_VR, strict=True)]


def _by_user(of: QueryValues, user_Q: np.ndarray, users: int) -> np.ndarray:
    """[1 + V, U]: each user's number of queries, and the sums of their values."""
    sums = [np.bincount(user_Q, value_Q, minlength=users) for value_Q in of.values.values()]
    return np.stack([np.bincount(user_Q, minlength=users).astype(np.float64), *sums])


def _intervals(of: QueryValues, sums_VR: np.ndarray) -> dict[str, tuple[float, float]]:
    any_R = sums_VR[0] > 0  # where queries are few, a resample may hold none
    bounds = np.quantile(sums_VR[1:, any_R] / sums_VR[0, any_R], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return {name: (low, high) for name, (low, high) in zip(of.values, bounds.T.tolist(), strict=True)}
