import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.model.frequencies import StreamingFrequencies, mixture_log_q

ITEMS, BATCH = 100_000, 1024


def zipf(items: int) -> np.ndarray:
    share = 1 / np.arange(1, items + 1)
    return share / share.sum()


def batches(share: np.ndarray, steps: int, seed: int) -> Iterator[Tensor]:
    rng, edges = np.random.default_rng(seed), share.cumsum()
    for _ in range(steps):
        yield torch.from_numpy(np.searchsorted(edges / edges[-1], rng.random(BATCH)))


def follow(frequencies: StreamingFrequencies, share: np.ndarray, steps: int, start: int = 0) -> Tensor:
    """Updates with random batches and returns how often each item was seen."""
    seen = torch.zeros(len(share))
    for step, rows in enumerate(batches(share, steps, start), start):
        frequencies.update(rows, torch.ones(BATCH), step)
        seen.index_add_(0, rows, torch.ones(BATCH))
    return seen


def errors(frequencies: StreamingFrequencies, share: np.ndarray, seen: Tensor) -> tuple[float, float, float]:
    """Median and 95th percentile of the relative error of items seen 20 times, and mean |log q - truth| of a draw."""
    truth = torch.from_numpy(share)
    log_error = frequencies.log_q(torch.arange(len(share))) - truth.log()
    relative = log_error[seen >= 20].expm1().abs()
    weight = truth * (seen > 0)
    weighted = (weight * log_error.abs().where(seen > 0, 0)).sum() / weight.sum()
    return relative.median().item(), relative.quantile(0.95).item(), weighted.item()


# a frequency counted from the same draws is off by 0.10, 0.41, 0.12
@pytest.mark.parametrize(
    ("buckets", "arrays", "bounds"), [(ITEMS, 4, (0.12, 0.5, 0.17)), (ITEMS // 2, 2, (0.15, 0.8, 0.24))]
)
def test_error_on_a_zipf_stream(buckets: int, arrays: int, bounds: tuple[float, ...]) -> None:
    frequencies = StreamingFrequencies(ITEMS, buckets, arrays, 0.01)
    seen = follow(frequencies, zipf(ITEMS), 1000)
    found = errors(frequencies, zipf(ITEMS), seen)
    assert all(error < bound for error, bound in zip(found, bounds, strict=True)), found


def test_follows_a_drift() -> None:
    share, later = zipf(1000), zipf(1000)[::-1].copy()
    frequencies = StreamingFrequencies(1000, 1000, 1, 0.05)
    follow(frequencies, share, 300)
    seen = follow(frequencies, later, 1, start=300)
    assert errors(frequencies, later, seen)[2] > 1
    follow(frequencies, later, 600, start=301)
    assert errors(frequencies, later, torch.full((1000,), 20))[2] < 0.2


class Reference:
    """The estimate of one item from its history, written as the definition says."""

    def __init__(self, rate: float) -> None:
        self.rate, self.last, self.appearances, self.gap, self.count = rate, -1, 0, 0.0, 0.0

    def appear(self, step: int, count: int) -> None:
        self.appearances += 1
        rate = max(self.rate, 1 / self.appearances)
        self.gap += rate * (step - self.last - self.gap)
        self.count += rate * (count - self.count)
        self.last = step


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 7), min_size=6, max_size=6), min_size=1, max_size=20), st.integers(1, 4))
def test_equals_the_definition_in_any_order_and_split(steps: list[list[int]], ranks: int) -> None:
    rate = 0.3
    whole, split = (StreamingFrequencies(8, 8, 1, rate) for _ in range(2))
    references = [Reference(rate) for _ in range(8)]
    for step, rows in enumerate(steps):
        whole.update(torch.tensor(rows), torch.ones(6), step)
        # ranks merge their own rows, and know of others that were only drawn as negatives
        parts = [np.unique(rows[rank::ranks], return_counts=True) for rank in reversed(range(ranks))]
        row_N, count_N = np.concatenate([*(part[0] for part in parts), [7, 0]]), [part[1] for part in parts]
        split.update(torch.tensor(row_N), torch.tensor(np.concatenate([*count_N, [0, 0]])), step)
        for row in set(rows):
            references[row].appear(step, rows.count(row))
    for name, state in whole.state_dict().items():
        assert torch.equal(state, split.state_dict()[name]), name
    expected = [math.log(r.count / r.gap / 6) if r.appearances else -math.inf for r in references]
    assert whole.log_q(torch.arange(8)).tolist() == pytest.approx(expected, rel=1e-5)


def test_collisions_only_make_an_estimate_larger() -> None:
    rows = torch.arange(300)
    estimates = []
    for buckets, arrays in ((300, 1), (100, 4), (100, 1)):
        frequencies = StreamingFrequencies(300, buckets, arrays, 1.0)
        frequencies.update(rows, torch.ones(300), 0)
        estimates.append(frequencies.log_q(rows))
    exact, several, one = estimates
    assert torch.equal(exact, torch.full((300,), 1 / 300).log())
    assert (exact <= several).all() and (several <= one).all()
    assert several.exp().sum() < 0.75 * one.exp().sum()


def test_goes_on_from_a_state_dict() -> None:
    first, second, third = (StreamingFrequencies(50, 20, 2, 0.1) for _ in range(3))
    for step in range(6):
        rows = torch.arange(step, 40, step + 1)
        first.update(rows, torch.ones(len(rows)), step)
        if step == 3:
            second.load_state_dict(first.state_dict())
        if step > 3:
            second.update(rows, torch.ones(len(rows)), step)
    assert torch.equal(first.log_q(torch.arange(50)), second.log_q(torch.arange(50)))
    assert third.log_q(torch.arange(50)).tolist() == [-math.inf] * 50
    assert not list(first.parameters())


def test_mixture_by_hand() -> None:
    # 6 positives, 2 uniform draws out of 4 items: an item that is half of the positives comes 6 / 2 + 2 / 4 = 3.5 times
    # among 8, one that never is a positive 0.5 times
    found = mixture_log_q(torch.tensor([0.5, 0.0]).log(), 6, 2, 4)
    assert found.exp().tolist() == pytest.approx([3.5 / 8, 0.5 / 8])
    assert mixture_log_q(torch.tensor([0.5]).log(), 6, 0, 4).exp().tolist() == pytest.approx([0.5])


def two_stretches(buckets: int, catalogue: torch.Tensor | None, items: int) -> tuple[Tensor, Tensor]:
    """Log q of 90 items after 50 steps and 30 more: of one estimate, and of one that goes on from another's."""
    share, batch = zipf(90), torch.ones(BATCH)
    whole = StreamingFrequencies(90, buckets, 4, 0.1)
    first, second = StreamingFrequencies(90, buckets, 4, 0.1), StreamingFrequencies(items, buckets, 4, 0.1)
    place = torch.arange(90) if catalogue is None else catalogue
    for step, rows in enumerate(batches(share, 80, seed=3)):
        whole.update(rows, batch, step)
        if step < 50:
            first.update(rows, batch, step)
        elif step == 50:
            second.go_on_from(first, 50, catalogue)
        if step >= 50:
            second.update(place[rows], batch, step - 50)
    return whole.log_q(torch.arange(90)), second.log_q(place)


@pytest.mark.parametrize("buckets", [1000, 40])
def test_an_estimate_goes_on_in_another_run(buckets: int) -> None:
    whole, continued = two_stretches(buckets, None, 90)
    assert torch.equal(whole, continued)


@pytest.mark.parametrize(("buckets", "rows"), [(1000, torch.arange(90)), (1000, torch.randperm(200)[:90]),
                                              (40, torch.arange(90))])  # fmt: skip
def test_an_estimate_goes_on_over_a_grown_catalogue(buckets: int, rows: Tensor) -> None:
    """Where every item has its own bucket, or the rows are the same."""
    whole, continued = two_stretches(buckets, rows, 200)
    assert torch.equal(whole, continued)


def test_items_bring_their_share_into_buckets_of_another_kind() -> None:
    whole, continued = two_stretches(150, 200 - 1 - torch.arange(90), 200)  # own buckets, then 150 shared by 200
    frequent = whole > whole.median()
    assert (whole - continued)[frequent].abs().median() < 0.05


def test_a_second_start_counts_from_its_own_steps() -> None:
    """By formula: gaps 3, then 5 over the seam, then 4 over the next."""
    runs = [StreamingFrequencies(2, 2, 1, 0.01) for _ in range(3)]
    one = torch.tensor([1]), torch.ones(1)
    runs[0].update(*one, step=2)  # the first gap is counted from before step 0
    runs[1].go_on_from(runs[0], 5, None)
    assert runs[1].last_step.tolist() == [-6, -3]
    runs[1].update(*one, step=2)
    assert runs[1].mean_gap[1] == (3 + 5) / 2
    runs[2].go_on_from(runs[1], 4, None)
    assert runs[2].last_step.tolist() == [-10, -2]
    runs[2].update(*one, step=2)
    assert runs[2].mean_gap[1].item() == pytest.approx((3 + 5 + 4) / 3)


def test_new_items_count_from_the_new_run_and_gone_ones_are_forgotten() -> None:
    before, now = StreamingFrequencies(3, 3, 1, 0.01), StreamingFrequencies(3, 3, 1, 0.01)
    before.update(torch.tensor([0, 1, 2]), torch.tensor([1.0, 2.0, 3.0]), step=0)
    now.go_on_from(before, 1, torch.tensor([2, -1, 0]))
    assert now.last_step.tolist() == [-1, -1, -1]
    assert now.appearances.tolist() == [1, 0, 1]
    assert now.mean_count.tolist() == [3, 0, 1]
    assert now.log_q(torch.arange(3)).tolist() == pytest.approx([math.log(3 / 6), -math.inf, math.log(1 / 6)])
