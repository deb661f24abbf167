"""What CPU ranks take to sum up bags and rows at their owners, and to average gradients: ours beside gloo's own.

    python benchmarks/exchange.py

Between processes of a thread each on this machine. Sizes are those of the work of features (works.py) over two ranks:
bags of all row-wise tables, gradients of candidates, gradients of the layers. Bytes are those that go over `lo`. A bag
has one id, those of one feature 0 to 20; what the route of its parts takes is in the time.
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
from trainer.runtime.row_wise import route, start_parts_to_bags

BAGS, WIDTHS, UNIT, LIST = 2048, torch.tensor([64, 16, 16, 16, 16, 64, 64, 16]), 16, 5
"""Of a rank, of each feature; widths; the largest that divides them; the feature of several ids."""
CANDIDATES, LAYERS = (1500, 64), 112_000
"""Rows of a rank and their width, and numbers."""
TIMES = 40


def reduce_scatter(everyone: Tensor) -> None:
    own = everyone.new_empty(len(everyone) // dist.get_world_size(), everyone.size(1))
    dist.reduce_scatter_single(own, everyone)


def parts_to_bags(parts: Tensor, there_RWSF: Tensor) -> None:
    rank = dist.get_rank()
    found = route(there_RWSF[:, rank].transpose(1, 2), there_RWSF[rank].permute(2, 0, 1), WIDTHS // UNIT)
    start_parts_to_bags(parts, found, UNIT)()


def there_are(ranks: int) -> Tensor:
    """Which parts of bags each rank has of each rank's: bool [R, W, S, F], the same on all."""
    same = torch.Generator().manual_seed(0)
    ids = torch.ones(ranks, BAGS, len(WIDTHS), dtype=torch.long)
    ids[..., LIST] = torch.randint(21, ids[..., LIST].shape, generator=same)
    owner = torch.randint(ranks, (20, *ids.shape), generator=same)
    counts = torch.arange(20).view(-1, 1, 1, 1) < ids
    return torch.stack([((owner == rank) & counts).any(0) for rank in range(ranks)])


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
        ranks = processes.world_size
        bags, candidates = (
            torch.randn(ranks * BAGS, int(WIDTHS.sum())),
            torch.randn(ranks * CANDIDATES[0], CANDIDATES[1]),
        )
        layers, there_RWSF = torch.randn(LAYERS), there_are(ranks)
        exchanges: dict[str, Callable[[], object]] = {
            "bags: reduce_scatter": lambda: reduce_scatter(bags),
            "bags: the parts that there are": lambda: parts_to_bags(bags, there_RWSF),
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
