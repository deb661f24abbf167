"""iALS as a baseline: `implicit` fits the items, the rest is here written out."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.prepared import ITEMS, SCHEMA
from tests.ranks import RankPool
from trainer.config import ModelConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.events import HeldOutReader
from trainer.data.interactions import training_interactions
from trainer.data.row_groups import open_events
from trainer.data.schema import ITEM_ROW, SEEN, TARGETS
from trainer.data.shares import share_of_rank, steps_of_all
from trainer.errors import UserError
from trainer.runtime import ials
from trainer.runtime.ials import check_ials, evaluate_ials
from trainer.runtime.processes import Processes

KS = [1, 5, 10]


@pytest.mark.parametrize("layout", ["event", "sequence"])
def test_every_user_and_item_of_training_once(prepared: Path, tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "data"
    (folder / "events").mkdir(parents=True)
    place = "events/train" if layout == "event" else "sequences"
    (folder / place).symlink_to(prepared / place)
    found = training_interactions(folder, SCHEMA)
    rows = pq.read_table(prepared / place).to_pylist()
    had: dict[int, set[int]] = {}
    for row in rows:
        had.setdefault(row["user_id"], set()).update([row[ITEM_ROW]] if layout == "event" else row[ITEM_ROW])
    assert found.shape == (len(had), ITEMS) and set(found.data) == {1.0}
    assert [set(found[number].indices) for number in range(len(had))] == [had[user] for user in sorted(had)]


def test_what_it_cannot_be_made_of_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = replace(SCHEMA, features=tuple(f for f in SCHEMA.features if f.kind not in ("id", "audience")))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    check_ials(SCHEMA)
    with pytest.raises(UserError, match="evaluate.baselines=ials: expected data with a user id"):
        check_ials(nobody)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"expected the package implicit.*pip install '.\[baselines\]'"):
        check_ials(SCHEMA)


def metrics(processes: Processes, folder: Path) -> dict[str, float]:
    catalog, files = Catalog(folder, SCHEMA), open_events(folder, SCHEMA, "test")
    evaluation = evaluate_ials(folder, SCHEMA, catalog, "test", processes, KS)
    assembler = BatchAssembler(SCHEMA, [SCHEMA.item_id], catalog, ModelConfig())
    share = share_of_rank(files.num_rows, processes.rank, processes.world_size)
    for batch in HeldOutReader(files, assembler, 8, share, steps_of_all(files.num_rows, 8, processes.world_size)):
        evaluation.update(batch)
    return evaluation.metrics(KS)


def test_users_are_what_their_items_make_of_them(prepared: Path, ranks: RankPool) -> None:
    """Least squares in numpy: an item seen weighs ALPHA and wants 1, any other weighs 1 and wants 0."""
    pytest.importorskip("implicit", reason="pip install '.[baselines]'")
    alone, *others = [ranks.run(world_size, metrics, prepared)[0] for world_size in (1, 2, 3)]
    for found in others:
        assert found == pytest.approx(alone)
    model = ials._model()
    model.fit(training_interactions(prepared, SCHEMA), show_progress=False)
    item_NF = model.item_factors.astype(np.float64)
    recall = {k: list[float]() for k in KS}
    for row in pq.read_table(prepared / "events" / "test").to_pylist():
        seen = np.isin(np.arange(ITEMS), row[SEEN])
        weight_N = np.where(seen, ials.ALPHA, 1.0)
        left = (item_NF.T * weight_N) @ item_NF + ials.REGULARIZATION * np.eye(ials.FACTORS)
        score_N = item_NF @ np.linalg.solve(left, item_NF.T @ (weight_N * seen))
        kept = [item for item in range(ITEMS) if item in row[TARGETS] or item not in row[SEEN]]
        # someone without items scores all alike, and ties count against the targets
        best = sorted(kept, key=lambda item: (-score_N[item], item in row[TARGETS]))
        for k in KS:
            recall[k].append(len(set(best[:k]) & set(row[TARGETS])) / len(row[TARGETS]))
    for k in KS:
        assert alone[f"recall@{k}"] == pytest.approx(np.mean(recall[k]), abs=1.01 / len(recall[k]))
    assert alone["recall@10"] > 0
