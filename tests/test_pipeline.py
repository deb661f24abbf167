"""Batches that are exchanged ahead, against TorchRec's own forward pass on batches that are not."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.commands import environment
from tests.forked import succeed
from tests.prepared import SCHEMA
from tests.ranks import RankPool
from tests.test_switches import SWITCHES
from tests.training import config, features_of, sharded_model, trained, training_reader, whole_tables
from trainer.config import TrainConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.batch import RetrievalBatch
from trainer.data.catalog import Catalog
from trainer.runtime.lockstep import sizes_of_all
from trainer.runtime.pipeline import Pipeline, StagedBatch
from trainer.runtime.processes import Processes

STEPS = 5


def after_steps(
    processes: Processes, train: TrainConfig, folder: Path, ahead: bool
) -> tuple[dict[str, Tensor], list[float]]:
    whole = Pipeline.__iter__
    if not ahead:
        Pipeline.__iter__ = one_by_one  # type: ignore[method-assign]
    try:
        model, losses = trained(processes, train, folder, STEPS)
    finally:
        Pipeline.__iter__ = whole  # type: ignore[method-assign]
    return whole_tables(model), losses


def one_by_one(self: Pipeline) -> Any:
    """Batches as TorchRec takes them, each exchanged in the forward pass."""
    for batch in self._reader:
        sizes = sizes_of_all(batch)
        yield StagedBatch(batch.with_slots(sizes.slots), sizes, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", ["plain", "transformer over sequences", "weighted lists, thinned"])
def test_parameters_are_bit_for_bit_those_of_batches_one_by_one(
    ranks: RankPool, prepared: Path, name: str, world_size: int
) -> None:
    train = config()
    for change in SWITCHES.get(name, []):
        change(train)
    ahead, losses = ranks.run(world_size, after_steps, train, prepared, True)[0]
    expected, losses_one_by_one = ranks.run(world_size, after_steps, train, prepared, False)[0]
    assert losses == losses_one_by_one
    assert all(torch.equal(ahead[name], value) for name, value in expected.items())


class Reader:
    """The same batch again and again; counts how often it is taken."""

    def __init__(self, batch: RetrievalBatch) -> None:
        self.taken, self._batch = 0, batch

    def __iter__(self) -> Any:
        while True:
            self.taken += 1
            yield self._batch


def with_a_pause(processes: Processes, folder: Path) -> list[tuple[int, bool]]:
    """What has been taken of the reader before each batch, and whether that tells of a pause, asked for by rank 1."""
    train = config()
    assembler = BatchAssembler(SCHEMA, features_of(train), Catalog(folder, SCHEMA), train.model)
    reader = Reader(next(training_reader(processes, train, folder, assembler).batches(0)))
    found, asked = [], [False]
    batches = iter(Pipeline(reader, sharded_model(processes, train), processes, lambda: asked[0]))  # type: ignore[arg-type]
    for step in range(4):
        asked[0] = processes.rank == 1 and step == 1
        found.append((reader.taken, next(batches).sizes.pause))
    return found


def test_a_rank_tells_the_others_a_batch_ahead(ranks: RankPool, prepared: Path) -> None:
    for found in ranks.run(2, with_a_pause, prepared):
        assert found == [(0, False), (2, False), (3, True), (4, False)]


WATCHED = """
import functools, sys
from trainer.runtime.module import RetrievalModule
from trainer.runtime.pipeline import IdExchange, Pipeline

numbers = {}

def telling(kind, name, what, step_of):
    method = getattr(kind, name)
    @functools.wraps(method)
    def told(self, *arguments):
        print(what, step_of(self, *arguments), file=sys.stderr)
        return method(self, *arguments)
    setattr(kind, name, told)

def new(self, embeddings, batch, aside, made=IdExchange.__init__):
    made(self, embeddings, batch, aside)
    numbers[self] = batch.step

IdExchange.__init__ = new
telling(Pipeline, "_begin", "begin", lambda self, batch, sizes: batch.step)
telling(IdExchange, "send", "send", lambda self: numbers[self])
telling(RetrievalModule, "training_step", "step", lambda self, staged: staged.batch.step)
telling(RetrievalModule, "on_before_optimizer_step", "update", lambda self, optimizer: self.global_step)
from trainer.config import run_command
from trainer.train import main
run_command(main)
"""


def test_lightning_has_the_next_batch_on_its_way_in_every_step(tmp_path: Path) -> None:
    succeed("trainer.prepare", "data=generated", f"data.dir={tmp_path}/data", "data.users=400", "data.items=200")
    overrides = ["data.global_batch_size=128", "run.epochs=1", "run.monitor=null", "run.accelerator=cpu"]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, f"data.dir={tmp_path}/data", f"run.dir={tmp_path}/run", *overrides],
        env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = re.findall(r"(begin|step|send|update) (\d+)\n", done.stderr)
    when = {found: place for place, found in reversed(list(enumerate(told)))}  # the first time
    steps = [int(step) for what, step in told if what == "update"]
    assert len(steps) > 5
    for step in steps:
        at = [
            when[what, str(number)]
            for what, number in (("begin", step + 1), ("step", step), ("send", step + 1), ("update", step))
        ]
        assert at == sorted(at), (step, told)
