"""Seconds and peak memory of the loss, forward and backward: F.cross_entropy on all logits, and sampled_softmax.

    python benchmarks/loss.py [--threads 2] [--batches 4096 32768]

Positives are drawn from a Zipf distribution over a million items, dim 64. `distinct` gives every draw a column of its
own, as cross_entropy does; `merged` one column to each distinct item, finding them included. Each runs in a process of
its own; times are the median of the steps, after one that does not count. At 32,768 the steps of cross_entropy add
12,310 MB to the process, distinct 66 and merged 90 (2 cores without GPU, 2026-11-27).
"""

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from datetime import date
from multiprocessing import get_context

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.loss import Candidates, Queries, Workspace, sampled_softmax

ITEMS, DIM, TEMPERATURE = 1_000_000, 64, 0.05


def plain(query: Tensor, item: Tensor, rows: Tensor, workspace: Workspace) -> Tensor:
    return F.cross_entropy(query @ item.T, torch.arange(len(query)))


def distinct(query: Tensor, item: Tensor, rows: Tensor, workspace: Workspace) -> Tensor:
    ones = torch.ones(len(query))
    queries = Queries(query, torch.arange(len(query)), ones, ones / len(query))
    return sampled_softmax(queries, Candidates(item, ones, torch.zeros(len(item))), workspace)


def merged(query: Tensor, item: Tensor, rows: Tensor, workspace: Workspace) -> Tensor:
    columns, positive, count = torch.unique(rows, return_inverse=True, return_counts=True)
    place = torch.empty_like(columns).scatter_(0, positive, torch.arange(len(rows)))
    queries = Queries(query, positive, count[positive].float(), torch.full((len(query),), 1 / len(query)))
    return sampled_softmax(queries, Candidates(item[place], count.float(), torch.zeros(len(columns))), workspace)


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor, Workspace], Tensor]] = {
    "cross_entropy": plain, "distinct": distinct, "merged": merged,
}  # fmt: skip


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, batch: int, threads: int) -> tuple[float, float, float]:
    """Median seconds of a step, MB that the steps add to the process, and the loss."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rows = (ITEMS ** torch.rand(batch)).long()
    query = F.normalize(torch.randn(batch, DIM)).div_(TEMPERATURE).requires_grad_()
    drawn, of_batch = torch.unique(rows, return_inverse=True)
    item = F.normalize(torch.randn(len(drawn), DIM))[of_batch].requires_grad_()
    workspace, seconds, before = Workspace(), [], peak_mb()
    for _ in range(10 if batch <= 8192 else 3):
        query.grad = item.grad = None
        begin = time.perf_counter()
        loss = FORMS[name](query, item, rows, workspace)
        loss.backward()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:]), peak_mb() - before, loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[4096, 32768])
    arguments = parser.parse_args()
    print(f"{date.today()}, {os.cpu_count()} cores {platform.machine()}, {arguments.threads} threads, dim {DIM}")
    print(f"{'batch':>8}  {'form':<14}{'seconds':>9}{'ratio':>7}{'peak MB':>9}{'loss':>9}")
    for batch in arguments.batches:
        first = None
        for name in FORMS:
            with get_context("spawn").Pool(1) as pool:
                seconds, memory, loss = pool.apply(measure, (name, batch, arguments.threads))
            first = first or seconds
            print(
                f"{batch:>8,}  {name:<14}{seconds:>9.3f}{seconds / first:>7.2f}{memory:>9,.0f}{loss:>9.4f}", flush=True
            )


if __name__ == "__main__":
    main()
