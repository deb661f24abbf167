"""Examples trained on a second, from disk to optimizer step, beside what one would take instead, on the same work.

    python benchmarks/throughput.py OUT [--tfrs PYTHON] [--keep LIBJEMALLOC]

Two works (works.py): of ids alone, and of features. trainer.train runs as a user runs it, with its logs, callbacks and
progress bar; beside it its own step in a bare loop, plain PyTorch, TorchRec alone and, given a Python that has it,
TensorFlow Recommenders. All read Parquet, take batches of 4096, update tables by Adagrad and layers by Adam, and have
two threads in all. They take turns; figures are medians. With --keep, an allocator that keeps large buffers (Debian's
libjemalloc2), peers run with it too, for their loops lose much time to pages given back and taken anew.

How near it is to what the machine could do: the matrix products of a step alone, of distinct items and in float32.

Last, the parts of a step of trainer.train: milliseconds of each without the parts inside it. What is in none
of them, "rest", is all that Lightning, callbacks, logs and progress bar add, and some of the step's own Python.
"""

import argparse
import csv
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

from works import (
    BATCH,
    CATEGORICAL_DIM,
    CATEGORICALS,
    COLUMNS,
    DIM,
    HIDDEN,
    ITEM_NUMERICS,
    NUMERICS,
    TEMPERATURE,
    TEXT,
)

# before torch, which reads once what the package sets
from trainer.config import CONFIG_DIR, TrainConfig, register_configs, typed

HERE = Path(__file__).parent
STEPS, WARM_UP, EVERY = 120, 40, 20
KEEPING = "oversize_threshold:1,background_thread:true,metadata_thp:auto,dirty_decay_ms:-1,muzzy_decay_ms:-1"
OURS, OURS_ON_TWO, BARE = "trainer.train", "trainer.train, 2 ranks", "its step in a bare loop"
PRODUCTS = "its matrix products alone"
TORCHREC, TORCHREC_ON_TWO, TORCH, TFRS = "TorchRec alone", "TorchRec alone, 2 ranks", "plain PyTorch", "TFRS"
WIDTHS = {
    "ids": ([DIM, DIM], [DIM, DIM]),
    "features": (
        [2 * DIM + len(CATEGORICALS) * CATEGORICAL_DIM + len(NUMERICS), HIDDEN, DIM],
        [DIM + CATEGORICAL_DIM + len(ITEM_NUMERICS) + TEXT, HIDDEN, DIM],
    ),
}
"""Of the layers of both towers."""
PARTS = ("read", "exchange", "lookup", "towers", "loss", "backward and tables' update", "layers' update", "rest")


def overrides(out: Path, work: str) -> list[str]:
    """Of trainer.train, for what peers do too."""
    layers = ["model.query.hidden=[]", "model.candidate.hidden=[]"] if work == "ids" else []
    return [f"data.dir={out / work}", f"run.dir={out / 'run'}", f"data.global_batch_size={BATCH}", "run.epochs=1",
            f"model.loss.temperature={TEMPERATURE}", "model.id_dropout=0", "run.monitor=null", f"run.log_every={EVERY}",
            "run.accelerator=cpu", *layers]  # fmt: skip


def command(system: str, work: str, out: Path, seconds: float, tfrs: str | None) -> list[str]:
    """What runs it, after the environment is set."""
    peer = [work, str(out / f"{work}.parquet"), "--seconds", str(seconds)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    match system:
        case "trainer.train":
            return [sys.executable, "-m", "trainer.train", *overrides(out, work)]
        case "trainer.train, 2 ranks":
            return [*torchrun, "2", "-m", "trainer.train", *overrides(out, work)]
        case "its step in a bare loop":
            return [sys.executable, __file__, str(out), "--part", "loop", "--works", work]
        case "its matrix products alone":
            return [sys.executable, __file__, str(out), "--part", "products", "--works", work]
        case "TorchRec alone":
            return [*torchrun, "1", str(HERE / "peer_torchrec.py"), *peer]
        case "TorchRec alone, 2 ranks":
            return [*torchrun, "2", str(HERE / "peer_torchrec.py"), *peer]
        case "plain PyTorch":
            return [sys.executable, str(HERE / "peer_torch.py"), *peer]
        case _:
            assert tfrs is not None
            return [tfrs, str(HERE / "peer_tfrs.py"), *peer]


def measure(system: str, keep: str | None, *arguments: Any) -> tuple[float, float]:
    """Examples a second, and MB of its largest process at its highest."""
    _, out, *_ = arguments
    shutil.rmtree(out / "run", ignore_errors=True)
    threads = "1" if system.endswith("2 ranks") else "2"
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    if keep is not None:
        environment |= {"LD_PRELOAD": keep, "MALLOC_CONF": KEEPING}
    log = out / "throughput.log"
    os.sync()
    with log.open("w") as written:
        run = subprocess.Popen(command(system, *arguments), stdout=written, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(run.pid, 0)
    text = log.read_text()
    if status:
        raise SystemExit(f"{system}: ended with {status}\n{text[-3000:]}")
    if system in (OURS, OURS_ON_TWO):
        rate = rate_of_logs(out / "run")
    else:
        told = next(line for line in reversed(text.splitlines()) if line.startswith('{"examples_per_second"'))
        rate = json.loads(told)["examples_per_second"]
    return rate, usage.ru_maxrss / 1000


def rate_of_logs(run_dir: Path) -> float:
    """Examples a second over the steps after the first few, from what the run has logged."""
    [path] = run_dir.glob("logs/*/metrics.csv")
    with path.open() as rows:
        logged = [row for row in csv.DictReader(rows) if row.get("train/examples_per_second")]
    rates = [float(row["train/examples_per_second"]) for row in logged if int(row["step"]) >= WARM_UP]
    return len(rates) / sum(1 / rate for rate in rates)


def bare_loop(out: Path, work: str) -> None:
    """The run's own reader, module, tables and optimizer, without Lightning around them."""
    import torch
    from works import tell, timed

    from trainer.runtime.processes import joined

    config, processes, module = _made(out, work)
    with joined(processes):
        module.model = _sharded(config, processes, module)
        optimizer = module.configure_optimizers()["optimizer"]
        rows = iter(module.pipeline)

        def step() -> torch.Tensor:
            loss = module.training_step(next(rows))
            optimizer.zero_grad()
            loss.backward()
            module.on_before_optimizer_step(optimizer)
            optimizer.step()
            return loss.detach()

        tell(timed(step, 10.0, lambda steps: min(steps, STEPS - 15)))
        module.reader.close()


def products_alone(out: Path, work: str) -> None:
    """Those of the loss over the distinct items of a batch, by chunks as the loss has them, and of the towers."""
    import torch
    from works import batches, tell, timed

    from trainer.model.loss import Workspace
    from trainer.runtime.processes import find_processes

    find_processes("cpu", 2)
    workspace, items = Workspace(), len(set(next(batches(str(out / f"{work}.parquet"), work, BATCH))["item_id"]))
    query_QD, item_ND, total_ND = torch.randn(BATCH, DIM), torch.randn(items, DIM), torch.zeros(items, DIM)
    layers = [(torch.randn(rows, width, requires_grad=True), torch.randn(to, width, requires_grad=True))
              for rows, widths in zip((BATCH, items), WIDTHS[work], strict=True)
              for width, to in itertools.pairwise(widths)]  # fmt: skip

    def step() -> torch.Tensor:
        for query_CD in query_QD.split(workspace.chunk_size(items)):
            logits_CN = torch.mm(query_CD, item_ND.T, out=workspace.logits(query_CD, items)[: len(query_CD)])
            logits_CN @ item_ND
            total_ND.addmm_(logits_CN.T, query_CD)
        for rows, weight in layers:
            output = rows @ weight.T
            torch.autograd.grad(output, (rows, weight), output.detach())
        return total_ND.sum()

    tell(timed(step, 6.0))


def _made(out: Path, work: str) -> Any:
    from hydra import compose, initialize_config_dir

    from trainer.runtime.fit import _build
    from trainer.runtime.processes import find_processes

    register_configs()
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        config = typed(compose("train", [*overrides(out, work), "run.log_every=1000000"]), TrainConfig)
    processes = find_processes("cpu", 2)
    module, *_ = _build(config, processes)
    return config, processes, module


def _sharded(config: Any, processes: Any, module: Any) -> Any:
    from trainer.runtime.sharding import shard

    return shard(module.model, config.sharding, config.optimizer, BATCH, config.run.seed, processes)


def split(out: Path, work: str) -> None:
    """trainer.train in this process, its parts timed; prints milliseconds a step."""
    import time

    import torch
    from hydra import compose, initialize_config_dir
    from stopwatch import Stopwatch

    from trainer.data.prefetch import Prefetch
    from trainer.model.tower import Tower
    from trainer.runtime import training_loss
    from trainer.runtime.callbacks import Throughput
    from trainer.runtime.fit import fit
    from trainer.runtime.pipeline import IdExchange, Pipeline
    from trainer.runtime.strategy import ShardedStrategy

    watch, began = Stopwatch(), [0.0]
    watch.watch(Prefetch, "__next__", "read")
    watch.watch(Pipeline, "_begin", "exchange")
    watch.watch(training_loss, "gather_candidates", "exchange")
    watch.watch(IdExchange, "look_up", "lookup")
    watch.watch(Tower, "forward", "towers")
    watch.watch(training_loss.TrainingLoss, "forward", "loss")
    watch.watch(ShardedStrategy, "backward", "backward and tables' update")
    watch.watch(torch.optim.AdamW, "step", "layers' update")
    counted = Throughput.on_train_batch_end

    def after_step(callback: Any, trainer: Any, *arguments: Any) -> None:
        counted(callback, trainer, *arguments)
        if trainer.global_step == WARM_UP:
            watch.seconds.clear()
            began[0] = time.perf_counter()
        if trainer.global_step == STEPS:
            passed = {name: watch.seconds[name] for name in PARTS[:-1]}
            passed["rest"] = time.perf_counter() - began[0] - sum(passed.values())
            found.update({name: 1000 * seconds / (STEPS - WARM_UP) for name, seconds in passed.items()})

    found: dict[str, float] = {}
    Throughput.on_train_batch_end = after_step  # type: ignore[method-assign,assignment]
    register_configs()
    shutil.rmtree(out / "run", ignore_errors=True)
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        fit(typed(compose("train", [*overrides(out, work), "run.threads=2"]), TrainConfig))
    print(json.dumps(found))


def compare(systems: Iterable[tuple[str, str | None]], times: int, *arguments: Any) -> str:
    """A line for each, ours last: rate, spread, memory, and how many times that of each ours is."""
    found: dict[tuple[str, str | None], list[tuple[float, float]]] = {system: [] for system in systems}
    for _ in range(times):
        for system, keep in found:
            found[system, keep].append(measure(system, keep, *arguments))
    ours = statistics.median(rate for rate, _ in found[OURS, None])
    lines = [f"{arguments[0]:<34}{'examples/s':>12}{'±':>8}{'MB':>8}{'trainer to it':>15}"]
    for (system, keep), runs in found.items():
        rate, spread = statistics.median(rate for rate, _ in runs), statistics.pstdev(rate for rate, _ in runs)
        name = f"{system}{', kept' if keep else ''}"
        lines.append(f"{name:<34}{rate:>12,.0f}{spread:>8,.0f}{max(mb for _, mb in runs):>8,.0f}{ours / rate:>14.2f}x")
    return "\n".join(lines)


def parts_of_a_step(times: int, out: Path, work: str) -> str:
    """A line: milliseconds of each, and what share the rest is."""
    command = [sys.executable, __file__, str(out), "--part", "split", "--works", work]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(times)]
    found = [json.loads(run.stdout.splitlines()[-1]) for run in runs]
    parts = ", ".join(f"{name} {statistics.median(run[name] for run in found):.1f}" for name in PARTS)
    shares = [run["rest"] / sum(run.values()) for run in found]
    return f"ms a step: {parts}: {statistics.median(shares):.1%} of it, {min(shares):.1%} to {max(shares):.1%}"


def main(arguments: argparse.Namespace) -> None:
    from workload import write, write_joined

    out: Path = arguments.out
    peers = [TORCHREC, TORCHREC_ON_TWO, TORCH, *([TFRS] if arguments.tfrs else [])]
    systems: list[tuple[str, str | None]] = [(name, None) for name in (OURS, OURS_ON_TWO, BARE, PRODUCTS, *peers)]
    systems += [(name, arguments.keep) for name in peers if arguments.keep]
    for work in arguments.works:
        if not (out / f"{work}.parquet").exists():
            write(out / work, work, STEPS * BATCH)
            write_joined(out / work, work, out / f"{work}.parquet")
        print(compare(systems, arguments.times, work, out, arguments.seconds, arguments.tfrs), flush=True)
        print(parts_of_a_step(arguments.times, out, work) + "\n", flush=True)
    print(f"{os.cpu_count()} cores, {platform.machine()}, medians of {arguments.times}, {date.today()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--works", nargs="+", choices=list(COLUMNS), default=list(COLUMNS))
    parser.add_argument("--tfrs", help="a Python that has tensorflow-recommenders")
    parser.add_argument("--keep", help="path of libjemalloc.so.2")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--part", choices=["loop", "products", "split"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part is None:
        main(given)
    else:
        {"loop": bare_loop, "products": products_alone, "split": split}[given.part](given.out, given.works[0])
