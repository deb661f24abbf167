from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.prepared import SCHEMA
from tests.ranks import RankPool
from trainer.data.batch import QueryBatch
from trainer.data.catalog import Catalog
from trainer.data.row_groups import open_events
from trainer.data.schema import TARGETS
from trainer.data.shares import share_of_rank
from trainer.errors import UserError
from trainer.runtime import ranking
from trainer.runtime.evaluation import Evaluation
from trainer.runtime.fit import check_monitor
from trainer.runtime.processes import Processes
from trainer.runtime.scoring import DotProducts

ITEMS, PER_RANK = 29, 6
COLD = torch.arange(ITEMS) % 5 == 2
Scene = tuple[Tensor, Tensor, list[list[int]], list[list[int]]]


def scene(world_size: int, interests: int = 1) -> Scene:
    """Items with exact ties, integer scores, one to five targets, and seen lists that sometimes hold one."""
    generator = torch.Generator().manual_seed(world_size)
    items = torch.randint(-2, 3, (ITEMS, 3), generator=generator).float()
    queries = torch.randint(-2, 3, (PER_RANK * world_size, interests, 3), generator=generator).float()
    targets, seen = [], []
    for number in range(len(queries)):
        targets.append(torch.randperm(ITEMS, generator=generator)[: 1 + number % 5].tolist())
        seen.append(torch.randint(ITEMS, (3 * (number % 4),), generator=generator).tolist())
    seen[0] = [*targets[0], *seen[0]]
    targets[1], targets[2] = [2, 7], [0, 1]  # cold alone, warm alone
    return items, queries if interests > 1 else queries[:, 0], targets, seen


def flat(lists: list[list[int]]) -> Tensor:
    return torch.tensor([row for rows in lists for row in rows], dtype=torch.int64)


def evaluated_one_at_a_time(processes: Processes, *arguments: Any) -> tuple[dict[str, float], Any]:
    ranking.SCORES_AT_ONCE = ranking.COMPARED_AT_ONCE = 1
    return evaluated(processes, *arguments)


def evaluated(
    processes: Processes, is_cold: Tensor, items: Tensor, queries: Tensor, targets: list[list[int]],
    seen: list[list[int]],
) -> tuple[dict[str, float], Any]:  # fmt: skip
    rows = share_of_rank(ITEMS, processes.rank, processes.world_size)
    here = slice(PER_RANK * processes.rank, PER_RANK * (processes.rank + 1))
    row = torch.arange(len(queries))
    row[-1] = -1  # the last only fills its batch
    batch = QueryBatch(
        batch=None, row=row[here],
        target_rows=flat(targets[here]), target_lengths=torch.tensor([*map(len, targets[here])]),
        seen_rows=flat(seen[here]), seen_lengths=torch.tensor([*map(len, seen[here])]),
    )  # fmt: skip
    evaluation = Evaluation(lambda _: queries[here], DotProducts(items[rows.start : rows.stop]), rows.start, is_cold)
    evaluation.update(batch)
    return evaluation.metrics([1, 3, 10]), evaluation.sizes()


def lists(scene: Scene, candidates: Tensor) -> list[list[int]]:
    """Each query's targets as places in its list of candidates, by the best score; among equals the targets last."""
    found = []
    for query, targets, left_out in zip(scene[1], scene[2], scene[3], strict=True):
        scores = [max((item * one).sum().item() for one in query.reshape(-1, 3)) for item in scene[0]]
        listed = [item for item in range(ITEMS) if candidates[item] and (item in targets or item not in left_out)]
        listed.sort(key=lambda item: (-scores[item], item in targets))
        found.append([place for place, item in enumerate(listed, 1) if item in targets])
    return found[:-1]


@pytest.mark.parametrize(("world_size", "interests"), [(1, 1), (2, 1), (3, 1), (1, 3), (2, 3)])
def test_lists_by_brute_force_ties_against_the_targets(ranks: RankPool, world_size: int, interests: int) -> None:
    drawn = scene(world_size, interests)
    places = {"": lists(drawn, COLD | True), "cold/": lists(drawn, COLD), "warm/": lists(drawn, ~COLD)}
    sizes_of_lists = (ITEMS, int(COLD.sum()), int((~COLD).sum()))
    for function in (evaluated, evaluated_one_at_a_time):
        for metrics, sizes in ranks.run(world_size, function, COLD, *drawn):
            assert len(metrics) == 3 * 5 * 3
            for (prefix, found), items in zip(places.items(), sizes_of_lists, strict=True):
                asked = [its for its in found if its]
                assert sizes[prefix] == (len(asked), items)
                for k in (1, 3, 10):
                    share = sum(sum(place <= k for place in its) / len(its) for its in asked) / len(asked)
                    assert metrics[f"{prefix}recall@{k}"] == pytest.approx(share)
                    first = sum((its[0] <= k) / its[0] for its in asked) / len(asked)
                    assert metrics[f"{prefix}mrr@{k}"] == pytest.approx(first)
    assert len(lists(drawn, COLD | True)) > len([its for its in places["cold/"] if its])


def test_a_diverged_model_finds_nothing(ranks: RankPool) -> None:
    items, queries, targets, seen = scene(2)
    for metrics, _ in ranks.run(2, evaluated, COLD, items, queries * torch.nan, targets, seen):
        assert {value for name, value in metrics.items() if not name.endswith("@10")} == {0.0}


def test_without_cold_items_there_is_one_list(ranks: RankPool) -> None:
    (with_cold,), (without,) = (ranks.run(1, evaluated, cold, *scene(1)) for cold in (COLD, COLD & False))
    assert without[0] == {name: value for name, value in with_cold[0].items() if "/" not in name}


def test_a_monitor_of_cold_items_needs_some_among_the_targets(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, validation = Catalog(prepared, SCHEMA), open_events(prepared, SCHEMA, "validation")
    check_monitor("val/recall@10", items, validation)
    for kind in ("cold", "warm"):
        with pytest.raises(
            UserError, match=rf"run.monitor=val/{kind}/recall@10: expected validation with {kind} items"
        ):
            check_monitor(f"val/{kind}/recall@10", items, validation)
    target = validation.read(0)[TARGETS][0][0].as_py()
    monkeypatch.setattr(items, "counts_before", lambda split: np.arange(len(items)) != target)
    for kind in ("cold", "warm"):
        check_monitor(f"val/{kind}/recall@10", items, validation)
