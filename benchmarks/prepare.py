"""`prepare` of a large log of one's own: seconds, and the memory of the whole process at its peak.

    python benchmarks/prepare.py OUT                          # 20 million events, 2 million users, 1 million items
    python benchmarks/prepare.py OUT --format csv --layouts event,sequence

Writes made-up events, items and users into OUT once, then runs the command as a user would.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

FILES, CHUNK = 8, 500_000
CONFIG = """
defaults: [tabular_schema, _self_]
source: {source}
events: events
items: items
users: users
features:
  user_id: {{side: query, kind: id}}
  country: {{side: query, kind: categorical}}
  age: {{side: query, kind: numeric}}
  device: {{side: query, kind: categorical}}
  spent: {{side: query, kind: numeric, log1p: true}}
  hour: {{side: query, kind: hour}}
  history: {{side: query, kind: history, length: 20}}
  item_id: {{side: candidate, kind: id}}
  category: {{side: candidate, kind: categorical}}
  tags: {{side: candidate, kind: categorical, separator: "|"}}
  price: {{side: candidate, kind: numeric, log1p: true}}
"""


def names(prefix: str, numbers: np.ndarray) -> pa.Array:
    return pa.array(np.char.add(prefix, numbers.astype(str)))


def event_chunks(events: int, users: int, items: int, rng: np.random.Generator) -> Iterator[pa.Table]:
    """In order of time; users and items Zipf-like, and every user with three events at least."""
    seconds = np.sort(rng.integers(1_700_000_000, 1_730_000_000, events))
    who = np.concatenate([np.tile(np.arange(users), 3), (users * rng.random(events - 3 * users) ** 2).astype(np.int64)])
    who = rng.permutation(who)
    for start in range(0, events, CHUNK):
        rows = slice(start, min(start + CHUNK, events))
        count = rows.stop - rows.start
        yield pa.table({
            "user_id": who[rows] + 10**9,
            "item_id": names("item-", (items * rng.random(count) ** 3).astype(np.int64)),
            "timestamp": seconds[rows],
            "device": names("device-", rng.integers(0, 8, count)),
            "spent": rng.exponential(20, count).round(2),
        })  # fmt: skip


def item_chunks(items: int, rng: np.random.Generator) -> Iterator[pa.Table]:
    for start in range(0, items, CHUNK):
        count = min(CHUNK, items - start)
        tags = np.char.add(np.char.add("tag-", rng.integers(0, 99, count).astype(str)),
                           np.char.add("|tag-", rng.integers(0, 999, count).astype(str)))  # fmt: skip
        yield pa.table({
            "item_id": names("item-", np.arange(start, start + count)),
            "category": names("category-", rng.integers(0, 1000, count)),
            "tags": pa.array(tags),
            "price": rng.exponential(20, count).round(2),
        })  # fmt: skip


def user_chunks(users: int, rng: np.random.Generator) -> Iterator[pa.Table]:
    for start in range(0, users, CHUNK):
        count = min(CHUNK, users - start)
        yield pa.table({
            "user_id": np.arange(start, start + count) + 10**9,
            "country": names("country-", rng.integers(0, 200, count)),
            "age": rng.integers(16, 90, count),
        })  # fmt: skip


def write(folder: Path, form: str, chunks: Iterator[pa.Table], files: int) -> None:
    """Writes the chunks, in order, into some files."""
    folder.mkdir(parents=True)
    tables = list(chunks)
    for number in range(files):
        part = pa.concat_tables(tables[number * len(tables) // files : (number + 1) * len(tables) // files])
        path = folder / f"part-{number:03d}.{form}"
        if form == "csv":
            pa.csv.write_csv(part, path)
        else:
            pq.write_table(part, path)


def peak_of(command: list[str]) -> tuple[float, float]:
    """Seconds that a command takes, and the MB its process holds at the peak, mapped files included."""
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--users", type=int, default=2_000_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--format", choices=["parquet", "csv"], default="parquet")
    parser.add_argument("--layouts", default="event")
    arguments = parser.parse_args()
    source = arguments.out / f"raw-{arguments.format}-{arguments.events}"
    if not source.exists():
        partial, rng = source.with_name(source.name + ".partial"), np.random.default_rng(0)
        shutil.rmtree(partial, ignore_errors=True)
        write(partial / "events", arguments.format,
              event_chunks(arguments.events, arguments.users, arguments.items, rng), FILES)  # fmt: skip
        write(partial / "items", arguments.format, item_chunks(arguments.items, rng), 1)
        write(partial / "users", arguments.format, user_chunks(arguments.users, rng), 1)
        partial.rename(source)
    configs, prepared = arguments.out / "configs" / "data", arguments.out / "prepared"
    configs.mkdir(parents=True, exist_ok=True)
    (configs / "large.yaml").write_text(CONFIG.format(source=source.absolute()))
    shutil.rmtree(prepared, ignore_errors=True)
    seconds, megabytes = peak_of(
        [sys.executable, "-m", "trainer.prepare", "--config-dir", str(configs.parent.absolute()), "data=large",
         f"data.dir={prepared}", f"data.layouts=[{arguments.layouts}]"]
    )  # fmt: skip
    raw, written = (sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
                    for folder in (source, prepared))  # fmt: skip
    print(f"\n{arguments.events:,} events: {arguments.format} ({raw:.2f} GB) -> {arguments.layouts} ({written:.2f} GB)")
    print(f"{seconds:.0f} s, peak {megabytes:,.0f} MB")


if __name__ == "__main__":
    main()
