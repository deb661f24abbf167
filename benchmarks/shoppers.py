"""Moments of the made-up shoppers (trainer/data/generated.py) that show what a query tower follows."""

import numpy as np

# Q test queries, U new users, V old users, D embedding dim

HOUR = 3600  # seconds
EVENTS_OF_ANOTHER_KIND = 3


def turns(user_Q: np.ndarray, time_Q: np.ndarray, kind_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a user turns to something else: three events of one kind, after one of another, and a fourth event.

    All four are in one hour, so that of what the query tower knows nothing but the history has changed between the
    first and the fourth.

    Args:
        user_Q: of each query.
        time_Q: int [Q], seconds.
        kind_Q: int [Q], of the query's target.

    Returns:
        The query of the first of the four events and that of the fourth, int [any] each.
    """
    order_Q = np.lexsort((time_Q, user_Q))
    user, hour, kind = user_Q[order_Q], time_Q[order_Q] // HOUR, kind_Q[order_Q]
    first = np.arange(1, max(1, len(order_Q) - EVENTS_OF_ANOTHER_KIND))
    last = first + EVENTS_OF_ANOTHER_KIND
    found = (user[first - 1] == user[last]) & (hour[first] == hour[last]) & (kind[first] != kind[first - 1])
    for later in range(1, EVENTS_OF_ANOTHER_KIND):
        found &= kind[first + later] == kind[first]
    return order_Q[first[found]], order_Q[last[found]]


def alike(new_UD: np.ndarray, old_VD: np.ndarray, same_UV: np.ndarray, k: int) -> tuple[float, float, float]:
    """How much nearer new users are to old ones of their own kind.

    Args:
        new_UD: one vector a new user.
        old_VD: one vector an old user.
        same_UV: bool, whether they are of one kind.
        k: nearest neighbours.

    Returns:
        Mean cosine to old users of the same kind, to the others, and the share of the k nearest that are of the same.
    """
    cosine_UV = _unit(new_UD) @ _unit(old_VD).T
    nearest_Uk = np.argpartition(-cosine_UV, k, axis=1)[:, :k]
    share = np.take_along_axis(same_UV, nearest_Uk, axis=1).mean()
    return float(cosine_UV[same_UV].mean()), float(cosine_UV[~same_UV].mean()), float(share)


def means_of_users(query_QD: np.ndarray, user_Q: np.ndarray) -> np.ndarray:
    """The mean direction of each user's queries, [V, D] in order of user."""
    _, number_Q, count_V = np.unique(user_Q, return_inverse=True, return_counts=True)
    sum_VD = np.zeros((len(count_V), query_QD.shape[1]), query_QD.dtype)
    np.add.at(sum_VD, number_Q, _unit(query_QD))
    return sum_VD / count_V[:, None]


def _unit(vectors_XD: np.ndarray) -> np.ndarray:
    return vectors_XD / np.linalg.norm(vectors_XD, axis=1, keepdims=True)
