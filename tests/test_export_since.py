"""Items that have changed since an earlier export, on data that extends that of the run; beside exports of all."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.ranks import RankPool
from tests.shop import Columns, candidate, events_of, prepare_shop
from tests.training import write_checkpoint
from trainer.checks import check_export_config
from trainer.config import (
    CheckpointConfig,
    EmbeddingExportConfig,
    ExportConfig,
    ModelConfig,
    TowerConfig,
    TrainConfig,
    to_yaml,
)
from trainer.data.catalog import Catalog
from trainer.data.item_digests import item_digests
from trainer.data.schema import read_schema
from trainer.errors import UserError
from trainer.model.two_tower import make_model
from trainer.runtime import checkpoint, run_directory
from trainer.runtime.changed_items import ChangedItems
from trainer.runtime.loading import open_run
from trainer.runtime.processes import Processes
from trainer.runtime.shard_files import write_shards
from trainer.runtime.shard_proof import prove
from trainer.runtime.sharding import shard
from trainer.runtime.shards import ItemShards

FEATURES = {
    "price": candidate("numeric"),
    "brand": candidate("categorical"),
    "tags": candidate("categorical", length=3),
}
MONDAY: Columns = {
    "item_id": [1, 2, 3, 4, 5, 6, 7, 8],
    "price": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    "brand": ["a", "b", "a", "c", "b", "a", "c", "b"],
    "tags": [["x"], ["x", "y"], ["y"], [], ["z", "x"], ["y", "z"], ["x"], ["z"]],
}
"""Of which 1 to 6 have events."""
TUESDAY: Columns = {
    # 2 is gone; 7, without events before, has some now, which the model cannot know; 9 to 11 are new
    "item_id": [11, 1, 3, 4, 5, 6, 7, 8, 9, 10],
    "price": [7.0, 1.0, 33.0, 4.0, 5.0, 6.0, 7.0, 8.0, 7.0, 2.5],
    "brand": ["c", "a", "a", "new", "b", "a", "c", "b", "c", "new"],
    "tags": [["x"], ["x"], ["y"], [], ["x", "z"], ["y", "z"], ["x"], ["z", "new"], ["x"], []],
}
CHANGED = [3, 4, 5, 8, 9, 10, 11]
"""A price, a brand that is unknown, another order of tags, a tag more; and the new ones."""


def tuesday_events() -> Columns:
    """The first two of each user train."""
    return events_of(1, 2, 3, 4) | {"item_id": [3, 9, 7, 1] * 4}


def save(processes: Processes, data: Path, run_dir: Path) -> None:
    """A run of an untrained model of Monday's data, with two checkpoints."""
    schema, tower = read_schema(data), TowerConfig(hidden=[8])
    settings = TrainConfig(model=ModelConfig(embedding_dim=8, categorical_dim=4, query=tower, candidate=tower))
    settings.data.dir, settings.run.dir = str(data), str(run_dir)
    model = make_model(schema, schema.select(None, None), settings)
    sharded = shard(model, settings.sharding, settings.optimizer, 8, 0, processes)
    if processes.is_first:
        run_dir.mkdir()
        run_directory.write(run_dir, run_directory.CONFIG, to_yaml(settings))
        run_directory.write(run_dir, run_directory.SCHEMA, schema.to_json())
    for step in (1, 2):
        write_checkpoint(sharded, run_dir / "checkpoints" / checkpoint.name(step), {"step": step})


def export(
    processes: Processes, run_dir: Path, data: Path, out: Path, since: Path | None = None, step: int = 1,
    verify: bool = False,
) -> str:  # fmt: skip
    """What is told, or the mistake."""
    named = CheckpointConfig(str(run_dir), checkpoint.name(step), str(data))
    asked = EmbeddingExportConfig(rows_per_shard=3, batch_size_per_rank=2, since=since and str(since))
    try:
        run = open_run(named, may_extend=True)
        config = ExportConfig(CheckpointConfig(str(out)), asked)
        shards = ItemShards(run, config) if since is None else ChangedItems(run, config)
        return str((prove if verify else write_shards)(shards, run, config, processes))
    except UserError as error:
        return str(error)


@pytest.fixture(scope="module")
def folder(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With monday/out, tuesday/out, a run on Monday's data, and exports of all items: full/monday, full/tuesday."""
    folder = tmp_path_factory.mktemp("days")
    for day, events, items, settings in (
        ("monday", events_of(1, 2, 3, 4, events=6), MONDAY, {}),
        ("tuesday", tuesday_events(), TUESDAY, {"extends": str(folder / "monday" / "out")}),
    ):
        (folder / day).mkdir()
        prepare_shop(folder / day, events, items, features=FEATURES, **settings)
    ranks.run(2, save, folder / "monday" / "out", folder / "run")
    for day in ("monday", "tuesday"):
        (folder / "full" / day).mkdir(parents=True)
        told = ranks.run(2, export, folder / "run", folder / day / "out", folder / "full" / day)
        assert "written to" in told[0]
    return folder


def vectors(path: Path) -> dict[int, list[float]]:
    return {row["item_id"]: row["embedding"] for row in pq.read_table(path).to_pylist()}


def test_what_is_new_or_changed_is_written_and_what_is_gone_listed(
    ranks: RankPool, folder: Path, tmp_path: Path
) -> None:
    """The earlier export, changed by this one, is that of all items."""
    before, after = (folder / "full" / day / "item_embeddings" for day in ("monday", "tuesday"))
    found = []
    for world_size in (1, 2):
        out = tmp_path / str(world_size)
        out.mkdir()
        ranks.run(world_size, export, folder / "run", folder / "tuesday" / "out", out, before)
        found.append({path.name: path.read_bytes() for path in (out / "item_embeddings_since").iterdir()})
    assert found[0] == found[1]
    manifest = json.loads(found[0]["_manifest.json"])
    assert manifest["deleted"] == [2] and manifest["num_rows"] == len(CHANGED)
    assert manifest["since"]["folder"] == str(before)
    changed = vectors(out / "item_embeddings_since")
    assert sorted(changed) == CHANGED
    index = {item: vector for item, vector in vectors(before).items() if item not in manifest["deleted"]}
    assert vectors(after).keys() == (index | changed).keys()
    for item, vector in vectors(after).items():
        np.testing.assert_allclose((index | changed)[item], vector, atol=1e-6)
    told = ranks.run(2, export, folder / "run", folder / "tuesday" / "out", out, before, 1, True)[0]
    assert f"{len(CHANGED)} computed anew" in told


def test_ids_that_the_model_was_not_trained_on_are_out_of_vocabulary(folder: Path) -> None:
    """9 and 11 have the features of 7, which had no events on Monday; 9 has a row in the vocabulary by now."""
    before, after = (vectors(folder / "full" / day / "item_embeddings") for day in ("monday", "tuesday"))
    rows = {day: read_schema(folder / day / "out").item_id.num_embeddings for day in ("monday", "tuesday")}
    assert rows["tuesday"] == rows["monday"] + 1
    for item in (7, 9, 11):
        np.testing.assert_allclose(after[item], before[7], atol=1e-6)
    assert max(abs(np.subtract(after[4], before[4]))) > 1e-3


def test_nothing_has_changed(ranks: RankPool, folder: Path, tmp_path: Path) -> None:
    before = folder / "full" / "monday" / "item_embeddings"
    for verify in (False, True):
        told = ranks.run(2, export, folder / "run", folder / "monday" / "out", tmp_path, before, 1, verify)[0]
        assert "written to" in told or "0 computed anew" in told
    table = pq.read_table(tmp_path / "item_embeddings_since")
    embedding = pa.list_(pa.field("element", pa.float32(), nullable=False), 8)
    assert len(table) == 0 and table.schema.field("embedding").type == embedding


def test_exports_to_which_nothing_can_be_added_are_refused(ranks: RankPool, folder: Path, tmp_path: Path) -> None:
    before, data = folder / "full" / "monday" / "item_embeddings", folder / "monday" / "out"

    def told(since: Path, step: int = 1) -> Any:
        return ranks.run(2, export, folder / "run", data, tmp_path, since, step)

    assert "not of another model (step-000000001): each embedding is another" in told(before, 2)[1]
    assert "expected a folder of trainer.export with _manifest.json and _SUCCESS" in told(folder)[0]
    lacking = shutil.copytree(before, tmp_path / "lacking")
    manifest = json.loads((lacking / "_manifest.json").read_text())
    for name in ("side", "model", "shards"):
        (lacking / "_manifest.json").write_text(json.dumps({key: manifest[key] for key in manifest if key != name}))
        assert "expected a folder of trainer.export with _manifest.json and _SUCCESS" in told(lacking)[0]
    flipped = shutil.copytree(before, tmp_path / "flipped") / "part-00001.parquet"
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"2")
    found = told(flipped.parent)
    assert found[0] == found[1] and "which these are not: part-00001.parquet. Remedy: bring them back" in found[0]
    ranks.run(2, export, folder / "run", data, tmp_path, before)
    shutil.move(tmp_path / "item_embeddings_since", tmp_path / "earlier")
    assert "expected an export of all items" in told(tmp_path / "earlier")[0]
    with pytest.raises(UserError, match="export.since=x: expected null for export.side=query"):
        check_export_config(ExportConfig(CheckpointConfig("r"), EmbeddingExportConfig(side="query", since="x")))


def test_data_that_does_not_extend_the_runs_is_refused(ranks: RankPool, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    prepare_shop(tmp_path / "other", tuesday_events(), TUESDAY, features=FEATURES)
    before = folder / "full" / "monday" / "item_embeddings"
    told = ranks.run(1, export, folder / "run", tmp_path / "other" / "out", tmp_path, before)[0]
    assert "run.data_dir=" in told and "data with the features it was trained on" in told


def test_digests_tell_any_change_apart(folder: Path) -> None:
    """Among catalogues that differ in one value each, every digest is another; and none depends on the other items."""
    schema = read_schema(folder / "monday" / "out")
    catalog = Catalog(folder / "monday" / "out", schema)
    features = [feature for feature in schema.features if feature.side == "candidate"]
    digests = item_digests(catalog, features, np.arange(8))
    assert len(np.unique(digests)) == 8
    order = np.array([5, 2, 2, 7])
    np.testing.assert_array_equal(item_digests(catalog, features, order), digests[order])
    for left_out in range(len(features)):
        some = features[:left_out] + features[left_out + 1 :]
        assert not (item_digests(catalog, some, np.arange(8)) == digests).all()
