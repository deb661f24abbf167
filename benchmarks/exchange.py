"""What CPU ranks take to sum up rows at their owners, and to average gradients: ours beside gloo's own collectives.

    python benchmarks/exchange.py

Between processes of a thread each on this machine. Sizes are those of the work of features (works.py) over two ranks:
bags of all row-wise tables, gradients of candidates, gradients of the layers. Bytes are those that go over `lo`.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.runtime.gather import start_sum_to_owners
from trainer.runtime.gloo import average
from trainer.runtime.processes import find_processes, joined

BAGS, CANDIDATES, LAYERS = (2048, 272), (1500, 64), 112_000
"""Rows of a rank and their width, twice, and numbers."""
TIMES = 40


def reduce_scatter(everyone: Tensor) -> None:
    own = everyone.new_empty(len(everyone) // dist.get_world_size(), everyone.size(1))
    dist.reduce_scatter_single(own, everyone)


def sent() -> int:
    """Bytes over the loopback since the machine started."""
    with open("/proc/net/dev") as interfaces:
        [line] = (line for line in interfaces if line.strip().startswith("lo:"))
    return int(line.split()[1])


def measured(exchange: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds, the median, and MB that a rank sends."""
    took = []
    for _ in range(5):
        exchange()
    dist.barrier()
    before = sent()
    for _ in range(TIMES):
        began = time.perf_counter()
        exchange()
        took.append(1000 * (time.perf_counter() - began))
    dist.barrier()
    return statistics.median(took), (sent() - before) / TIMES / dist.get_world_size() / 1e6


def work() -> None:
    """One rank."""
    processes = find_processes("cpu", 1)
    with joined(processes):
        bags, candidates = (torch.randn(processes.world_size * rows, width) for rows, width in (BAGS, CANDIDATES))
        layers = torch.randn(LAYERS)
        exchanges: dict[str, Callable[[], object]] = {
            "bags: reduce_scatter": lambda: reduce_scatter(bags),
            "bags: all-to-all, summed up": lambda: start_sum_to_owners(bags)(),
            "candidates: reduce_scatter": lambda: reduce_scatter(candidates),
            "candidates: all-to-all, summed up": lambda: start_sum_to_owners(candidates)(),
            "layers: all_reduce": lambda: dist.all_reduce(layers),
            "layers: all-to-all, summed up, gathered": lambda: average(layers),
        }
        for name, exchange in exchanges.items():
            ms, megabytes = measured(exchange)
            if processes.is_first:
                print(f"{processes.world_size:>5}  {name:<42}{ms:>6.2f}{megabytes:>10.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    print(f"ranks  {'':<42}{'ms':>6}{'MB sent':>10}", flush=True)
    for ranks in parser.parse_args().ranks:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), __file__]
        subprocess.run([sys.executable, *command], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    print(f"{os.cpu_count()} cores, {platform.machine()}, {date.today()}")


if __name__ == "__main__":
    work() if "RANK" in os.environ else main()
