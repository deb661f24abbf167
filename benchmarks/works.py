"""What the "ids" and the "features" work read, in names and sizes; and how the loops of peers read it, batch by batch.

Nothing but pyarrow and numpy is imported, so that every peer's environment can use it.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USERS = ITEMS = 1_000_000
CATEGORICALS = {"user_age_bucket": 100, "user_country": 200, "user_device": 8, "hour_of_day": 24}
NUMERICS = [f"user_num_{k}" for k in range(4)]
ITEM_CATEGORIES = 1000
ITEM_NUMERICS = [f"item_num_{k}" for k in range(3)]
TEXT = 32
DIM, CATEGORICAL_DIM, HIDDEN, TEMPERATURE = 64, 16, 256, 0.05
TABLE_RATE, DENSE_RATE = 0.05, 1e-3
BATCH = 4096
COLUMNS = {
    "ids": ["user_id", "item_id"],
    "features": [
        "user_id",
        *CATEGORICALS,
        "history",
        *NUMERICS,
        "item_id",
        "item_category",
        *ITEM_NUMERICS,
        "item_text",
    ],
}
"""Of the file that peers read: an event a row, with its item's features beside it. Ids are from 1."""

Batch = dict[str, Any]
"""Arrays by column; of the history its values and its offsets, from 0."""


def batches(path: str, work: str, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
    """For ever, row group after row group; a rank reads its own, and what fills no batch is left out."""
    file = pq.ParquetFile(path)
    while True:
        for group in range(rank, file.num_row_groups, world_size):
            rows = file.read_row_group(group, COLUMNS[work], use_threads=False).combine_chunks()
            columns = {name: rows[name].chunk(0) for name in COLUMNS[work]}
            for start in range(0, len(rows) - size + 1, size):
                yield {name: _numpy(column.slice(start, size)) for name, column in columns.items()}


def _numpy(column: pa.Array) -> Any:
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    if pa.types.is_list(column.type):
        offsets = column.offsets.to_numpy()  # `flatten` would walk through the lists one by one
        return column.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]
    return column.to_numpy()


def ahead(made: Iterator[Any], most: int = 4) -> Iterator[Any]:
    """The same, made in a thread."""
    queue: Queue[Any] = Queue(most)
    Thread(target=lambda: [queue.put(one) for one in made], daemon=True).start()
    while True:
        yield queue.get()


def peer_arguments() -> argparse.ArgumentParser:
    """Of a peer's loop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=COLUMNS)
    parser.add_argument("file")
    parser.add_argument("--seconds", type=float, default=10)
    return parser


def timed(step: Callable[[], Any], seconds: float, agreed: Callable[[int], int] = int) -> dict[str, float]:
    """Examples a second of a loop's steps, after 15 that do not count.

    Args:
        step: one of them; returns its loss.
        seconds: how long, about.
        agreed: the number of steps on which several ranks settle.
    """
    for _ in range(10):
        float(step())
    began = time.perf_counter()
    for _ in range(5):
        float(step())
    steps = agreed(max(5, int(5 * seconds / (time.perf_counter() - began))))
    began = time.perf_counter()
    losses = [step() for _ in range(steps)]
    last = float(losses[-1])  # waits for what is under way
    rate = steps * BATCH / (time.perf_counter() - began)
    return {"examples_per_second": rate, "steps": steps + 15, "loss": float(np.mean([last, *map(float, losses[-20:])]))}


def tell(found: dict[str, float]) -> None:
    """As throughput.py reads it: the last line of stdout."""
    print(json.dumps(found), flush=True)
