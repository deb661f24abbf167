import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.ranks import RankPool
from tests.training import config, metrics, sharded_model, trained, whole_tables
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.runtime import checkpoint
from trainer.runtime.processes import Processes


def save(
    processes: Processes, folder: Path, path: Path
) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
    model, _ = trained(processes, config(), folder, steps=5)
    checkpoint.save(model, {"note": "from two ranks"}, path)
    saved = whole_tables(model)
    result = metrics(processes, folder, model.eval(), config().model)
    model, _ = trained(processes, config(), folder, steps=3, start=5, model=model.train())
    return result, saved, whole_tables(model)


def load(
    processes: Processes, folder: Path, path: Path
) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
    model = sharded_model(processes, config(), seed=1)
    checkpoint.load(model, path)
    loaded = whole_tables(model)
    result = metrics(processes, folder, model.eval(), config().model)
    model, _ = trained(processes, config(), folder, steps=3, start=5, model=model.train())
    return result, loaded, whole_tables(model)


def test_two_ranks_save_and_one_two_or_three_go_on(ranks: RankPool, prepared: Path, tmp_path: Path) -> None:
    path = tmp_path / checkpoint.name(5)
    before = ranks.run(2, save, prepared, path)[0]
    assert checkpoint.load_rest(path) == {"note": "from two ranks"}
    assert not path.with_name(path.name + ".partial").exists()
    for world_size in (1, 2, 3):
        after = ranks.run(world_size, load, prepared, path)[0]
        assert after[0] == pytest.approx(before[0], rel=1e-12)
        assert all(torch.equal(after[1][name], value) for name, value in before[1].items())
        # the steps after the checkpoint need the fused optimizer's state; Adam's starts anew in both
        for name, value in before[2].items():
            torch.testing.assert_close(after[2][name], value, atol=2e-5, rtol=0)


def refused(processes: Processes, path: Path, other: TrainConfig) -> str:
    with pytest.raises(UserError) as error:
        checkpoint.load(sharded_model(processes, other), path)
    return str(error.value)


def test_a_checkpoint_of_another_model_is_refused(ranks: RankPool, prepared: Path, tmp_path: Path) -> None:
    path = tmp_path / checkpoint.name(5)
    ranks.run(1, save, prepared, path)
    wider = config()
    wider.model.embedding_dim = 16
    assert "expected a checkpoint of this very model" in ranks.run(1, refused, path, wider)[0]


def test_best_and_last_are_kept_and_found(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (3, 10, 200):
        (folder / checkpoint.name(step)).mkdir(parents=True)
    (folder / (checkpoint.name(300) + ".partial")).mkdir()
    checkpoint.keep(folder, {"step": 10, "metrics": {}}, last_step=200)
    assert checkpoint.find(tmp_path, "best").name == checkpoint.name(10)
    assert checkpoint.find(tmp_path, "last") == checkpoint.newest(tmp_path) == folder / checkpoint.name(200)
    assert checkpoint.find(tmp_path, checkpoint.name(10)) == folder / checkpoint.name(10)
    assert not (folder / checkpoint.name(3)).exists()
    with pytest.raises(UserError, match="run.checkpoint=step-000000003.*train first, or name another"):
        checkpoint.find(tmp_path, checkpoint.name(3))
    shutil.rmtree(folder)
    assert checkpoint.newest(tmp_path) is None
    with pytest.raises(UserError, match="run.checkpoint=best.*there are none"):
        checkpoint.find(tmp_path, "best")
