"""The memory that trainer.plan says of a rank beside what CPU ranks take.

python benchmarks/plan.py OUT           makes up data in OUT, then trains some steps with 1 and 10 million users' rows

Both are what is added to a base process: one that trains likewise, with 60,000 rows and batches of 64.
"""

import argparse
from pathlib import Path

from steps import Work, make_data, measured, plan

BASE = 60_000, 64
CASES = [(ranks, rows, batch) for ranks in (1, 2) for rows in (1_000_000, 10_000_000) for batch in (1024, 8192)]


def planned(folder: Path, work: Work) -> float:
    """Bytes of a rank, its libraries aside."""
    found = plan(folder, work)
    return sum(found.memory.values()) + found.host["row groups of the reader"] / work.ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    make_data(out)
    print(f"{'ranks':>5}{'rows':>12}{'batch a rank':>14}{'planned MiB':>13}{'measured':>10}{'error':>9}", flush=True)
    bases = {}
    for ranks in (1, 2):
        base = Work(ranks, *BASE)
        bases[ranks] = planned(out, base), measured(out, base).anonymous
    for ranks, rows, batch in CASES:
        work = Work(ranks, rows, batch)
        asked = planned(out, work) - bases[ranks][0]
        took = measured(out, work).anonymous - bases[ranks][1]
        print(f"{ranks:>5}{rows:>12,}{batch:>14,}{asked / 2**20:>13,.0f}{took / 2**20:>10,.0f}"
              f"{(asked - took) / took:>+9.1%}", flush=True)  # fmt: skip
    told = [f"{took / 2**20:,.0f} MiB on {ranks}" for ranks, (_, took) in bases.items()]
    print(f"a base process takes {', '.join(told)} ranks")


if __name__ == "__main__":
    main()
