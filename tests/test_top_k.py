from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ranks import RankPool
from trainer.data.batch import QueryBatch
from trainer.data.shares import share_of_rank
from trainer.runtime import top_k
from trainer.runtime.processes import Processes
from trainer.runtime.scoring import DotProducts
from trainer.runtime.top_k import CatalogTopK, TopLists, best_columns, seen_but_no_target

ITEMS, PER_RANK = 400, 5
Scene = tuple[Tensor, Tensor, list[list[int]]]


def scene(queries: int, interests: int = 1, items: int = ITEMS) -> Scene:
    """Integer scores, so that many items tie and any order of summing gives the same; lists of all lengths left out."""
    generator = torch.Generator().manual_seed(queries)
    item = torch.randint(-2, 3, (items, 3), generator=generator).float()
    query = torch.randint(-2, 3, (queries, interests, 3), generator=generator).float()
    left_out = [
        torch.randint(-1, items, (40 * (number % 3),), generator=generator).tolist() for number in range(queries)
    ]
    left_out[-1] = list(range(2, items))  # two are left
    return item, query if interests > 1 else query[:, 0], left_out


def listed(
    processes: Processes, item: Tensor, query: Tensor, left_out: list[list[int]], k: int, limits: tuple[int, int, int]
) -> TopLists:
    top_k.SCORES_AT_ONCE, top_k.ITEMS_AT_ONCE, top_k.GROUP = limits
    rows = share_of_rank(len(item), processes.rank, processes.world_size)
    per_rank = len(query) // processes.world_size
    own = slice(per_rank * processes.rank, per_rank * (processes.rank + 1))
    flat = torch.tensor([row for rows in left_out[own] for row in rows], dtype=torch.int64)
    lengths = torch.tensor([*map(len, left_out[own])])
    return CatalogTopK(DotProducts(item[rows.start : rows.stop]), rows.start, k).lists(query[own], flat, lengths)


def by_brute_force(item: Tensor, query: Tensor, left_out: list[list[int]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Every score of every query, sorted."""
    rows, scores = np.full((len(query), k), -1), np.full((len(query), k), -np.inf)
    for number, (one, out) in enumerate(zip(query, left_out, strict=True)):
        score = np.max(one.reshape(-1, 3).numpy() @ item.numpy().T, axis=0)
        found = [row for row in np.argsort(-score, kind="stable") if row not in out and not np.isnan(score[row])][:k]
        rows[number, : len(found)], scores[number, : len(found)] = found, score[found]
    return rows, scores


def assert_as_by_brute_force(ranks: RankPool, world_size: int, drawn: Scene, k: int, limits: Any) -> None:
    found = ranks.run(world_size, listed, *drawn, k, limits)
    rows, scores = by_brute_force(*drawn, k)
    np.testing.assert_array_equal(torch.cat([lists.row_BK for lists in found]), rows)
    np.testing.assert_array_equal(torch.cat([lists.score_BK for lists in found]), scores)


@pytest.mark.parametrize("limits", [(1 << 25, 1 << 18, 64), (1, 1 << 18, 2), (1 << 9, 90, 4)])
@pytest.mark.parametrize(("world_size", "interests"), [(1, 1), (2, 1), (3, 1), (1, 3), (2, 3)])
def test_lists_by_brute_force(ranks: RankPool, world_size: int, interests: int, limits: tuple[int, int, int]) -> None:
    """At once, a query at a time, and in blocks of 90 items, with few and with many groups."""
    for k in (1, 7, 30):
        assert_as_by_brute_force(ranks, world_size, scene(6 * PER_RANK, interests), k, limits)


@pytest.mark.parametrize("world_size", [1, 3])
def test_fewer_items_than_places_and_than_ranks(ranks: RankPool, world_size: int) -> None:
    for items in (2, 5):
        assert_as_by_brute_force(ranks, world_size, scene(6, items=items), 9, (1 << 25, 2, 64))


def test_what_is_not_a_number_is_in_no_list(ranks: RankPool) -> None:
    item, query, left_out = scene(6)
    item[::3] = torch.nan
    for limits in ((1 << 25, 1 << 18, 64), (1 << 25, 1 << 18, 2)):
        assert_as_by_brute_force(ranks, 2, (item, query, left_out), 10, limits)
        lists = ranks.run(1, listed, item, query * torch.nan, left_out, 10, limits)[0]
        assert lists.row_BK.eq(-1).all() and lists.score_BK.eq(-torch.inf).all()


@given(st.data())
@settings(max_examples=200)
def test_best_columns_are_the_largest_from_the_left(data: st.DataObject) -> None:
    """With groups and without; -inf among the scores, and what is not a number."""
    num_rows, num_columns, k = (data.draw(st.integers(1, most)) for most in (3, 60, 12))
    value = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0, np.inf, np.nan])
    row = st.lists(value, min_size=num_columns, max_size=num_columns)
    scores = np.array(data.draw(st.lists(row, min_size=num_rows, max_size=num_rows)))
    before, top_k.GROUP = top_k.GROUP, data.draw(st.sampled_from([1, 2, 5]))
    found = best_columns(torch.tensor(scores), k)
    top_k.GROUP = before
    scores[np.isnan(scores)] = -np.inf
    expected = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :k], axis=1)
    np.testing.assert_array_equal(found, expected)


@given(st.lists(st.tuples(st.lists(st.integers(-1, 9)), st.sets(st.integers(0, 9), min_size=1)), min_size=1))
def test_targets_are_never_left_out(queries: list[tuple[list[int], set[int]]]) -> None:
    lengths = [torch.tensor([len(rows[which]) for rows in queries]) for which in (0, 1)]
    seen, targets = (
        torch.tensor([row for rows in queries for row in rows[which]], dtype=torch.int64) for which in (0, 1)
    )
    batch = QueryBatch(None, torch.arange(len(queries)), targets, lengths[1], seen, lengths[0])
    row, length = seen_but_no_target(batch)
    kept = [[one for one in its_seen if one not in its_targets and one >= 0] for its_seen, its_targets in queries]
    assert [part.tolist() for part in row.split(length.tolist())] == kept
