from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ranks import RankPool
from trainer.data.batch import QueryBatch
from trainer.data.shares import share_of_rank
from trainer.runtime import ranking
from trainer.runtime.processes import Processes
from trainer.runtime.ranking import CatalogRanker

ITEMS, PER_RANK = 29, 4


def scene(world_size: int) -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
    """Items with exact ties, integer scores, and seen lists that sometimes hold the target."""
    generator = torch.Generator().manual_seed(world_size)
    items = torch.randint(-2, 3, (ITEMS, 3), generator=generator).float()
    queries = torch.randint(-2, 3, (PER_RANK * world_size, 3), generator=generator).float()
    targets = torch.randint(ITEMS, (len(queries),), generator=generator)
    seen = [torch.randint(ITEMS, (int(n),), generator=generator).tolist() for n in torch.randint(0, 9, (len(queries),))]
    seen[0] = [int(targets[0]), *seen[0]]
    return items, queries, targets, seen


def ranked_one_query_at_a_time(processes: Processes, *arguments: Any) -> tuple[Tensor, Tensor]:
    ranking.SCORES_AT_ONCE = 1
    return ranked(processes, *arguments)


def ranked(
    processes: Processes, items: Tensor, queries: Tensor, targets: Tensor, seen: list[list[int]]
) -> tuple[Tensor, Tensor]:
    rows = share_of_rank(ITEMS, processes.rank, processes.world_size)
    here = slice(PER_RANK * processes.rank, PER_RANK * (processes.rank + 1))
    row = torch.arange(len(queries))
    row[-1] = -1  # the last only fills its batch
    batch = QueryBatch(
        batch=None, row=row[here], target_row=targets[here],
        seen_rows=torch.tensor([item for items in seen[here] for item in items], dtype=torch.int64),
        seen_lengths=torch.tensor([len(items) for items in seen[here]]),
    )  # fmt: skip
    return CatalogRanker(items[rows.start : rows.stop], rows.start).ranks(queries[here], batch)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_by_brute_force_ties_against_the_target(ranks: RankPool, world_size: int) -> None:
    items, queries, targets, seen = scene(world_size)
    expected = []
    for query, target, left_out in zip(queries, targets.tolist(), seen, strict=True):
        scores = (items @ query).tolist()
        others = [item for item in range(ITEMS) if item != target and item not in left_out]
        expected.append(1 + sum(scores[item] >= scores[target] for item in others))
    for function in (ranked, ranked_one_query_at_a_time):
        for rank_Q, row_Q in ranks.run(world_size, function, items, queries, targets, seen):
            assert rank_Q.tolist() == expected
            assert row_Q.tolist() == [*range(len(queries) - 1), -1]


def test_a_diverged_model_ranks_last(ranks: RankPool) -> None:
    items, queries, targets, seen = scene(2)
    for rank_Q, _ in ranks.run(2, ranked, items, queries * torch.nan, targets, seen):
        assert rank_Q.tolist() == [ITEMS] * len(queries)
