import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))  # scripts that import one another by name

import ablation
import crosses
import experiments
from exported import HeldOutRows, Lists
from runs import table
from shoppers import alike, means_of_users, turns

from tests.commands import REPOSITORY


def test_only_both_features_together_tell_the_group(tmp_path: Path) -> None:
    crosses.write(tmp_path, users=2000, events_per_user=10)
    users, items, events = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("users", "items", "events"))
    segment = users["segment"].to_numpy()[events["user_id"].to_numpy()]
    part = events["part_of_day"].to_numpy()
    group = items["group"].to_numpy()[events["item_id"].to_numpy()]
    follows = (group == (segment + part) % crosses.KINDS).mean()
    assert follows == pytest.approx(crosses.best_recall(), abs=0.01)
    for known in (segment, part):
        counts = np.bincount(known * crosses.KINDS + group, minlength=crosses.KINDS**2)
        # chi-squared with 56 degrees of freedom: above 95 once in a thousand seeds
        expected = np.bincount(known).repeat(crosses.KINDS) / crosses.KINDS
        assert ((counts - expected) ** 2 / expected).sum() < 95


def test_turns_are_found_in_one_hour_of_one_user() -> None:
    events = [  # user, minute, kind
        (7, 5, 1), (7, 10, 2), (7, 20, 2), (7, 30, 2), (7, 40, 3),  # from the second to the last
        (8, 5, 1), (8, 10, 2), (8, 20, 2), (8, 30, 4), (8, 40, 3),  # not three of a kind
        (9, 5, 1), (9, 30, 2), (9, 40, 2), (9, 50, 2), (9, 61, 3),  # the next hour
        (10, 5, 2), (10, 10, 2), (10, 20, 2), (10, 30, 2), (10, 40, 3),  # no other kind before
    ]  # fmt: skip
    order = np.random.default_rng(0).permutation(len(events))
    user, minute, kind = np.array(events)[order].T
    before, after = turns(user, minute * 60, kind)
    assert order[before].tolist() == [1] and order[after].tolist() == [4]


def test_nearness_of_like_users() -> None:
    old_VD = means_of_users(np.array([[2.0, 0], [0, 5], [0, 1], [4, 0]]), np.array([1, 2, 2, 3]))
    np.testing.assert_allclose(old_VD, [[1, 0], [0, 1], [1, 0]])
    new_UD, same_UV = np.array([[3.0, 0], [3, 4]]), np.array([[True, False, True], [False, True, False]])
    same, others, share = alike(new_UD, old_VD, same_UV, k=2)
    assert same == pytest.approx((1 + 1 + 0.8) / 3)
    assert others == pytest.approx((0 + 0.6 + 0.6) / 3)
    assert share == pytest.approx((2 + 1) / 4)


def test_lists_leave_out_what_was_seen_and_ties_count_against_the_target() -> None:
    rows = HeldOutRows(pa.table({}), np.array([2, 3]), [np.array([0]), np.array([], np.int64)])
    lists = Lists(np.array([[1.0], [2.0]]), np.array([[9.0], [3], [3], [1], [5]]), rows)
    assert lists.ranks(np.array([0, 1])).tolist() == [3, 5]
    assert lists.ranks(np.array([1]), of_q=np.array([0])).tolist() == [3]
    first, second = lists.top(2, np.array([0, 1]), np.array([0, 1])).tolist()
    assert sorted(first) in ([1, 4], [2, 4]) and sorted(second) == [0, 4]


def test_experiments_are_those_that_come_with_a_file() -> None:
    assert {f"{name}.yaml" for name in experiments.EXPERIMENTS} <= {
        path.name for path in (REPOSITORY / "configs" / "experiment").iterdir()
    }


def test_differences_are_of_the_same_seed() -> None:
    def by_seed(*recalls: float) -> list[dict[str, float]]:
        return [{"recall@10": recall, "ndcg@10": recall / 2} for recall in recalls]

    rows = ablation.cells({ablation.BASE: by_seed(0.1, 0.3), "other": by_seed(0.2, 0.4)})
    assert rows[ablation.BASE] == ["0.2000 ±0.1414", "", "0.1000 ±0.0707", ""]
    assert rows["other"] == ["0.3000 ±0.1414", "+0.1000 ±0.0000", "0.1500 ±0.0707", "+0.0500 ±0.0000"]


def test_columns_are_as_wide_as_what_stands_in_them() -> None:
    rows = {"long name": ["1", "0.1000 ±0.0200"], "x": ["0.5000", ""]}
    lines = [
        "title",
        "            recall@10             ndcg",
        "long name           1   0.1000 ±0.0200",
        "x              0.5000",
    ]
    assert table("title", ("recall@10", "ndcg"), rows) == "\n".join(lines)
