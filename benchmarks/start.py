"""Seconds from the command to the first step of a training, by what they go to, and the memory a process then holds.

    python benchmarks/start.py OUT

makes up data in OUT and starts trainer.train, over one and over two processes, three times each; medians.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

TIMES = 3
STAGES = ("Python and imports", "config and data opened", "ranks joined", "tables sharded and filled", "first step")


def watched() -> None:
    """trainer.train in this process, which tells on stderr when each stage is over."""
    from trainer.first_imports import first_imports

    with first_imports():
        from trainer.runtime import fit, strategy
        from trainer.runtime.module import RetrievalModule

    _tell_after(STAGES[0], lambda: None)()
    fit._build = _tell_after(STAGES[1], fit._build)
    strategy.join = _tell_after(STAGES[2], strategy.join)
    fit.shard = _tell_after(STAGES[3], fit.shard)
    first_step = _tell_after(STAGES[4], RetrievalModule.on_before_optimizer_step)

    @wraps(first_step)
    def last(*arguments: Any) -> None:
        first_step(*arguments)
        os._exit(0)  # what comes after is not measured

    RetrievalModule.on_before_optimizer_step = last  # type: ignore[method-assign]
    from trainer.config import run_command
    from trainer.train import main

    run_command(main)


def _tell_after(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    told = [os.environ.get("RANK", "0") != "0"]

    @wraps(function)
    def telling(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        if not told[0]:
            told[0] = True
            status = Path("/proc/self/status").read_text().splitlines()
            resident = next(int(line.split()[1]) / 1000 for line in status if line.startswith("VmRSS"))
            print("\n" + json.dumps({"stage": stage, "at": time.time(), "MB": resident}), file=sys.stderr, flush=True)
        return result

    return telling


def measure(out: Path, ranks: int) -> tuple[list[float], float]:
    """Seconds that each stage took, and MB after the last."""
    shutil.rmtree(out / "run", ignore_errors=True)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    overrides = [f"data.dir={out}", f"run.dir={out / 'run'}", "run.epochs=1", "run.monitor=null"]
    began = time.time()
    command = [sys.executable, *torchrun, __file__, *overrides, "run.accelerator=cpu"]
    environment = os.environ | {"START": "watched"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('{"stage"')]
    assert [one["stage"] for one in told] == list(STAGES), done.stderr[-2000:]
    at = [began, *(one["at"] for one in told)]
    return [end - start for start, end in pairwise(at)], told[-1]["MB"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    from steps import make_data  # which imports torch: that is what is measured

    make_data(out)
    found = {ranks: [measure(out, ranks) for _ in range(TIMES)] for ranks in (1, 2)}
    print(f"{'seconds':<28}{'1 process':>12}{'2 under torchrun':>20}")
    for place, stage in enumerate(STAGES):
        took = [statistics.median(run[0][place] for run in found[ranks]) for ranks in (1, 2)]
        print(f"{stage:<28}{took[0]:>12.2f}{took[1]:>20.2f}")
    wholes = [statistics.median(sum(run[0]) for run in found[ranks]) for ranks in (1, 2)]
    print(f"{'in all':<28}{wholes[0]:>12.2f}{wholes[1]:>20.2f}")
    held = [statistics.median(run[1] for run in found[ranks]) for ranks in (1, 2)]
    print(f"{'MB of the first process':<28}{held[0]:>12,.0f}{held[1]:>20,.0f}")
    print(f"{os.cpu_count()} cores, {platform.machine()}, medians of {TIMES}, {date.today()}")


if __name__ == "__main__":
    watched() if os.environ.get("START") == "watched" else main()
