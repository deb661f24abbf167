"""A small prepared folder, written by hand after the contract of trainer/data/schema.py."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.schema import (
    HISTORY_AGE,
    ITEM_ROW,
    RAW_ITEM_ID,
    RAW_USER_ID,
    SEEN,
    TARGETS,
    TRAIN_COUNT,
    VALIDATION_COUNT,
    WEIGHT,
    Feature,
    Schema,
)

USERS, ITEMS = 60, 40
ROWS = {"train": 1000, "validation": 57, "test": 60}
ROW_GROUP = 130

FEATURES = (
    Feature("user_id", "query", "id", table="user_id", num_embeddings=USERS + 1),
    Feature("age", "query", "numeric", mean=40.0, std=10.0),
    Feature("hour", "query", "categorical", table="hour", num_embeddings=25, per_event=True),
    Feature("history", "query", "history", table="item_id", num_embeddings=ITEMS + 1, length=6),
    Feature("item_id", "candidate", "id", table="item_id", num_embeddings=ITEMS + 1),
    Feature("genres", "candidate", "categorical", table="genres", num_embeddings=6, multi_valued=True, length=4),
    Feature("price", "candidate", "numeric", log1p=True, mean=1.0, std=0.5),
    Feature("text", "candidate", "vector", dim=4),
)
WORDS = Feature("words", "candidate", "categorical", table="words", num_embeddings=9, multi_valued=True, length=5,
                weighted=True)  # fmt: skip
AUDIENCE = Feature("audience", "candidate", "audience", table="user_id", num_embeddings=USERS + 1, length=5)
SEQUENCES, SEQUENCE_LENGTH = 400, 7
SCHEMA = Schema(
    (*FEATURES, WORDS, AUDIENCE), ITEMS, ROWS, SEQUENCES, SEQUENCE_LENGTH, "int64", "string", fingerprint="by hand",
    timestamps=True, sample_weights=True,
)  # fmt: skip


def write_prepared(folder: Path) -> Path:
    """Writes the folder and returns it."""
    rng = np.random.default_rng(0)
    catalog = pa.table(
        {
            RAW_ITEM_ID: pa.array([f"item-{row}" for row in range(ITEMS)]),
            TRAIN_COUNT: pa.array(rng.integers(1, 99, ITEMS)),
            VALIDATION_COUNT: pa.array(np.arange(ITEMS) % 3),
            "item_id": pa.array(np.where(np.arange(ITEMS) % 7 == 0, 0, np.arange(1, ITEMS + 1)).astype(np.int32)),
            "genres": _lists(rng, ITEMS, 4, 6),
            "price": pa.array(rng.exponential(5, ITEMS).astype(np.float32)),
            "words": (words := _lists(rng, ITEMS, 5, 9)),
            "words_weight": _beside(words, rng.exponential(1, len(words.values)).astype(np.float32)),
            "text": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=4 * ITEMS).astype(np.float32)), 4),
            "audience": _lists(np.random.default_rng(1), ITEMS, 5, USERS + 1),
        }
    )
    with pa.ipc.new_file(folder / "catalog.arrow", catalog.schema) as file:
        file.write_table(catalog)
    for split, rows in ROWS.items():
        target = folder / "events" / split
        target.mkdir(parents=True)
        table = _events(rng, split, rows)
        half = rows // 2  # two files, so that row groups are counted over files
        pq.write_table(table.slice(0, half), target / "part-00000.parquet", row_group_size=ROW_GROUP)
        pq.write_table(table.slice(half), target / "part-00001.parquet", row_group_size=ROW_GROUP)
    (folder / "sequences").mkdir()
    pq.write_table(_sequences(rng), folder / "sequences" / "part-00000.parquet", row_group_size=ROW_GROUP)
    (folder / "schema.json").write_text(SCHEMA.to_json())
    return folder


def _events(rng: np.random.Generator, split: str, rows: int) -> pa.Table:
    user = rng.integers(0, USERS, rows)
    age = rng.normal(40, 10, rows).astype(np.float32)
    age[rng.random(rows) < 0.1] = np.nan
    columns = {
        "user_id": pa.array((user + 1).astype(np.int32)),
        "age": pa.array(age),
        "hour": pa.array(rng.integers(1, 25, rows).astype(np.int32)),
        "history": (history := _lists(rng, rows, 6, ITEMS)),
        HISTORY_AGE: _beside(history, np.sort(rng.integers(0, 10**6, len(history.values)))[::-1]),
        ITEM_ROW: pa.array(((user * 7 + rng.integers(0, 5, rows)) % ITEMS).astype(np.int32)),
        "timestamp": pa.array(np.arange(rows)),
    }
    if split != "train":
        columns[TARGETS] = _targets(rng, columns.pop(ITEM_ROW).to_pylist())
        columns |= {RAW_USER_ID: pa.array(user), SEEN: _lists(rng, rows, 9, ITEMS)}
    else:
        columns[WEIGHT] = pa.array(rng.integers(0, 4, rows).astype(np.float32))
    return pa.table(columns)


def _sequences(rng: np.random.Generator) -> pa.Table:
    user = rng.integers(0, USERS, SEQUENCES)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(2, SEQUENCE_LENGTH + 1, SEQUENCES))]).astype(np.int32)
    events = int(offsets[-1])
    items = (np.repeat(user, np.diff(offsets)) * 7 + rng.integers(0, 5, events)) % ITEMS
    each = {
        ITEM_ROW: items.astype(np.int32),
        "hour": rng.integers(1, 25, events).astype(np.int32),
        "timestamp": np.sort(rng.integers(0, 10**6, events)),
        WEIGHT: rng.integers(0, 4, events).astype(np.float32),
    }
    lists = {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in each.items()}
    ages = rng.normal(40, 10, SEQUENCES).astype(np.float32)
    return pa.table({"user_id": (user + 1).astype(np.int32), "age": ages, **lists})


def _beside(lists: pa.Array, values: np.ndarray) -> pa.Array:
    """Values as lists of the same lengths."""
    return pa.ListArray.from_arrays(lists.offsets, pa.array(values))


def _targets(rng: np.random.Generator, items: list[int]) -> pa.Array:
    """One to three items each."""
    lists = [[(item + 11 * number) % ITEMS for number in range(rng.integers(1, 4))] for item in items]
    return pa.array(lists, pa.list_(pa.int32()))


def _lists(rng: np.random.Generator, rows: int, longest: int, values: int) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, longest + 1, rows))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(rng.integers(0, values, offsets[-1]).astype(np.int32)))
