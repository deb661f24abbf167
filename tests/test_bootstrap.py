import numpy as np
import pytest

from trainer.model import bootstrap
from trainer.model.bootstrap import QueryValues, bootstrap_intervals

RESAMPLES = 400


def some(queries: int = 60) -> tuple[np.ndarray, list[QueryValues]]:
    """The users of queries, and two sets: all of them, and every other one."""
    rng = np.random.default_rng(1)
    users = rng.permutation(np.arange(queries) % 17)
    every, half = np.arange(queries), np.arange(0, queries, 2)
    return users, [
        QueryValues(every, {"recall@1": rng.random(queries), "ndcg@1": rng.random(queries)}),
        QueryValues(half, {"cold/recall@1": rng.random(len(half))}),
    ]


@pytest.mark.parametrize("at_once", [4096, 5])
def test_intervals_by_counting_users_one_at_a_time(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(bootstrap, "USERS_AT_ONCE", at_once)
    users, sets = some()
    found = bootstrap_intervals(sets, users, RESAMPLES, seed=3)
    times = np.random.default_rng(3).poisson(1.0, (17, RESAMPLES))
    for of, intervals in zip(sets, found, strict=True):
        assert list(intervals) == list(of.values)
        for name, values in of.values.items():
            means = []
            for resample in range(RESAMPLES):
                drawn = [
                    (times[users[query], resample], value) for query, value in zip(of.query_Q, values, strict=True)
                ]
                means.append(sum(count * value for count, value in drawn) / sum(count for count, _ in drawn))
            assert intervals[name] == pytest.approx(np.percentile(means, [2.5, 97.5]))
    assert found != bootstrap_intervals(sets, users, RESAMPLES, seed=4)


def test_the_interval_of_a_share_is_that_of_the_binomial() -> None:
    queries, share = 2000, 0.3
    hits = QueryValues(np.arange(queries), {"hit": (np.arange(queries) < share * queries).astype(float)})
    ((low, high),) = bootstrap_intervals([hits], np.arange(queries), 4000)[0].values()
    half = 1.96 * np.sqrt(share * (1 - share) / queries)
    assert (low, high) == pytest.approx((share - half, share + half), abs=0.1 * half)


def test_queries_of_one_user_count_as_one_that_is_asked_often() -> None:
    """Ten times the same query says no more than once."""
    values = np.random.default_rng(0).random(50)
    once = bootstrap_intervals([QueryValues(np.arange(50), {"recall": values})], np.arange(50), RESAMPLES)
    often = QueryValues(np.arange(500), {"recall": np.repeat(values, 10)})
    assert bootstrap_intervals([often], np.repeat(np.arange(50), 10), RESAMPLES)[0]["recall"] == pytest.approx(
        once[0]["recall"]
    )
    ((low, high),) = bootstrap_intervals([often], np.arange(500), RESAMPLES)[0].values()
    assert high - low < 0.5 * (once[0]["recall"][1] - once[0]["recall"][0])


def test_a_single_query_varies_not() -> None:
    """It is in two of three resamples, and the others say nothing."""
    of = QueryValues(np.array([3]), {"recall": np.array([0.25])})
    assert bootstrap_intervals([of], np.arange(5), RESAMPLES) == [{"recall": (0.25, 0.25)}]
