import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.model.loss import Candidates, Exclusions, Queries, Workspace, sampled_softmax

# Q queries, P positives, N columns, D embedding dim, R rows


@dataclass
class Case:
    """Everything that the loss is given."""

    queries: Queries
    candidates: Candidates
    excluded: Exclusions | None


def make(
    seed: int, Q: int = 6, N: int = 5, D: int = 3, P: int | None = None, scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Case:  # fmt: skip
    """A random case with every switch on, some weights and counts zero, and exclusions that name positives too.

    With P, that many positives are spread over the queries, of which some may have none or the same several times.
    """
    generator = torch.Generator().manual_seed(seed)

    def floats(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    def ints(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    pairs = Q if P is None else P
    weight_P = floats(pairs).abs() * (ints(4, pairs) > 0)
    row_Q = ints(Q // 2 + 1, Q).sort().values
    query_P = None if P is None else ints(Q, P).sort().values
    queries = Queries(scale * floats(Q, D), ints(N, pairs), 1.0 + ints(3, pairs).to(dtype), weight_P, query_P)
    candidates = Candidates(floats(N, D), ints(4, N).to(dtype), -3 * floats(N).abs())
    offset = F.pad(ints(N + 1, Q // 2 + 1).cumsum(0), (1, 0))  # queries of a row share a stretch, or begin one alike
    begin_Q, length_Q = offset[row_Q], offset.diff()[row_Q]
    seen_Q = (length_Q * torch.rand(Q, generator=generator)).round().long()
    excluded = Exclusions(ints(N, int(offset[-1])), begin_Q, begin_Q + seen_Q)
    return Case(queries, candidates, excluded)


def loss_of(
    case: Case, query_QD: Tensor, candidate_ND: Tensor, workspace: Workspace, drawn_alone: bool = False
) -> Tensor:
    queries = replace(case.queries, embedding_QD=query_QD)
    drawn_M = case.candidates.count_N.nonzero()[:, 0] if drawn_alone else None
    candidates = replace(case.candidates, embedding_ND=candidate_ND, drawn_M=drawn_M)
    return sampled_softmax(queries, candidates, workspace, case.excluded)


def written_out(case: Case, query_QD: Tensor, candidate_ND: Tensor) -> Tensor:
    """The same from its definition: every draw is a column of its own, and excluded columns are not there."""
    queries, candidates, total = case.queries, case.candidates, 0 * (query_QD.sum() + candidate_ND.sum())
    query_P = range(len(query_QD)) if queries.query_P is None else queries.query_P.tolist()
    for p, q in enumerate(query_P):
        theirs = [other for other, query in enumerate(query_P) if query == q]
        gone = {int(queries.positive_P[other]) for other in theirs}
        if case.excluded is not None:
            gone |= set(case.excluded.column_E[case.excluded.begin_Q[q] : case.excluded.end_Q[q]].tolist())
        columns = [int(queries.positive_P[p])] * int(queries.own_count_P[p])
        for column, count in enumerate(candidates.count_N.tolist()):
            columns += [column] * (0 if column in gone else int(count))
        logits = candidate_ND[columns] @ query_QD[q] - candidates.log_q_N[columns]
        total = total + queries.weight_P[p] * F.cross_entropy(logits[None], torch.tensor([0]))
    return total


def value_and_gradients(function: Any, case: Case, *more: Any) -> list[Tensor]:
    query = case.queries.embedding_QD.clone().requires_grad_()
    candidate = case.candidates.embedding_ND.clone().requires_grad_()
    value = function(case, query, candidate, *more)
    return [value.detach(), *torch.autograd.grad(value, (query, candidate))]


@given(
    st.integers(0, 9999), st.integers(1, 9), st.integers(1, 8), st.integers(1, 5), st.none() | st.integers(0, 15),
    st.integers(1, 50), st.booleans(),
)  # fmt: skip
def test_equals_the_loss_written_out(
    seed: int, Q: int, N: int, D: int, P: int | None, logits_at_once: int, drawn_alone: bool
) -> None:
    case = make(seed, Q, N, D, P)
    expected = value_and_gradients(written_out, case)
    found = value_and_gradients(loss_of, case, Workspace(logits_at_once), drawn_alone)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_rounded_products_give_nearly_the_same() -> None:
    case = make(0, 40, 30, 16, None)
    exact = value_and_gradients(loss_of, case, Workspace(300))
    rounded = value_and_gradients(loss_of, case, Workspace(300, torch.bfloat16))
    assert [value.dtype for value in rounded] == [torch.float32] * 3
    for ours, theirs in zip(rounded, exact, strict=True):
        assert 0 < (ours - theirs).norm() < 0.01 * theirs.norm()


def test_distinct_items_give_the_plain_cross_entropy() -> None:
    query, candidate = torch.randn(300, 16), torch.randn(500, 16)
    positive, ones = torch.randint(500, (300,)), torch.ones(300)
    case = Case(Queries(query, positive, ones, ones), Candidates(candidate, torch.ones(500), torch.zeros(500)), None)

    def plain(case: Case, query: Tensor, candidate: Tensor) -> Tensor:
        return F.cross_entropy(query @ candidate.T, positive, reduction="sum")

    expected = value_and_gradients(plain, case)
    for ours, theirs in zip(value_and_gradients(loss_of, case, Workspace(7 * 500)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positives", [None, 11])
def test_gradients_by_finite_differences(positives: int | None) -> None:
    case = make(3, P=positives, dtype=torch.float64)
    inputs = (case.queries.embedding_QD.requires_grad_(), case.candidates.embedding_ND.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda query, candidate: 0.7 * loss_of(case, query, candidate, Workspace(13)), inputs
    )


def by_hand(**switches: Any) -> float:
    """One query on four columns that all score 0, so that each weighs count / q; column 1 is the positive."""
    fields = {"count": [1.0, 2, 0, 3], "q": [0.5, 0.25, 0.125, 0.125], "own_count": 1.0, "weight": 1.0, **switches}
    queries = Queries(
        torch.zeros(1, 2), torch.tensor([1]), torch.tensor([fields["own_count"]]), torch.tensor([fields["weight"]])
    )
    candidates = Candidates(torch.zeros(4, 2), torch.tensor(fields["count"]), torch.tensor(fields["q"]).log())
    loss = sampled_softmax(queries, candidates, Workspace(), fields.get("excluded"))
    return math.exp(loss.item())  # Z / weight of the positive


def test_every_switch_by_hand() -> None:
    exclude = Exclusions(torch.tensor([3, 1]), torch.tensor([0]), torch.tensor([2]))
    # columns 0 to 3 weigh 1 / .5, 1 / .25 (once, being the positive), nothing, 3 / .125: 2 + 4 + 0 + 24
    assert by_hand() == pytest.approx(30 / 4)
    # accidental hits kept: the positive weighs 2 / .25 in the denominator
    assert by_hand(own_count=2.0) == pytest.approx(34 / 4)
    # no correction: 1 + 1 + 0 + 3
    assert by_hand(q=[1.0] * 4) == pytest.approx(5)
    # column 3 is excluded; the positive, excluded too, stays
    assert by_hand(excluded=exclude) == pytest.approx(6 / 4)
    # weights multiply the loss
    assert by_hand(weight=2.0) == pytest.approx((30 / 4) ** 2)
    assert by_hand(weight=0.0) == 1


def test_logits_of_any_size() -> None:
    case = make(5, scale=1e5)
    expected = value_and_gradients(written_out, case)
    for ours, theirs in zip(value_and_gradients(loss_of, case, Workspace()), expected, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(broken: float) -> None:
    for name in ("queries", "candidates"):
        case = make(5)
        case.queries.weight_P.fill_(1)
        getattr(case, name).__dict__[{"queries": "embedding_QD", "candidates": "embedding_ND"}[name]][2] = broken
        value, query_gradient, candidate_gradient = value_and_gradients(loss_of, case, Workspace())
        assert not torch.isfinite(value)
        assert not torch.isfinite(query_gradient).all() and not torch.isfinite(candidate_gradient).all()


def test_a_query_of_weight_0_contributes_nothing() -> None:
    case = make(5)
    case.queries.weight_P[1] = 0
    expected = value_and_gradients(loss_of, case, Workspace())
    case.queries.embedding_QD[1] = math.nan
    case.queries.own_count_P[1] = math.nan
    for broken, whole in zip(value_and_gradients(loss_of, case, Workspace()), expected, strict=True):
        assert torch.equal(broken, whole)


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest result, in elements of memory behind it."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


def test_logits_are_never_held_whole() -> None:
    case = make(1, Q=2000, N=3000, D=8)
    case.excluded = Exclusions(torch.randint(3000, (6000,)), 3 * torch.arange(2000), 3 * torch.arange(1, 2001))
    with LargestTensor() as seen:
        value_and_gradients(loss_of, case, Workspace(1 << 17))
    assert seen.elements == 1 << 17


def test_the_workspace_is_kept() -> None:
    workspace = Workspace(40)
    address = workspace.logits(torch.zeros(1), 5).data_ptr()
    results = [value_and_gradients(loss_of, make(1), workspace) for _ in range(2)]
    value_and_gradients(loss_of, make(2, N=8), workspace)
    assert workspace.logits(torch.zeros(1), 5).data_ptr() == address
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
