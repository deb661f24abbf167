"""How long training waits for a checkpoint, of two tables of a million rows of 64, trained on two ranks.

    python benchmarks/checkpoints.py OUT

The same steps thrice: without checkpoints, with one every 25 steps in the background, and waiting for each. Beside them
torch.save and torch.load of tensors of as many bytes, in one process.
"""

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch
import workload

BATCH, STEPS, EVERY = 4096, 200, 25
RUNS = {
    "none but the last": [],
    "in the background": [f"run.checkpoint_every_steps={EVERY}"],
    "waited for": [f"run.checkpoint_every_steps={EVERY}", "run.save_in_background=false"],
}


def train(data: Path, run_dir: Path, overrides: list[str]) -> tuple[list[float], list[float]]:
    """Seconds of each step but the first 20, saving included, and what `save` kept training waiting each time."""
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trainer.train",
         f"data.dir={data}", f"run.dir={run_dir}", f"data.global_batch_size={BATCH}", "run.epochs=1",
         "run.monitor=null", "run.log_every=1", "run.threads=1", "model.query.hidden=[]", "model.candidate.hidden=[]",
         *overrides],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    (log,) = run_dir.glob("logs/version_0/metrics.csv")
    lines = list(csv.DictReader(log.read_text().splitlines()))
    rates = [float(line["train/examples_per_second"]) for line in lines if line["train/examples_per_second"]]
    stalls = [float(line["checkpoint/stall_seconds"]) for line in lines if line["checkpoint/stall_seconds"]]
    return [BATCH / rate for rate in rates[20:]], stalls


def plain(folder: Path, size: int) -> tuple[float, float]:
    """Seconds that torch.save, to the disk, and torch.load take for so many bytes."""
    tensor, path = torch.rand(size // 4), folder / "plain.pt"
    start = time.perf_counter()
    with path.open("wb") as file:
        torch.save(tensor, file)
        os.fsync(file.fileno())
    saved = time.perf_counter()
    torch.load(path)
    return saved - start, time.perf_counter() - saved


def main(out: Path) -> None:
    data = out / "ids"
    if not data.exists():
        workload.write(data, "ids", BATCH * STEPS)
    print(f"{'checkpoints':<20}{'step ms':>9}{'mean ms':>9}{'over none':>11}{'wait ms':>9}{'steps':>7}")
    base = 0.0
    for name, overrides in RUNS.items():
        steps, stalls = train(data, out / name.replace(" ", "_"), overrides)
        step, mean = statistics.median(steps), statistics.fmean(steps)
        base = base or mean
        waits = stalls[1:-1] or stalls  # the first makes the memory of the copies, the last ends the run
        wait = statistics.median(waits)
        times = f"{1e3 * step:>9.1f}{1e3 * mean:>9.1f}{mean / base - 1:>11.1%}"
        print(f"{name:<20}{times}{1e3 * wait:>9.1f}{wait / step:>7.1f}")
    newest = max((out / "waited_for" / "checkpoints").glob("step-*"))
    size = sum(file.stat().st_size for file in newest.iterdir())
    saved, loaded = plain(out, size)
    print(f"a checkpoint has {size / 1e6:,.0f} MB; plain torch.save {saved:.2f} s, torch.load {loaded:.2f} s")
    print(f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, {date.today()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    main(parser.parse_args().out)
