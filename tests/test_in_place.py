"""A model whose tables stay in the checkpoint's files, against the sharded model that was saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.prepared import FEATURES, ITEMS, ROWS, SCHEMA
from tests.ranks import RankPool
from tests.training import config, features_of, trained, whole_tables, write_checkpoint
from trainer.config import HistoryConfig, ShardingConfig, TrainConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.events import HeldOutReader
from trainer.data.row_groups import open_events
from trainer.runtime import checkpoint
from trainer.runtime.in_place import load_in_place
from trainer.runtime.loading import SavedRun
from trainer.runtime.lockstep import in_lockstep
from trainer.runtime.processes import Processes
from trainer.runtime.saved_table import SavedTable


def settings(case: str) -> TrainConfig:
    chosen = config()
    chosen.model.query.features = None
    if case == "weighted lists":
        chosen.model.candidate.features = ["item_id", "words", "genres", "price"]
    if case == "audience":
        chosen.model.candidate.features = ["item_id", "audience", "text"]
    if case == "history event by event":
        chosen.model.history = HistoryConfig(encoder="transformer", dropout=0.0, heads=2)
    if case == "half":
        chosen.model.table_dtype = "float16"
    if case == "columns":
        chosen.sharding = ShardingConfig(ids="column_wise", categoricals="table_wise")
    return chosen


def both(processes: Processes, data: Path, path: Path, chosen: TrainConfig) -> list[tuple[Tensor, Tensor]]:
    """Embeddings of all items, of three that have no genres, and of all queries: sharded, and in place."""
    model, _ = trained(processes, chosen, data, 3)
    write_checkpoint(model, path)
    model.eval()
    catalog, features = Catalog(data, SCHEMA), features_of(chosen)
    assembler = BatchAssembler(SCHEMA, features, catalog, chosen.model)
    run = SavedRun(chosen, SCHEMA, SCHEMA, str(data), path, catalog, assembler)
    in_place = load_in_place(run, processes.device)
    genres = next(feature for feature in FEATURES if feature.name == "genres")
    bare = np.flatnonzero(catalog.sparse(genres, np.arange(ITEMS)).lengths == 0)[:3]
    batches = [assembler.candidate_batch(np.arange(ITEMS)), assembler.candidate_batch(bare)]
    events = open_events(data, SCHEMA, "test")
    batches += [batch.batch for batch in HeldOutReader(events, assembler, 16, range(ROWS["test"]), 4)]
    found = []
    with torch.no_grad():
        for batch in batches:
            expected, there = model(in_lockstep(batch)), in_place(batch)
            found += [(e, t) for e, t in zip(expected, there, strict=True) if e is not None]
    return found


@pytest.mark.parametrize("case", ["as ever", "weighted lists", "audience", "history event by event", "columns", "half"])
def test_embeddings_are_those_of_the_sharded_model(ranks: RankPool, prepared: Path, tmp_path: Path, case: str) -> None:
    """On both of two ranks, alike to the last bit."""
    of_ranks = ranks.run(2, both, prepared, tmp_path / checkpoint.name(3), settings(case))
    assert len(of_ranks[0]) >= 6
    for (expected, found), (_, other) in zip(*of_ranks, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(found, other) and expected.abs().max() > 0.1


def rows_of(processes: Processes, data: Path, path: Path, chosen: TrainConfig) -> dict[str, Tensor]:
    model, _ = trained(processes, chosen, data, 1)
    write_checkpoint(model, path)
    return whole_tables(model)


@pytest.mark.parametrize("case", ["as ever", "columns"])
def test_rows_are_taken_from_whatever_piece_has_them(
    ranks: RankPool, prepared: Path, tmp_path: Path, case: str
) -> None:
    """In any order, repeated, from one piece or several, or none at all."""
    path = tmp_path / checkpoint.name(1)
    whole = ranks.run(3, rows_of, prepared, path, settings(case))[0]
    rng = np.random.default_rng(0)
    for name in ("user_id", "item_id", "hour", "genres"):
        table, expected = SavedTable(path, name), whole[f"embeddings.embedding_bags.{name}.weight"]
        for count in (0, 1, 200):
            row_R = torch.from_numpy(rng.integers(0, len(expected), count))
            assert torch.equal(table.take(row_R), expected[row_R])
        assert torch.equal(table.take(torch.tensor([len(expected) - 1] * 2)), expected[-1:].expand(2, -1))
