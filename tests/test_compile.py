"""Towers that torch.compile makes, against the same as they are."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.ranks import RankPool
from tests.training import config, sharded_model, trained, whole_tables
from trainer.checks import check_train_config
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.model.two_tower import TwoTower, dense_parameters
from trainer.runtime.processes import Processes


def after_steps(
    processes: Processes, train: TrainConfig, folder: Path, compiled: bool
) -> tuple[dict[str, Tensor], list[float], int]:
    torch._inductor.config.compile_threads = 1
    torch._dynamo.reset()
    counters.clear()
    model = sharded_model(processes, train)
    plain = model.module
    assert isinstance(plain, TwoTower)
    if compiled:
        plain.compile_towers()
    _, losses = trained(processes, train, folder, 5, model=model)
    layers = {name: value.detach() for name, value in dense_parameters(model).items()}
    return whole_tables(model) | layers, losses, counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here, which torch.compile needs")
def test_what_is_learned_is_the_same(ranks: RankPool, prepared: Path) -> None:
    """But for rounding, over batches of five sizes, for which each tower is compiled once or twice."""
    expected, losses, none = ranks.run(1, after_steps, config(), prepared, False)[0]
    found, losses_compiled, graphs = ranks.run(1, after_steps, config(), prepared, True, timeout=300)[0]
    assert none == 0 < 2 <= graphs <= 4
    assert losses_compiled == pytest.approx(losses, rel=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    train = config()
    train.run.dir, train.data.dir, train.run.compile = "none", "none", True
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"run\.compile=True: expected a C\+\+ compiler, no-such-compiler"):
        check_train_config(train)
    train.run.compile = False
    check_train_config(train)
