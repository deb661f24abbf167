"""Batches that are exchanged ahead, against TorchRec's own forward pass on batches that are not."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

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


def test_lightning_has_the_next_batch_on_its_way_in_every_step(tmp_path: Path) -> None:
    succeed("trainer.prepare", "data=generated", f"data.dir={tmp_path}/data", "data.users=400", "data.items=200")
    overrides = ["data.global_batch_size=128", "run.epochs=1", "run.monitor=null", "run.accelerator=cpu"]
    stdout = succeed("tests.watched", f"data.dir={tmp_path}/data", f"run.dir={tmp_path}/run", *overrides, ranks=2)
    told = re.findall(r"(begin|step|send|update|broadcast) (\d+)\n", stdout)
    when = {found: place for place, found in reversed(list(enumerate(told)))}  # the first time
    steps = [int(step) for what, step in told if what == "update"]
    assert len(steps) > 5
    for step in steps:
        at = [
            when[what, str(number)]
            for what, number in (("begin", step + 1), ("step", step), ("send", step + 1), ("update", step))
        ]
        assert at == sorted(at), (step, told)
    assert ("broadcast", "0") not in told, "Lightning has ranks wait for the first before every step"
