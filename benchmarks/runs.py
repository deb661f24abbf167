"""The commands that a user types, for benchmarks that compare models: each in one process with one thread, several at a
time, since what is learned does not depend on the number of ranks.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import TypeVar

METRICS = ("recall@10", "recall@100", "ndcg@10")
_Result = TypeVar("_Result")


def prepare(folder: Path, *overrides: str) -> Path:
    """Prepares a folder, unless that was done before."""
    if not (folder / "schema.json").exists():
        _command("prepare", *overrides, f"data.dir={folder}")
    return folder


def train(run: Path, data: Path, *overrides: str, cut_offs: Sequence[int] = (10, 20, 100)) -> dict[str, float]:
    """Trains and evaluates, unless that was done before; the metrics, by names such as recall@10."""
    if not (run / "metrics.json").exists():
        _command("train", f"data.dir={data}", f"run.dir={run}", "run.threads=1", *overrides)
        _command("evaluate", f"run.dir={run}", "run.threads=1", f"evaluate.k=[{','.join(map(str, cut_offs))}]")
    return {name.removeprefix("test/"): value for name, value in json.loads((run / "metrics.json").read_text()).items()}


def export(run: Path) -> None:
    """Writes the embeddings of the items and of the test queries, unless that was done before."""
    for side in ("item", "query"):
        if not (run / f"{side}_embeddings").exists():
            _command("export", f"run.dir={run}", f"export.side={side}", "run.threads=1")


def _command(name: str, *overrides: str) -> None:
    began = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", f"trainer.{name}", *overrides],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = f"trainer.{name} {' '.join(overrides)}"
    if result.returncode:
        raise SystemExit(f"{told}\n{result.stdout[-2000:]}{result.stderr[-4000:]}")
    print(f"{time.perf_counter() - began:>6.0f} s  {told}", file=sys.stderr, flush=True)


def at_once(jobs: int, works: Sequence[Callable[[], _Result]]) -> list[_Result]:
    """What each work returns, so many of them running at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work) for work in works]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Aligned text, a line a row."""
    lines = [("", *columns), *((name, *cells) for name, cells in rows.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])] for name, *cells in lines)
    return "\n".join([title, *("   ".join(line).rstrip() for line in aligned)])


def show(text: str, path: Path, began: float) -> None:
    """Prints a benchmark's tables, with how long they took, and writes them down."""
    minutes = (time.perf_counter() - began) / 60
    text += f"\n\n{minutes:.0f} minutes, {os.cpu_count()} cores, {date.today()}\n"
    path.write_text(text)
    print(text, end="")


def mean_and_spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation over seeds; of a single one, itself."""
    spread = f" ±{statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.4f}{spread}"
