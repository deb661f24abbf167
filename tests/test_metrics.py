import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.model.metrics import hit_rate_at_k, map_at_k, mrr_at_k, ndcg_at_k, ranking_metrics, recall_at_k

RANKS, ONE_EACH = torch.tensor([1, 2, 3, 10, 11]), torch.ones(5, dtype=torch.int64)


def test_one_target_by_hand() -> None:
    assert recall_at_k(RANKS, ONE_EACH, 3).tolist() == hit_rate_at_k(RANKS, ONE_EACH, 3).tolist() == [1, 1, 1, 0, 0]
    assert ndcg_at_k(RANKS, ONE_EACH, 3).tolist() == pytest.approx([1, 1 / math.log2(3), 0.5, 0, 0])
    for metric in (mrr_at_k, map_at_k):
        assert metric(RANKS, ONE_EACH, 10).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 10, 0])


def test_several_targets_by_hand() -> None:
    ranks, lengths = torch.tensor([4, 2, 9, 3, 1, 2, 5]), torch.tensor([3, 1, 3])
    assert recall_at_k(ranks, lengths, 2).tolist() == pytest.approx([1 / 3, 0, 2 / 3])  # of three targets, not of two
    assert hit_rate_at_k(ranks, lengths, 2).tolist() == [1, 0, 1]
    assert mrr_at_k(ranks, lengths, 2).tolist() == [1 / 2, 0, 1]
    # of the first, precision is 1/2 at rank 2 and 2/4 at rank 4; three targets want three places, or two of two
    assert map_at_k(ranks, lengths, 4).tolist() == pytest.approx([(1 / 2 + 2 / 4) / 3, 1 / 3, 2 / 3])
    assert map_at_k(ranks, lengths, 2).tolist() == pytest.approx([1 / 2 / 2, 0, 1])
    second = 1 / math.log2(3)
    assert ndcg_at_k(ranks, lengths, 2).tolist() == pytest.approx([second / (1 + second), 0, 1])


@given(st.lists(st.sets(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=5), st.integers(1, 20))
def test_ndcg_is_the_gain_of_the_list_over_that_of_the_best_list(found: list[set[int]], k: int) -> None:
    ranks, lengths = torch.tensor([rank for ranks in found for rank in ranks]), torch.tensor([*map(len, found)])
    expected = []
    for places in found:
        relevant = [float(place in places) for place in range(1, k + 1)]
        best = [float(place <= len(places)) for place in range(1, k + 1)]
        gains = [sum(hit / math.log2(1 + place) for place, hit in enumerate(hits, 1)) for hits in (relevant, best)]
        expected.append(gains[0] / gains[1])
    assert ndcg_at_k(ranks, lengths, k).tolist() == pytest.approx(expected)


@given(st.lists(st.sets(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=5), st.integers(1, 20))
def test_map_is_the_mean_of_precision_where_a_target_stands(found: list[set[int]], k: int) -> None:
    ranks, lengths = torch.tensor([rank for ranks in found for rank in ranks]), torch.tensor([*map(len, found)])
    expected = []
    for places in found:
        relevant = [place in places for place in range(1, k + 1)]
        precision = [sum(relevant[:place]) / place for place in range(1, k + 1) if relevant[place - 1]]
        expected.append(sum(precision) / min(k, len(places)))
    assert map_at_k(ranks, lengths, k).tolist() == pytest.approx(expected)


def test_means_have_their_names() -> None:
    metrics = ranking_metrics(RANKS, ONE_EACH, [1, 10])
    assert list(metrics) == [f"{name}@{k}" for name in ("recall", "ndcg", "mrr", "hit_rate", "map") for k in (1, 10)]
    assert metrics["recall@1"] == 0.2 and metrics["recall@10"] == metrics["hit_rate@10"] == 0.8
    assert metrics["mrr@10"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 10) / 5)
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3) + 1 / 2 + 1 / math.log2(11)) / 5)
