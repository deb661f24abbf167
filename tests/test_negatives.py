import tracemalloc
from collections import Counter
from itertools import combinations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.negatives import uniform_rows
from trainer.model.frequencies import mixture_log_q


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 60), st.data())
def test_different_rows_of_the_catalogue(seed: int, step: int, num_items: int, data: st.DataObject) -> None:
    how_many = data.draw(st.integers(0, num_items))
    rows = uniform_rows(seed, step, num_items, how_many)
    assert rows.dtype == np.int64 and len(rows) == how_many
    assert (np.diff(rows) > 0).all() and np.isin(rows, np.arange(num_items)).all()
    assert np.array_equal(rows, uniform_rows(seed, step, num_items, how_many))


def test_every_choice_is_as_likely() -> None:
    draws = 6000
    counts = Counter(tuple(uniform_rows(3, step, 5, 2).tolist()) for step in range(draws))
    assert set(counts) == set(combinations(range(5), 2))
    # chi-squared with 9 degrees of freedom: above 28 once in a thousand seeds
    assert sum((count - draws / 10) ** 2 / (draws / 10) for count in counts.values()) < 28


def test_seeds_and_steps_draw_apart() -> None:
    draws = {tuple(uniform_rows(seed, step, 1000, 5).tolist()) for seed in range(10) for step in range(10)}
    assert len(draws) == 100


def test_memory_does_not_grow_with_the_catalogue() -> None:
    tracemalloc.start()
    uniform_rows(0, 0, 10**10, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_mixture_against_counting() -> None:
    steps, positives, uniform, share = 4000, 8, 3, np.array([0.6, 0.3, 0.1, 0.0, 0.0])
    rng, counts = np.random.default_rng(0), np.zeros(5)
    for step in range(steps):
        counts += rng.multinomial(positives, share)
        counts[uniform_rows(1, step, 5, uniform)] += 1
    expected = mixture_log_q(torch.from_numpy(share).log(), positives, uniform, 5).exp().numpy()
    np.testing.assert_allclose(counts / counts.sum(), expected, atol=4 * np.sqrt(0.25 / counts.sum()))
