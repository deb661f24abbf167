"""Runs that start from a checkpoint of another one, on real ranks: what is read, where it goes, how it goes on."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from tests.prepared import ITEMS, SCHEMA, USERS
from tests.ranks import RankPool
from tests.training import BATCH, STREAMS
from tests.training import config as small
from trainer.config import TrainConfig
from trainer.data.schema import Schema
from trainer.errors import UserError
from trainer.model.two_tower import dense_parameters
from trainer.runtime import checkpoint, saved_model
from trainer.runtime.fit import _build
from trainer.runtime.initialization import initialize_rows
from trainer.runtime.lockstep import sizes_of_all
from trainer.runtime.processes import Processes
from trainer.runtime.sharding import shard
from trainer.train import train

Pieces = dict[str, list[tuple[int, Tensor]]]


def config(data: Path, run_dir: Path, start: Path | None = None, *changes: str, state: str = "all") -> TrainConfig:
    result = small()
    result.data.dir, result.data.global_batch_size, result.data.streams = str(data), BATCH, STREAMS
    result.run.dir, result.run.epochs, result.run.monitor, result.run.threads = str(run_dir), 1, "val/recall@10", 1
    result.start.checkpoint = None if start is None else str(start)
    result.start.changes, result.start.state = list(changes), state
    result.model.id_dropout = 0.0
    result.sharding.categoricals, result.sharding.tables = "row_wise", {"hour": "table_wise"}
    return result


def run(processes: Processes, config: TrainConfig) -> dict[str, float]:
    """The command, on ranks that have a process group already."""
    place = {"RANK": processes.rank, "LOCAL_RANK": processes.rank, "WORLD_SIZE": processes.world_size,
             "LOCAL_WORLD_SIZE": processes.world_size, "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
    os.environ.update({name: str(value) for name, value in place.items()})
    try:
        return train(config)
    finally:
        for name in place:
            del os.environ[name]
        if not dist.is_initialized():  # the run has left it, and whoever called wants to leave one too
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def begin(processes: Processes, config: TrainConfig) -> dict[str, Any]:
    """This rank's share of a run's state before its first step, and the embeddings of its first batches."""
    module, _, start, _ = _build(config, processes)
    model = shard(module.model, config.sharding, config.optimizer, BATCH, config.run.seed, processes)
    module.model = model
    told = start.load(model, module.loss) if start else ""
    optimizer = module.configure_optimizers()["optimizer"]
    if start:
        start.on_fit_start(SimpleNamespace(optimizers=[optimizer]), module)
    layers = dense_parameters(model)
    scores = []
    with torch.no_grad():
        for batch in islice(module.reader, 3):
            scores += [value.clone() for value in model.eval()(batch.with_slots(sizes_of_all(batch).slots))]
    module.reader.close()
    fused = [state for states in model.fused_optimizer.state_dict()["state"].items() for state in states[1].items()]
    return {
        "told": told,
        "tables": pieces(model.state_dict().items()),
        "momenta": pieces(fused),
        "layers": {name: p.detach().clone() for name, p in layers.items()},
        "adam": {name: dict(optimizer.state[p]) for name, p in layers.items() if p in optimizer.state},
        "loss": module.loss.state_dict(),
        "scores": scores,
    }


def pieces(state: Any) -> Pieces:
    return {
        name.removeprefix("embeddings.embedding_bags.").partition(".")[0]: [
            (part.metadata.shard_offsets[0], part.tensor.detach().clone()) for part in value.local_shards()
        ]
        for name, value in state
        if isinstance(value, ShardedTensor)
    }


def whole(results: list[dict[str, Any]], kind: str) -> dict[str, Tensor]:
    """Tables of all ranks, put together."""
    names = {name: None for result in results for name in result[kind]}
    parts = {name: sorted((p for r in results for p in r[kind].get(name, [])), key=lambda p: p[0]) for name in names}
    return {name: torch.cat([rows for _, rows in of_table]) for name, of_table in parts.items()}


@pytest.fixture(scope="module")
def old(ranks: RankPool, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newest checkpoint of a run of two ranks, with a streaming estimate."""
    folder = tmp_path_factory.mktemp("old") / "run"
    first = config(prepared, folder)
    first.model.loss.log_q = "streaming"
    ranks.run(2, run, first)
    return checkpoint.newest(folder)


def new(data: Path, run_dir: Path, old: Path, *changes: str, state: str = "all") -> TrainConfig:
    result = config(data, run_dir, old, *changes, state=state)
    result.model.loss.log_q = "streaming"
    return result


@pytest.fixture(scope="module")
def same(ranks: RankPool, prepared: Path, old: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the old run had learned, as an unchanged run takes it up."""
    return ranks.run(1, begin, new(prepared, tmp_path_factory.mktemp("same"), old))


@pytest.fixture(scope="module")
def later(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows, in a folder whose vocabularies have grown."""
    folder = tmp_path_factory.mktemp("later") / "data"
    shutil.copytree(prepared, folder)
    (folder / "schema.json").write_text(grown(SCHEMA).to_json())
    return folder


GROWN = {"item_id": ITEMS + 11, "genres": 8, "user_id": USERS + 1 + 4500}  # users over more than one block


def grown(schema: Schema) -> Schema:
    features = tuple(replace(f, num_embeddings=GROWN.get(f.table, f.num_embeddings)) for f in schema.features)
    return replace(schema, features=features, fingerprint="later", extends=(schema.fingerprint,))


def test_an_unchanged_model_is_what_the_checkpoint_holds(same: list[dict[str, Any]], old: Path) -> None:
    rest = saved_model.load_rest(old)
    adam = rest["optimizer_states"][0]["state"]
    assert len(adam) == len(same[0]["layers"]) == len(same[0]["adam"])
    decayed_first = sorted(same[0]["layers"], key=lambda name: same[0]["layers"][name].dim() <= 1)
    for number, name in enumerate(decayed_first):
        assert all(torch.equal(same[0]["adam"][name][key], value) for key, value in adam[number].items())
    assert all((values != 0).any() for values in whole(same, "momenta").values())
    steps = rest["global_step"]
    for name, value in rest["loss"].items():
        shift = steps if name.endswith("last_step") else 0
        assert torch.equal(same[0]["loss"][name], value - shift)
    assert f"started from {old}: user_id 61 rows kept" in same[0]["told"]
    assert same[0]["told"].endswith("optimizer state kept; streaming estimate kept")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_grown_vocabulary(
    ranks: RankPool, later: Path, old: Path, same: list[dict[str, Any]], tmp_path: Path, world_size: int
) -> None:
    """Old rows and momenta bit for bit; new rows as initialize_rows gives them, without momentum."""
    results = ranks.run(world_size, begin, new(later, tmp_path / "run", old, "vocabulary"))
    tables, momenta = whole(results, "tables"), whole(results, "momenta")
    for name, before in whole(same, "tables").items():
        initial = torch.empty(GROWN.get(name, len(before)), before.shape[1])
        initialize_rows(initial, name, 0, 0, before.shape[1], 0.05, seed=0)
        assert torch.equal(tables[name], torch.cat([before, initial[len(before) :]]))
        moments = whole(same, "momenta")[name]
        assert torch.equal(momenta[name], torch.cat([moments, torch.zeros(len(initial) - len(before))]))
    for result in results:
        assert all(torch.equal(result["layers"][name], value) for name, value in same[0]["layers"].items())
        assert all(torch.equal(result["loss"][name], value) for name, value in same[0]["loss"].items())
    assert "item_id 41 rows kept and 10 new; genres 6 rows kept and 2 new" in results[0]["told"]
    if world_size == 2:
        assert max(len(rows) for result in results for _, rows in result["tables"]["user_id"]) < 2400


def more_features(config: TrainConfig) -> TrainConfig:
    candidate = [*config.model.candidate.features, "words", "audience"]
    config.model.candidate.features = candidate[::-1]
    return config


def test_features_and_a_table_are_added_and_score_as_before(
    ranks: RankPool, prepared: Path, old: Path, same: list[dict[str, Any]], tmp_path: Path
) -> None:
    wider = more_features(new(prepared, tmp_path / "run", old, "features"))
    result = ranks.run(1, begin, wider)[0]
    for found, expected in zip(result["scores"], same[0]["scores"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert "words 9 rows new" in result["told"] and "feature audience new; feature words new" in result["told"]
    assert not whole([result], "momenta")["words"].any()
    ranks.run(2, run, wider)
    trained = checkpoint.newest(tmp_path / "run")
    after = ranks.run(1, begin, more_features(new(prepared, tmp_path / "next", trained)))[0]
    weight, before = after["layers"]["candidate_tower.mlp.0.weight"], result["layers"]["candidate_tower.mlp.0.weight"]
    assert (before == 0).all(0).sum() == 12 and not (weight == 0).all(0).any()
    assert not torch.equal(whole([after], "tables")["words"], whole([result], "tables")["words"])


def test_features_and_a_table_are_removed(
    ranks: RankPool, prepared: Path, old: Path, same: list[dict[str, Any]], tmp_path: Path
) -> None:
    fewer = new(prepared, tmp_path / "run", old, "features")
    fewer.sharding.tables = {}
    fewer.model.query.features, fewer.model.candidate.features = ["history", "user_id"], ["text", "item_id"]
    results = ranks.run(2, begin, fewer)
    assert set(whole(results, "tables")) == {"user_id", "item_id"}
    for kind in ("tables", "momenta"):
        assert all(torch.equal(rows, whole(same, kind)[name]) for name, rows in whole(results, kind).items())
    # user_id, hour, history, age stood at 0, 8, 12, 20; item_id, genres, price, text at 0, 8, 12, 13
    for side, columns in (("query", [*range(12, 20), *range(8)]), ("candidate", [*range(8), *range(13, 17)])):
        name = f"{side}_tower.mlp.0.weight"
        assert torch.equal(results[1]["layers"][name], same[0]["layers"][name][:, columns])
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(results[1]["adam"][name][key], same[0]["adam"][name][key][:, columns])
        assert results[1]["adam"][name]["step"] == same[0]["adam"][name]["step"] > 0
    assert "feature age gone; feature genres gone; feature hour gone; feature price gone" in results[0]["told"]
    ranks.run(2, run, fewer)


def test_another_optimizer_of_the_tables(
    ranks: RankPool, prepared: Path, old: Path, same: list[dict[str, Any]], tmp_path: Path
) -> None:
    other = new(prepared, tmp_path / "sgd", old, "optimizer")
    other.optimizer.embedding = "sgd"
    results = ranks.run(2, begin, other)
    assert not whole(results, "momenta")
    assert all(torch.equal(rows, whole(same, "tables")[name]) for name, rows in whole(results, "tables").items())
    assert results[0]["adam"].keys() == same[0]["adam"].keys()
    assert "optimizer state of tables anew" in results[0]["told"]
    ranks.run(1, run, other)
    back = new(prepared, tmp_path / "adagrad", checkpoint.newest(tmp_path / "sgd"), "optimizer")
    assert not any(values.any() for values in whole(ranks.run(1, begin, back), "momenta").values())


def test_tables_of_the_other_run_are_rounded(
    ranks: RankPool, prepared: Path, old: Path, same: list[dict[str, Any]], tmp_path: Path
) -> None:
    half = new(prepared, tmp_path / "half", old, "settings")
    half.model.table_dtype = "float16"
    tables = whole(ranks.run(2, begin, half), "tables")
    assert all(torch.equal(tables[name], rows.half()) for name, rows in whole(same, "tables").items())


def test_a_warm_start_takes_weights_alone(
    ranks: RankPool, prepared: Path, old: Path, same: list[dict[str, Any]], tmp_path: Path
) -> None:
    warm = new(prepared, tmp_path / "run", old, state="weights")
    warm.optimizer.embedding_learning_rate, warm.model.loss.temperature = 0.01, 0.7
    results = ranks.run(2, begin, warm)
    assert all(torch.equal(rows, whole(same, "tables")[name]) for name, rows in whole(results, "tables").items())
    assert all(torch.equal(results[1]["layers"][name], value) for name, value in same[0]["layers"].items())
    assert not any(values.any() for values in whole(results, "momenta").values())
    assert results[0]["adam"] == {}
    assert not results[0]["loss"]["frequencies.appearances"].any()
    assert results[0]["told"].endswith("weights alone")


def test_a_resumed_run_goes_on_from_its_own_checkpoint_when_the_other_run_is_gone(
    ranks: RankPool, later: Path, old: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(old.parent.parent, copy)
    start = copy / "checkpoints" / old.name

    def go_on(name: str, epochs: int) -> Path:
        chosen = new(later, tmp_path / name, start, "vocabulary")
        chosen.run.epochs = epochs
        ranks.run(1, run, chosen)
        return checkpoint.newest(tmp_path / name)

    uninterrupted = go_on("whole", 2)
    go_on("resumed", 1)
    shutil.rmtree(copy)
    resumed = go_on("resumed", 2)
    assert resumed.name == uninterrupted.name
    states = [ranks.run(1, begin, new(later, tmp_path / "next", path)) for path in (uninterrupted, resumed)]
    for kind in ("tables", "momenta"):
        first, second = (whole(state, kind) for state in states)
        assert all(torch.equal(first[name], second[name]) for name in first)
    for kind in ("layers", "loss"):
        assert all(torch.equal(value, states[1][0][kind][name]) for name, value in states[0][0][kind].items())
    other = new(later, tmp_path / "resumed", start, "vocabulary", "features")
    with pytest.raises(AssertionError, match=r"start.changes=\['vocabulary'\] \(now \['vocabulary', 'features'\]\)"):
        ranks.run(1, run, other)


def refused(processes: Processes, config: TrainConfig) -> str:
    with pytest.raises(UserError) as error:
        begin(processes, config)
    return str(error.value)


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a run": (lambda old: old.parent.parent, "expected one of the checkpoints in it: "),
    "nothing": (lambda old: old.with_name("step-7"), "expected a folder RUN/checkpoints/step-N"),
    "unfinished": (lambda old: old.with_name(old.name + ".partial"), "expected a folder RUN/checkpoints/step-N"),
    "no run": (lambda old: old.parent.parent.parent / "bare" / "checkpoints" / old.name, "with its config.yaml"),
    "damaged": (lambda old: old.parent.parent.parent / "torn" / "checkpoints" / old.name, "its files as written"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_checkpoint_is_refused(
    ranks: RankPool, prepared: Path, old: Path, tmp_path: Path, name: str
) -> None:
    run_dir = old.parent.parent
    choose, message = WRONG[name]
    path = choose(old)
    if name in ("no run", "damaged"):
        shutil.copytree(run_dir, path.parent.parent)
        (path.parent.parent / "config.yaml").unlink() if name == "no run" else None
        for file in path.glob("*.distcp") if name == "damaged" else ():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    told = ranks.run(1, refused, new(prepared, tmp_path / "run", path))[0]
    assert told.startswith(f"start.checkpoint={path}: expected ") and message in told
    if name != "damaged":
        assert not (tmp_path / "run").exists(), "a run directory was claimed for nothing"


def test_the_estimate_of_other_data_needs_that_data(
    ranks: RankPool, prepared: Path, later: Path, old: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(old.parent.parent, moved)
    text = (moved / "config.yaml").read_text()
    assert str(prepared) in text
    (moved / "config.yaml").write_text(text.replace(str(prepared), str(tmp_path / "gone")))
    path = moved / "checkpoints" / old.name
    told = ranks.run(1, refused, new(later, tmp_path / "run", path, "vocabulary"))[0]
    assert f"expected the data of that run in {tmp_path / 'gone'}" in told and "set start.state=weights" in told
