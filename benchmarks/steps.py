"""Some steps of a training with tables of any size, on any number of CPU ranks, without Lightning's loop around them.

Other benchmarks call `measured`; the work is on data that `make_data` makes up, whose users are spread over all rows.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from omegaconf import OmegaConf

from trainer.config import ClusterConfig, PlanConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.batch import RetrievalBatch
from trainer.data.catalog import Catalog
from trainer.data.events import TrainingReader
from trainer.data.order import TrainingOrder
from trainer.data.row_groups import open_events
from trainer.data.schema import read_schema
from trainer.model.two_tower import make_model
from trainer.runtime.gather import gather
from trainer.runtime.module import RetrievalModule
from trainer.runtime.planning import ClusterPlan, Planning
from trainer.runtime.processes import find_processes, joined
from trainer.runtime.quiet import quieten_libraries
from trainer.runtime.sharding import shard
from trainer.runtime.step_sizes import with_rows


@dataclass(frozen=True)
class Work:
    """What is trained.

    Attributes:
        ranks: with a thread each.
        rows: of the users' table.
        batch: rows a rank.
        dim: of the id tables and the embeddings.
        negatives: drawn instead of those of the batch; 0 for those of the batch.
        steps: of which the first half does not count.
    """

    ranks: int
    rows: int
    batch: int
    dim: int = 64
    negatives: int = 0
    steps: int = 10


@dataclass(frozen=True)
class Measured:
    """On the rank that takes most.

    Attributes:
        anonymous: bytes of the process that no file backs, at the most that is seen between parts of a step.
        seconds: of a step, the median.
    """

    anonymous: float
    seconds: float


def make_data(folder: Path) -> None:
    """Makes up the data, unless it is there."""
    if not (folder / "schema.json").exists():
        sizes = ["data.users=50000", "data.items=20000"]
        command = [sys.executable, "-m", "trainer.prepare", "data=generated", f"data.dir={folder}", *sizes]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measured(folder: Path, work: Work) -> Measured:
    """Trains in processes of their own."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(work.ranks), __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, str(folder), json.dumps(vars(work))], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return Measured(*json.loads(done.stdout.splitlines()[-1]))


def plan(folder: Path, work: Work) -> ClusterPlan:
    """What trainer.plan says of it."""
    chosen = config(folder, work)
    return Planning(chosen).plan(chosen)


def config(folder: Path, work: Work) -> PlanConfig:
    """Of the training, and of the ranks at hand as a cluster."""
    given = {"run": {"dir": "none", "log_every": 10**9}, "data": {"dir": str(folder), "streams": 16}}
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PlanConfig), given))
    assert isinstance(found, PlanConfig)
    found.data.global_batch_size = work.batch * work.ranks
    found.model.embedding_dim = work.dim
    if work.negatives:
        found.model.loss.in_batch_negatives, found.model.loss.uniform_negatives = False, work.negatives
    found.plan = ClusterConfig(nodes=1, ranks_per_node=work.ranks, device="cpu", rows={"user_id": work.rows})
    return found


class _Spread:
    """A reader whose few users lie anywhere in a table of many rows."""

    def __init__(self, reader: TrainingReader, rows: int) -> None:
        self._reader, self._rows, self.close = reader, rows, reader.close

    def __iter__(self) -> Iterator[RetrievalBatch]:
        for batch in self._reader:
            batch.sparse_features["user_id"].values().mul_(2_654_435_761).remainder_(self._rows)
            yield batch


def _work(folder: Path, work: Work) -> None:
    """One rank."""
    quieten_libraries()
    processes = find_processes("cpu", 1)
    chosen = config(folder, work)
    schema = with_rows(read_schema(folder), chosen.plan.rows)
    features, catalog = schema.select(None, None), Catalog(folder, schema)
    assembler = BatchAssembler(schema, features, catalog, chosen.model)
    files = open_events(folder, schema, "train", assembler.columns("event"))
    order = TrainingOrder(files.sizes, chosen.data.global_batch_size, chosen.data.streams, seed=0)
    model = make_model(schema, features, chosen)
    with joined(processes):
        gather(torch.zeros(1))
        most, took = _anonymous(), []
        reader = _Spread(TrainingReader(files, "event", assembler, order, processes.rank, work.ranks), work.rows)
        sharded = shard(model, chosen.sharding, chosen.optimizer, work.batch, 0, processes)
        module = RetrievalModule(sharded, chosen, assembler, catalog, reader, processes, work.steps)  # type: ignore[arg-type]
        optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
        began = time.perf_counter()
        for batch in islice(module.pipeline, work.steps):
            loss = module.training_step(batch)
            most = max(most, _anonymous())
            loss.backward()
            most = max(most, _anonymous())
            module.on_before_optimizer_step(optimizer)
            optimizer.step()
            optimizer.zero_grad()
            took.append(time.perf_counter() - began)
            began = time.perf_counter()
        reader.close()
        found = gather(torch.tensor([[most, statistics.median(took[work.steps // 2 :])]], dtype=torch.float64))
    if processes.is_first:
        print(json.dumps(found.amax(dim=0).tolist()), flush=True)


def _anonymous() -> int:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) << 10


if __name__ == "__main__":
    _work(Path(sys.argv[1]), Work(**json.loads(sys.argv[2])))
