"""The memory that trainer.plan says of a rank beside what CPU ranks take.

python benchmarks/plan.py OUT           makes up data in OUT, then trains some steps with 1 and 10 million users' rows

Both are what is added to a base process: one that trains likewise, with 60,000 rows and batches of 64.
"""

import argparse
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import torch
from omegaconf import OmegaConf

from trainer.config import ClusterConfig, PlanConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.events import TrainingReader
from trainer.data.order import TrainingOrder
from trainer.data.row_groups import open_events
from trainer.data.schema import read_schema
from trainer.model.two_tower import make_model
from trainer.runtime.gather import gather
from trainer.runtime.module import RetrievalModule
from trainer.runtime.planning import Planning
from trainer.runtime.processes import find_processes, joined
from trainer.runtime.quiet import quieten_libraries
from trainer.runtime.sharding import shard
from trainer.runtime.step_sizes import with_rows

STEPS = 10
BASE = 60_000, 64
CASES = [(ranks, rows, batch) for ranks in (1, 2) for rows in (1_000_000, 10_000_000) for batch in (1024, 8192)]


def config(folder: Path, ranks: int, rows: int, batch: int) -> PlanConfig:
    given = {"run": {"dir": "none"}, "data": {"dir": str(folder)}}
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PlanConfig), given))
    assert isinstance(found, PlanConfig)
    found.data.global_batch_size, found.data.streams = batch * ranks, 16
    found.run.log_every = 10**9
    found.plan = ClusterConfig(nodes=1, ranks_per_node=ranks, device="cpu", rows={"user_id": rows})
    return found


def resident() -> int:
    """Bytes of this process that no file backs."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) << 10


def work(folder: Path, rows: int, batch: int) -> None:
    """One rank: some steps of a training, without Lightning's loop around it."""
    quieten_libraries()
    processes = find_processes("cpu", 1)
    chosen = config(folder, processes.world_size, rows, batch)
    schema = with_rows(read_schema(folder), chosen.plan.rows)
    features, catalog = schema.select(None, None), Catalog(folder, schema)
    assembler = BatchAssembler(schema, features, catalog, chosen.model)
    files = open_events(folder, schema, "train", assembler.columns("event"))
    order = TrainingOrder(files.sizes, chosen.data.global_batch_size, chosen.data.streams, seed=0)
    model = make_model(schema, features, chosen)
    with joined(processes):
        gather(torch.zeros(1))
        most = resident()
        reader = TrainingReader(files, "event", assembler, order, processes.rank, processes.world_size)
        sharded = shard(model, chosen.sharding, chosen.optimizer, batch, 0, processes)
        module = RetrievalModule(sharded, chosen, assembler, catalog, reader, processes, num_steps=STEPS)
        optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
        for step in islice(module.pipeline, STEPS):
            loss = module.training_step(step)
            most = max(most, resident())
            loss.backward()
            most = max(most, resident())
            module.on_before_optimizer_step(optimizer)
            optimizer.step()
            optimizer.zero_grad()
        reader.close()
        taken = gather(torch.tensor([most]))
    if processes.is_first:
        print(int(taken.max()), flush=True)


def planned(folder: Path, ranks: int, rows: int, batch: int) -> float:
    """Bytes of a rank, its libraries aside."""
    chosen = config(folder, ranks, rows, batch)
    plan = Planning(chosen).plan(chosen)
    return sum(plan.memory.values()) + plan.host["row groups of the reader"] / ranks


def measured(folder: Path, ranks: int, rows: int, batch: int) -> int:
    command = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), __file__, str(folder), "--worker"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, str(rows), str(batch)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments.out, *arguments.worker)
    if not (arguments.out / "schema.json").exists():
        sizes = ["data.users=50000", "data.items=20000"]
        command = [sys.executable, "-m", "trainer.prepare", "data=generated", f"data.dir={arguments.out}", *sizes]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"{'ranks':>5}{'rows':>12}{'batch a rank':>14}{'planned MiB':>13}{'measured':>10}{'error':>9}", flush=True)
    bases = {ranks: (planned(arguments.out, ranks, *BASE), measured(arguments.out, ranks, *BASE)) for ranks in (1, 2)}
    for ranks, rows, batch in CASES:
        plan = planned(arguments.out, ranks, rows, batch) - bases[ranks][0]
        took = measured(arguments.out, ranks, rows, batch) - bases[ranks][1]
        print(f"{ranks:>5}{rows:>12,}{batch:>14,}{plan / 2**20:>13,.0f}{took / 2**20:>10,.0f}"
              f"{(plan - took) / took:>+9.1%}", flush=True)  # fmt: skip
    took = [f"{took / 2**20:,.0f} MiB on {ranks}" for ranks, (_, took) in bases.items()]
    print(f"a base process takes {', '.join(took)} ranks")


if __name__ == "__main__":
    main()
