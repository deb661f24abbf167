import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from trainer.model.loss import in_batch_softmax


def test_three_by_three_by_hand() -> None:
    # scores are the first three rows of the candidates, since queries are unit vectors; temperature 1/2 doubles them:
    #   query 0: 2 0 2   positive 0: -log(e^2 / (e^2 + 1 + e^2))
    #   query 1: 0 2 0   positive 1: -log(e^2 / (1 + e^2 + 1))
    #   query 2: 0 0 4   positive 2: -log(e^4 / (1 + 1 + e^4))
    query = torch.eye(3)
    candidate = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 2]])
    e2, e4 = math.exp(2), math.exp(4)
    expected = -(math.log(e2 / (2 * e2 + 1)) + math.log(e2 / (e2 + 2)) + math.log(e4 / (e4 + 2))) / 3
    loss = in_batch_softmax(query, candidate, torch.arange(3), torch.tensor([7, 8, 9]), torch.zeros(3), 0.5, True)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_accidental_hits_by_hand() -> None:
    # candidates 0 and 2 are the same item: query 0 loses column 2, query 2 loses column 0, query 1 keeps all
    query = torch.eye(3)
    candidate = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 2]])
    e, e2 = math.e, math.exp(2)
    removed = -(math.log(e / (e + 1)) + math.log(e / (e + 2)) + math.log(e2 / (e2 + 1))) / 3
    kept = -(math.log(e / (2 * e + 1)) + math.log(e / (e + 2)) + math.log(e2 / (e2 + 2))) / 3
    rows = torch.tensor([7, 8, 7])
    for remove, expected in ((True, removed), (False, kept)):
        loss = in_batch_softmax(query, candidate, torch.arange(3), rows, torch.zeros(3), 1.0, remove)
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_log_q_by_hand() -> None:
    # both candidates score 0; the first came into the batch with probability 3/4, the second with 1/4, so corrected
    # they weigh 4/3 and 4: the loss of query 0 is -log((4/3) / (4/3 + 4)) = log 4, that of query 1 log(4/3)
    log_q = torch.tensor([0.75, 0.25]).log()
    loss = in_batch_softmax(
        torch.zeros(2, 3), torch.zeros(2, 3), torch.arange(2), torch.tensor([1, 2]), log_q, 1.0, True
    )
    assert loss.item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2, abs=1e-6)


@given(st.integers(1, 6), st.integers(0, 5), st.integers(1, 4), st.integers(0, 99))
def test_against_a_softmax_written_out(queries: int, more: int, items: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(queries, 3, generator=generator, dtype=torch.float64)
    candidate = torch.randn(queries + more, 3, generator=generator, dtype=torch.float64)
    positive = torch.randperm(queries + more, generator=generator)[:queries]
    rows = torch.randint(items, (queries + more,), generator=generator)
    log_q = -3 * torch.rand(queries + more, generator=generator, dtype=torch.float64)
    total = 0.0
    for b in range(queries):
        own = int(positive[b])
        columns = [n for n in range(len(candidate)) if n == own or rows[n] != rows[own]]
        scores = {n: float(query[b] @ candidate[n] / 0.3 - log_q[n]) for n in columns}
        total += -scores[own] + math.log(sum(math.exp(score) for score in scores.values()))
    loss = in_batch_softmax(query, candidate, positive, rows, log_q, 0.3, True)
    assert loss.item() == pytest.approx(total / queries, rel=1e-9)


def test_distinct_items_give_the_plain_cross_entropy() -> None:
    query, candidate = torch.randn(5, 4), torch.randn(9, 4)
    positive = torch.tensor([8, 1, 0, 5, 2])
    loss = in_batch_softmax(query, candidate, positive, torch.arange(9), torch.zeros(9), 0.1, True)
    assert torch.allclose(loss, F.cross_entropy(query @ candidate.T / 0.1, positive))
