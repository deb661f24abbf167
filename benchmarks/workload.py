"""The "features" and "ids" work of the speed benchmarks, as a prepared folder after docs/prepared_folder.md.

    python benchmarks/workload.py features OUT --rows 2000000 [--joined FILE]

features: user id, 4 categoricals, a history of 0 to 20 items and 4 numerics; item id, a category, 3 numerics and a
vector of 32. ids: user id and item id. A million users and items each, Zipf-distributed, with nothing to learn.
--joined writes the training events once more, each with its item's features beside it, for what knows no catalogue.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm
from works import CATEGORICALS, COLUMNS, ITEM_CATEGORIES, ITEM_NUMERICS, ITEMS, NUMERICS, TEXT, USERS

from trainer.data.lists import lists_of
from trainer.data.schema import (
    ITEM_ROW,
    RAW_ITEM_ID,
    RAW_USER_ID,
    SEEN,
    TARGETS,
    TRAIN_COUNT,
    VALIDATION_COUNT,
    Feature,
    Schema,
)

ROW_GROUP, HELD_OUT = 16_384, 1_000


def features(work: str) -> tuple[Feature, ...]:
    """What the two towers take."""
    user = Feature("user_id", "query", "id", table="user_id", num_embeddings=USERS + 1)
    item = Feature("item_id", "candidate", "id", table="item_id", num_embeddings=ITEMS + 1)
    if work == "ids":
        return user, item
    categoricals = [
        Feature(name, "query", "categorical", table=name, num_embeddings=size + 1)
        for name, size in CATEGORICALS.items()
    ]
    history = Feature("history", "query", "history", table="item_id", num_embeddings=ITEMS + 1, length=20)
    numerics = [Feature(name, "query", "numeric") for name in NUMERICS]
    category = Feature(
        "item_category", "candidate", "categorical", table="item_category", num_embeddings=ITEM_CATEGORIES + 1
    )
    item_numerics = [Feature(name, "candidate", "numeric") for name in ITEM_NUMERICS]
    text = Feature("item_text", "candidate", "vector", dim=TEXT)
    return user, *categoricals, history, *numerics, item, category, *item_numerics, text


class Zipf:
    """Numbers below `size`, the k-th of a permuted order with probability ~ 1 / (k + 1)^exponent."""

    def __init__(self, size: int, exponent: float, rng: np.random.Generator) -> None:
        cumulative = np.cumsum(np.arange(1, size + 1) ** -exponent)
        self._cumulative, self._place, self._rng = cumulative / cumulative[-1], rng.permutation(size), rng

    def draw(self, count: int) -> np.ndarray:
        """int32 [count]."""
        return self._place[np.searchsorted(self._cumulative, self._rng.random(count))].astype(np.int32)


def event_rows(work: str, rows: int, users: Zipf, items: Zipf, rng: np.random.Generator) -> dict[str, pa.Array]:
    """Columns of a training row group."""
    columns = {"user_id": pa.array(1 + users.draw(rows)), ITEM_ROW: pa.array(items.draw(rows))}
    if work == "features":
        for name, size in CATEGORICALS.items():
            columns[name] = pa.array(rng.integers(1, size + 1, rows).astype(np.int32))
        columns["history"] = _lists(rng.integers(0, 21, rows), items)
        for name in NUMERICS:
            columns[name] = pa.array(rng.standard_normal(rows, np.float32))
    return columns


def _lists(lengths: np.ndarray, items: Zipf) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(items.draw(int(offsets[-1]))))


def write(folder: Path, work: str, rows: int, seed: int = 0) -> None:
    """Writes the prepared folder."""
    rng = np.random.default_rng(seed)
    users, items = Zipf(USERS, 0.8, rng), Zipf(ITEMS, 1.0, rng)
    splits = {"train": rows, "validation": HELD_OUT, "test": HELD_OUT}
    counts = np.zeros(ITEMS, np.int64)
    for split, total in splits.items():
        (folder / "events" / split).mkdir(parents=True)
        writer = None
        for start in tqdm(range(0, total, ROW_GROUP), desc=split, disable=split != "train"):
            columns = event_rows(work, min(ROW_GROUP, total - start), users, items, rng)
            if split == "train":
                np.add.at(counts, columns[ITEM_ROW].to_numpy(), 1)
            else:
                columns[RAW_USER_ID] = columns["user_id"].cast(pa.int64())
                columns[SEEN] = _lists(np.zeros(len(columns[ITEM_ROW]), np.int64), items)
                columns[TARGETS] = lists_of(np.arange(len(columns[ITEM_ROW]) + 1), columns.pop(ITEM_ROW))
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(
                folder / "events" / split / "part-00000.parquet", table.schema, compression="zstd",
                compression_level=1, use_dictionary=False,
            )  # fmt: skip
            writer.write_table(table)
        writer.close()
    catalog = {
        RAW_ITEM_ID: pa.array(np.arange(ITEMS)),
        TRAIN_COUNT: pa.array(counts),
        VALIDATION_COUNT: pa.array(np.zeros(ITEMS, np.int64)),
        "item_id": pa.array(np.arange(1, ITEMS + 1, dtype=np.int32)),
        "item_category": pa.array(rng.integers(1, ITEM_CATEGORIES + 1, ITEMS).astype(np.int32)),
        **{name: pa.array(rng.standard_normal(ITEMS, np.float32)) for name in ITEM_NUMERICS},
        "item_text": pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(ITEMS * TEXT, np.float32)), TEXT),
    }
    kept = {feature.name for feature in features(work)} | {RAW_ITEM_ID, TRAIN_COUNT, VALIDATION_COUNT}
    table = pa.table({name: column for name, column in catalog.items() if name in kept})
    with pa.ipc.new_file(folder / "catalog.arrow", table.schema) as file:
        file.write_table(table)
    schema = Schema(features(work), ITEMS, splits, 0, 0, "int64", "int64", fingerprint=f"{work} {rows} {seed}")
    (folder / "schema.json").write_text(schema.to_json())


def write_joined(folder: Path, work: str, path: Path) -> None:
    """Writes the training events as peers read them: items by their ids, which are 1 + their catalogue rows."""
    with pa.memory_map(str(folder / "catalog.arrow")) as file:
        catalog = pa.ipc.open_file(file).read_all()
    of_items = [name for name in COLUMNS[work] if name in catalog.column_names]
    events = pq.ParquetFile(folder / "events" / "train" / "part-00000.parquet")
    writer = None
    for batch in tqdm(events.iter_batches(4 * ROW_GROUP), desc="joined"):
        columns = {name: batch[name] for name in batch.schema.names if name != ITEM_ROW}
        if "history" in columns:
            history = columns["history"]
            columns["history"] = pa.ListArray.from_arrays(history.offsets, pc.add(history.values, 1))
        items = catalog.select(of_items).take(batch[ITEM_ROW])
        columns |= {name: items[name].combine_chunks() for name in of_items}
        table = pa.table({name: columns[name] for name in COLUMNS[work]})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["features", "ids"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--joined", type=Path)
    arguments = parser.parse_args()
    write(arguments.out, arguments.work, arguments.rows)
    if arguments.joined:
        write_joined(arguments.out, arguments.work, arguments.joined)
    print(f"written {arguments.out}")
