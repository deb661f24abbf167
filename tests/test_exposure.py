from operator import eq, lt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.ranks import RankPool
from tests.test_ranking import ITEMS, PER_RANK, Scene, flat, scene
from trainer.data.batch import QueryBatch
from trainer.data.shares import share_of_rank
from trainer.model.exposure import coverage, gini, mean_percentile, popularity_percentile
from trainer.runtime.exposure import Exposure
from trainer.runtime.processes import Processes
from trainer.runtime.scoring import DotProducts

KS = [1, 3, 10]


def test_spread_by_hand() -> None:
    assert coverage(torch.tensor([0, 3, 1, 0])) == 0.5
    assert gini(torch.tensor([2, 2, 2])) == 0.0
    assert gini(torch.tensor([0, 7, 0, 0])) == pytest.approx(1.0)
    assert gini(torch.tensor([3, 0, 1])) == pytest.approx((0 * 1 + 2 * 3) / 4 / 2)  # weights -2, 0, 2


def test_popularity_by_hand() -> None:
    percentile = popularity_percentile(torch.tensor([5, 0, 5, 9, 0]))
    assert percentile.tolist() == [2.5 / 4, 0.5 / 4, 2.5 / 4, 1, 0.5 / 4]
    assert mean_percentile(torch.tensor([0, 1, 0, 3, 0]), percentile) == pytest.approx((0.125 + 3) / 4)
    assert popularity_percentile(torch.tensor([4])).tolist() == [0.5]


@given(st.lists(st.integers(0, 9), min_size=2, max_size=20).filter(any))
def test_gini_is_half_the_mean_difference_over_the_mean(counts: list[int]) -> None:
    """Of all pairs of items that differ; their mean is that of the index that reaches 1."""
    pairs = [abs(one - other) for place, one in enumerate(counts) for other in counts[:place]]
    assert gini(torch.tensor(counts)) == pytest.approx(np.mean(pairs) / np.mean(counts) / 2)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=20))
def test_percentiles_are_shares_of_the_other_items(events: list[int]) -> None:
    fewer, as_many = ([sum(compare(other, own) for other in events) for own in events] for compare in (lt, eq))
    expected = [(less + (same - 1) / 2) / (len(events) - 1) for less, same in zip(fewer, as_many, strict=True)]
    found = popularity_percentile(torch.tensor(events))
    assert found.tolist() == pytest.approx(expected) and found.mean().item() == pytest.approx(0.5)


def exposed(
    processes: Processes, items: Tensor, queries: Tensor, targets: list[list[int]], seen: list[list[int]]
) -> dict[str, float]:
    rows = share_of_rank(ITEMS, processes.rank, processes.world_size)
    at_once = PER_RANK // 2
    exposure = Exposure(DotProducts(items[rows.start : rows.stop]), rows.start, torch.arange(ITEMS) / (ITEMS - 1.0), KS)
    row = torch.arange(len(queries))
    row[-1] = -1  # the last only fills its batch
    for start in range(PER_RANK * processes.rank, PER_RANK * (processes.rank + 1), at_once):
        here = slice(start, start + at_once)
        batch = QueryBatch(None, row[here], flat(targets[here]), torch.tensor([*map(len, targets[here])]),
                           flat(seen[here]), torch.tensor([*map(len, seen[here])]))  # fmt: skip
        exposure.update(queries[here], batch)
    return exposure.metrics()


def lists(drawn: Scene) -> list[list[int]]:
    """Every query's items by score, without those seen that are no targets."""
    found = []
    for query, targets, seen in zip(*drawn[1:], strict=True):
        scores = (drawn[0] @ query.reshape(-1, 3).T).max(dim=1).values.tolist()
        kept = [item for item in range(ITEMS) if item in targets or item not in seen]
        found.append(sorted(kept, key=lambda item: (-scores[item], item)))
    return found[:-1]


@pytest.mark.parametrize(("world_size", "interests"), [(1, 1), (2, 1), (3, 1), (2, 3)])
def test_exposure_by_brute_force(ranks: RankPool, world_size: int, interests: int) -> None:
    drawn = scene(world_size, interests)
    for metrics in ranks.run(world_size, exposed, *drawn):
        for k in KS:
            listed = [item for items in lists(drawn) for item in items[:k]]
            assert metrics[f"coverage@{k}"] == pytest.approx(len(set(listed)) / ITEMS)
            assert metrics[f"popularity_percentile@{k}"] == pytest.approx(np.mean(listed) / (ITEMS - 1))
            counts = torch.tensor([listed.count(item) for item in range(ITEMS)])
            assert metrics[f"gini@{k}"] == pytest.approx(gini(counts))
        assert len(metrics) == 3 * len(KS)
