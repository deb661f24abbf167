"""How a step's time, memory and exchange grow with ranks, rows, and the global batch.

    python benchmarks/scaling.py OUT

makes up data in OUT (50,000 users, whose rows are spread over tables of any size; 20,000 items), and trains some steps
of the default model for each line, ranks with a thread each. Bytes sent are those of trainer.plan, which
tests/test_plan.py counts; ranks beyond the machine's cores wait for one another, so that only work in all can be told
of them: ms times cores are an upper bound of it.
"""

import argparse
import os
import platform
from collections.abc import Iterable
from datetime import date
from pathlib import Path

from steps import Work, make_data, measured, plan

from trainer.runtime.quiet import quieten_libraries

ROWS, BATCH, SEVERAL = 1_000_000, 4096, (1, 2, 4, 8)
TABLES = {
    "strong scaling: 4,096 rows in all": [Work(ranks, ROWS, BATCH // ranks, steps=30) for ranks in SEVERAL],
    "weak scaling: 1,024 rows a rank": [Work(ranks, ROWS, 1024, steps=30) for ranks in SEVERAL],
    "rows of the users' table, 32 wide": [
        Work(2, rows, 1024, dim=32, steps=30) for rows in (1_000_000, 10_000_000, 100_000_000)
    ],
    "global batch": [Work(1, ROWS, batch, steps=20) for batch in (1024, 2048, 4096, 8192, 16_384, 32_768)],
    "global batch, 1,024 uniform negatives instead of the batch's": [
        Work(1, ROWS, batch, negatives=1024, steps=20) for batch in (1024, 2048, 4096, 8192, 16_384, 32_768)
    ],
}


def lines(folder: Path, works: Iterable[Work]) -> Iterable[str]:
    yield (f"{'ranks':>5}{'rows':>13}{'batch a rank':>14}{'ms a step':>11}{'examples/s':>12}{'MiB a rank':>12}"
           f"{'MiB sent':>10}")  # fmt: skip
    for work in works:
        found, sent = measured(folder, work), sum(exchange.sent for exchange in plan(folder, work).sent)
        yield (f"{work.ranks:>5}{work.rows:>13,}{work.batch:>14,}{1000 * found.seconds:>11,.1f}"
               f"{work.ranks * work.batch / found.seconds:>12,.0f}{found.anonymous / 2**20:>12,.0f}"
               f"{sent / 2**20:>10.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    quieten_libraries()
    make_data(out)
    for title, works in TABLES.items():
        print(title, flush=True)
        for line in lines(out, works):
            print(line, flush=True)
        print()
    print(f"{os.cpu_count()} cores, {platform.machine()}, {date.today()}")


if __name__ == "__main__":
    main()
