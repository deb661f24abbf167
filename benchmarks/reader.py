"""How fast batches are made, where the time goes, and how much faster than training takes them.

    python benchmarks/reader.py OUT            # writes OUT/features (2 million rows), trains on it, reads it
    python benchmarks/reader.py OUT --no-train

The "features" work of workload.py, batches of 4096 in 64 streams, one reading thread, one rank. A part of the time is
what passes in its functions, less what passes in those of other parts that they call.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from stopwatch import Stopwatch
from workload import write

from trainer.config import ModelConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.events import TrainingReader
from trainer.data.order import TrainingOrder
from trainer.data.row_groups import RowGroups, open_events
from trainer.data.schema import read_schema

BATCH, STREAMS, STEPS, REPEATS = 4096, 64, 300, 5
PARTS = ("scan", "decode", "open and check", "shuffle", "cut and join up", "join items", "assemble")


def make_reader(folder: Path) -> TrainingReader:
    """As trainer.train makes it."""
    schema = read_schema(folder)
    assembler = BatchAssembler(schema, schema.select(None, None), Catalog(folder, schema), ModelConfig())
    files = open_events(folder, schema, "train", assembler.columns("event"))
    return TrainingReader(files, "event", assembler, TrainingOrder(files.sizes, BATCH, STREAMS, 0), 0, 1)


def rate(folder: Path) -> float:
    """Rows a second out of the thread that reads ahead, once every stream has its row group."""
    reader = make_reader(folder)
    batches = iter(reader)
    for _ in range(20):
        next(batches)
    begin = time.perf_counter()
    for _ in range(STEPS):
        next(batches)
    seconds = time.perf_counter() - begin
    reader.close()
    return STEPS * BATCH / seconds


def parts(folder: Path) -> dict[str, float]:
    """Seconds of each part for STEPS batches, in one thread."""
    watch = Stopwatch()
    watch.watch(pq.ParquetFile, "read_row_group", "decode")
    watch.watch(RowGroups, "read", "open and check")
    watch.watch(TrainingReader, "_shuffled", "shuffle")
    for name in ("sparse", "dense", "train_share"):
        watch.watch(Catalog, name, "join items")
    watch.watch(BatchAssembler, "training_batch", "assemble")
    batches = make_reader(folder).batches(0)
    for _ in range(20):
        next(batches)
    watch.seconds.clear()
    begin = time.perf_counter()
    for _ in range(STEPS):
        next(batches)
    total = time.perf_counter() - begin
    found = {"scan": scan(folder), "cut and join up": total - sum(watch.seconds.values()), **watch.seconds}
    return {part: found[part] for part in PARTS}


def scan(folder: Path) -> float:
    """Seconds to fetch the bytes of STEPS batches from disk, with nothing of them in the page cache."""
    rows = taken = 0
    seconds = 0.0
    for path in sorted((folder / "events" / "train").iterdir()):
        rows += pq.read_metadata(path).num_rows
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            begin = time.perf_counter()
            while some := file.read(1 << 22):
                taken += len(some)
            seconds += time.perf_counter() - begin
    return seconds * STEPS * BATCH / rows


def training_rate(folder: Path, run: Path) -> float:
    """Median of the rows a second that trainer.train logs, one rank with all cores."""
    subprocess.run(
        [sys.executable, "-m", "trainer.train", f"data.dir={folder}", f"run.dir={run}", "run.epochs=1",
         "model.loss.temperature=0.05", f"data.global_batch_size={BATCH}", f"data.streams={STREAMS}"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    with next((run / "logs").glob("version_*/metrics.csv")).open() as file:
        rates = [row["train/examples_per_second"] for row in csv.DictReader(file)]
    return statistics.median(float(value) for value in rates if value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--no-train", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.out / "features"
    if not (folder / "schema.json").exists():
        write(folder, "features", 2_000_000)
    consumed = None if arguments.no_train else training_rate(folder, arguments.out / f"run-{os.getpid()}")
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    rates = sorted(rate(folder) for _ in range(REPEATS))
    shares = parts(folder)
    reader = make_reader(folder)
    print(f"\nreader     {statistics.median(rates):>10,.0f} rows/s  ({rates[0]:,.0f} to {rates[-1]:,.0f} in {REPEATS})")
    if consumed:
        print(f"training   {consumed:>10,.0f} rows/s  (one rank, {os.cpu_count()} cores)")
        print(f"ratio      {statistics.median(rates) / consumed:>10.1f}")
    print(f"row groups {reader.memory / 1e6:>10,.0f} MB held at most")
    for name, seconds in shares.items():
        print(f"  {name:<22}{seconds / STEPS * 1e3:>8.2f} ms a batch {seconds / sum(shares.values()):>6.0%}")


if __name__ == "__main__":
    main()
