import math

import pytest
import torch

from trainer.model.metrics import mrr_at_k, ndcg_at_k, ranking_metrics, recall_at_k

RANKS = torch.tensor([1, 2, 3, 10, 11])


def test_metrics_by_hand() -> None:
    assert recall_at_k(RANKS, 3).tolist() == [1, 1, 1, 0, 0]
    assert ndcg_at_k(RANKS, 3).tolist() == pytest.approx([1, 1 / math.log2(3), 0.5, 0, 0])
    assert mrr_at_k(RANKS, 10).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 10, 0])


def test_means_have_their_names() -> None:
    metrics = ranking_metrics(RANKS, [1, 10])
    assert list(metrics) == ["recall@1", "recall@10", "ndcg@1", "ndcg@10", "mrr@1", "mrr@10"]
    assert metrics["recall@1"] == 0.2 and metrics["recall@10"] == 0.8
    assert metrics["mrr@10"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 10) / 5)
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3) + 1 / 2 + 1 / math.log2(11)) / 5)
