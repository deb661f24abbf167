"""A catalogue of 10 million items with a 64-dim float16 vector: writing, opening, and what a worker adds in memory.

python benchmarks/catalog.py OUT
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.data.catalog import Catalog
from trainer.data.catalog_file import write_catalog
from trainer.data.schema import RAW_ITEM_ID, TRAIN_COUNT, Feature, Schema

ITEMS, DIM, BATCH, WORKERS = 10_000_000, 64, 4096, 4
SCHEMA = Schema(
    (Feature("item_id", "candidate", "id", table="item_id", num_embeddings=ITEMS + 1),
     Feature("image", "candidate", "vector", dim=DIM, dtype="float16")),
    ITEMS, {"train": ITEMS}, 0, 0, "int64", "string", fingerprint="",
)  # fmt: skip


def items() -> Iterator[pa.RecordBatch]:
    rng = np.random.default_rng(0)
    for start in range(0, ITEMS, 1 << 16):
        rows = np.arange(start, min(start + (1 << 16), ITEMS))
        image = rng.standard_normal(len(rows) * DIM, np.float32).astype(np.float16)
        yield pa.record_batch({
            RAW_ITEM_ID: pa.array(rows).cast(pa.string()),
            TRAIN_COUNT: pa.array(np.ones(len(rows), np.int64)),
            "item_id": pa.array((rows + 1).astype(np.int32)),
            "image": pa.FixedSizeListArray.from_arrays(pa.array(image), DIM),
        })  # fmt: skip


def private_mb() -> float:
    """Memory of this process that no other shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def work(folder: Path) -> None:
    """One worker: opens the catalogue and joins random rows to batches."""
    before, begin = private_mb(), time.perf_counter()
    catalog = Catalog(folder, SCHEMA)
    opened = time.perf_counter() - begin
    rng, feature = np.random.default_rng(os.getpid()), SCHEMA.features[1]
    begin = time.perf_counter()
    for _ in range(500):
        catalog.dense(feature, rng.integers(0, ITEMS, BATCH))
    rate = 500 * BATCH / (time.perf_counter() - begin)
    time.sleep(2)  # so that all have touched their rows
    added = private_mb() - before
    print(f"worker     opened in {opened:.2f} s, {rate:,.0f} random rows/s, adds {added:.0f} MB of its own")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments.out)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path, begin = arguments.out / "catalog.arrow", time.perf_counter()
    write_catalog(path, items())
    size, seconds = path.stat().st_size / 1e9, time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"written    {size:.2f} GB in {seconds:.0f} s, peak {peak:,.0f} MB with the mapped files", flush=True)
    command = [sys.executable, __file__, str(arguments.out), "--worker"]
    for worker in [subprocess.Popen(command) for _ in range(WORKERS)]:
        worker.wait()


if __name__ == "__main__":
    main()
