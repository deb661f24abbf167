"""Both towers of the work of features (works.py), forward and backward, as they are and as torch.compile makes them.

    python benchmarks/towers.py [--device cuda]

They take turns, each time with another number of rows, as batches have; figures are medians in milliseconds. What
compiling takes is the first call's time.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Mapping
from datetime import date

import torch
from torch import Tensor
from workload import features
from works import BATCH

from trainer.config import ModelConfig
from trainer.model.tower import Tower
from trainer.model.two_tower import TwoTower

TIMES = 40


def model(device: str) -> TwoTower:
    """With its tables on the meta device, which are not used."""
    torch.manual_seed(0)
    made = TwoTower(features("features"), ModelConfig())
    for tower in (made.query_tower, made.candidate_tower):
        tower.to(device)
    return made


def inputs(tower: Tower, rows: int, device: str) -> tuple[Mapping[str, Tensor], Tensor]:
    looked_up = {name: torch.randn(rows, tower.widths[name], device=device, requires_grad=True)
                 for name in tower.sparse_names}  # fmt: skip
    dense = sum(width for name, width in tower.widths.items() if name not in looked_up)
    return looked_up, torch.rand(rows, dense, device=device)


def milliseconds(towers: TwoTower, rows: int, device: str) -> float:
    of_towers = [(tower, *inputs(tower, rows, device)) for tower in (towers.query_tower, towers.candidate_tower)]
    _wait(device)
    began = time.perf_counter()
    for tower, looked_up, dense in of_towers:
        tower(looked_up, dense).sum().backward()
    _wait(device)
    return 1000 * (time.perf_counter() - began)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device = parser.parse_args().device
    torch.set_num_threads(os.cpu_count() or 1)
    plain, compiled = model(device), model(device)
    compiled.compile_towers()
    print(f"compiled in {sum(milliseconds(compiled, rows, device) for rows in (BATCH, BATCH - 1)) / 1000:.1f} s")
    for rows in (BATCH // 16, BATCH // 4, BATCH):
        took = [
            [milliseconds(towers, rows - number, device) for towers in (plain, compiled)] for number in range(TIMES)
        ]
        as_they_are, as_compiled = (statistics.median(column) for column in zip(*took, strict=True))
        print(f"{rows:>6,} rows: {as_they_are:>7.2f} ms as they are, {as_compiled:>7.2f} ms compiled", flush=True)
    print(f"{os.cpu_count()} cores, {platform.machine()}, {device}, {date.today()}")


if __name__ == "__main__":
    main()
