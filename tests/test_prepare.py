import math
import os
import shutil
import statistics
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shop import IDS, candidate, catalog, events_of, prepare_shop, query, rows, vocabulary
from trainer.config import CONFIG_DIR, ColumnsConfig, FeatureConfig, GeneratedConfig, PrepareConfig, SplitConfig
from trainer.data import preparation
from trainer.data.engine import Connection
from trainer.data.prepared_files import regroup, write_parts
from trainer.data.schema import SPLITS, read_schema
from trainer.errors import UserError
from trainer.prepare import prepare

# --- features --------------------------------------------------------------------------------------------------------


def test_numeric_statistics_are_those_of_training_rows_and_of_the_catalogue(tmp_path: Path) -> None:
    events = events_of(1, 2, events=5)
    events["spent"] = [
        3.0,
        None,
        8.0,
        1e6,
        1e6,
        float("nan"),
        0.0,
        15.0,
        1e6,
        1e6,
    ]  # the last two of a user are held out
    items = {"item_id": [1, 2, 3, 4, 5], "price": [1, 2, 4, None, 8], "same": [7] * 5}
    features = {
        "spent": query("numeric", log1p=True),
        "price": candidate("numeric"),
        "same": candidate("numeric"),
    }
    schema = prepare_shop(tmp_path, events, items, features=features)
    by_name = {feature.name: feature for feature in schema.features}
    spent = [math.log1p(value) for value in (3.0, 8.0, 0.0, 15.0)]
    assert by_name["spent"].mean == pytest.approx(statistics.fmean(spent))
    assert by_name["spent"].std == pytest.approx(statistics.pstdev(spent))
    assert by_name["price"].mean == pytest.approx(statistics.fmean([1, 2, 4, 8]))
    assert by_name["price"].std == pytest.approx(statistics.pstdev([1, 2, 4, 8]))
    assert (by_name["same"].mean, by_name["same"].std) == (7.0, 1.0)
    assert sorted(row["price"] for row in catalog(tmp_path) if not math.isnan(row["price"])) == [1, 2, 4, 8]
    assert sum(math.isnan(row["spent"]) for row in rows(tmp_path, "train")) == 2
    assert {row["spent"] for row in rows(tmp_path, "test")} == {1e6}


def test_hour_and_weekday_are_those_of_utc(tmp_path: Path) -> None:
    times = [-1, 0, 3_600, 86_399, 1_700_000_000, 1_709_251_199]  # before 1970 to a leap day
    events = {"user_id": [1] * 6, "item_id": [1, 2, 3, 4, 5, 6], "timestamp": times}
    schema = prepare_shop(tmp_path, events, features={"hour": query("hour"), "weekday": query("weekday")})
    sizes = {feature.name: feature.num_embeddings for feature in schema.features}
    assert (sizes["hour"], sizes["weekday"]) == (25, 8)
    found = [row for split in SPLITS for row in rows(tmp_path, split)]
    assert len(found) == 6
    for row in found:
        moment = datetime.fromtimestamp(row["timestamp"], timezone.utc)
        assert (row["hour"], row["weekday"]) == (1 + moment.hour, 1 + moment.weekday())


def test_categoricals_lists_and_user_columns(tmp_path: Path) -> None:
    items = {
        "item_id": ["a", "b", "c", "d"],
        "genres": [["x", "y"], ["y", None], None, ["z", "x", "x"]],
        "tags": ["red| blue", "", None, "blue|rare"],
        "brand": [10, 10, None, 20],
    }
    users = {"user_id": [1, 2], "country": ["de", None]}
    events = events_of(1, 2, 3)  # the users lack user 3
    events["item_id"] = ["a", "b", "c", "d"] * 3
    features = {
        "country": query("categorical"),
        "genres": candidate("categorical"),
        "tags": candidate("categorical", separator="|", min_count=2),
        "brand": candidate("categorical"),
    }
    schema = prepare_shop(tmp_path, events, items, users, features)
    assert schema.item_id_type == "string"
    assert schema.user_id_type == "int64"
    several = {feature.name: feature.multi_valued for feature in schema.features if feature.kind == "categorical"}
    assert several == {"country": False, "genres": True, "tags": True, "brand": False}
    genres, tags, brand = (vocabulary(tmp_path, name) for name in ("genres", "tags", "brand"))
    assert set(genres) == {"x", "y", "z"}
    assert set(tags) == {"blue"}  # red and rare come once
    assert set(brand) == {10, 20}
    by_id = {row["raw_item_id"]: row for row in catalog(tmp_path)}
    assert by_id["a"]["genres"] == [genres["x"], genres["y"]]
    assert by_id["b"]["genres"] == [genres["y"]]
    assert by_id["c"]["genres"] == []
    assert by_id["d"]["genres"] == [genres["z"], genres["x"], genres["x"]]
    assert [by_id[item]["tags"] for item in "abcd"] == [[0, tags["blue"]], [], [], [tags["blue"], 0]]
    assert [by_id[item]["brand"] for item in "abcd"] == [brand[10], brand[10], 0, brand[20]]
    countries = {row["raw_user_id"]: row["country"] for row in rows(tmp_path, "test")}
    assert countries == {1: 1, 2: 0, 3: 0}


def test_categorical_lists_of_events(tmp_path: Path) -> None:
    events = events_of(1, events=5)
    events["context"] = [["p"], ["p", "q"], [], ["q", "new"], None]
    prepare_shop(tmp_path, events, features={"context": query("categorical")})
    index = vocabulary(tmp_path, "context")
    assert set(index) == {"p", "q"}
    assert sorted(row["context"] for row in rows(tmp_path, "train")) == sorted(
        [[index["p"]], [index["p"], index["q"]], []]
    )
    assert rows(tmp_path, "validation")[0]["context"] == [index["q"], 0]
    assert rows(tmp_path, "test")[0]["context"] == []


def test_vectors_and_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = {
        "item_id": [1, 2, 3, 4],
        "image": [[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]],
        "title": ["a b", None, "", "b c"],
    }
    events = events_of(1)
    events["words"] = ["one", "two", None, "four"]
    features = {"image": candidate("vector"), "title": candidate("text", dim=16), "words": query("text", dim=8)}
    schema = prepare_shop(tmp_path, events, items, features=features)
    assert {feature.name: feature.dim for feature in schema.features if feature.kind == "vector"} == {
        "image": 2,
        "title": 16,
        "words": 8,
    }
    by_id = {row["raw_item_id"]: row for row in catalog(tmp_path)}
    assert [by_id[item]["image"] for item in (1, 2, 3, 4)] == [[1, 2], [0, 0], [3, 4], [5, 6]]
    assert [sum(value**2 for value in by_id[item]["title"]) for item in (1, 2, 3, 4)] == pytest.approx([1, 0, 0, 1])
    assert sum(value**2 for value in rows(tmp_path, "test")[0]["words"]) == pytest.approx(1)
    assert "feature image: missing in 1 items" in capsys.readouterr().out


def test_vectors_of_half_the_size(tmp_path: Path) -> None:
    image = [[1.1, -65519.0], None, [6e-8, 1 / 3], [65504.0, 0.0]]
    items = {"item_id": [1, 2, 3, 4], "image": image, "title": ["a b", None, "", "b c"]}
    events = events_of(1) | {"words": ["one", "two three", None, "four"]}

    def features(dtype: str) -> dict[str, FeatureConfig]:
        return {
            "image": candidate("vector", dtype=dtype),
            "title": candidate("text", dim=16, dtype=dtype),
            "words": query("text", dim=8, dtype=dtype),
        }

    found = {}
    for dtype in ("float32", "float16"):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        schema = prepare_shop(tmp_path, events, items, features=features(dtype))
        assert {feature.dtype for feature in schema.features if feature.kind == "vector"} == {dtype}
        stored = pa.ipc.open_file(tmp_path / "out/catalog.arrow").schema.field("image").type
        element = pa.float16() if dtype == "float16" else pa.float32()
        assert stored == pa.list_(pa.field("element", element, nullable=False), 2)
        found[dtype] = sorted(catalog(tmp_path), key=lambda row: row["raw_item_id"]), rows(tmp_path, "train")
    for wide, narrow in zip(*found.values(), strict=True):
        for full, half in zip(wide, narrow, strict=True):
            for name in {"image", "title", "words"} & set(full):
                assert half[name] == np.array(full[name], np.float16).tolist()


def test_lengths_and_what_is_the_events_own_are_in_the_schema(tmp_path: Path) -> None:
    events = events_of(1, 2)
    events |= {"tags": [["a", "b"]] * 8, "device": ["x"] * 8}
    users = {"user_id": [1, 2], "interests": [["a"], ["b"]], "age": [1, 2]}
    features = {
        "tags": query("categorical", max_values=2),
        "device": query("categorical"),
        "again": query("categorical", column="user_id"),
        "interests": query("categorical"),
        "age": query("numeric"),
        "hour": query("hour"),
    }
    schema = prepare_shop(tmp_path, events, None, users, features)
    lengths = {feature.name: feature.length for feature in schema.features if feature.length}
    assert lengths == {"history": 3, "tags": 2, "interests": 100}
    assert {feature.name for feature in schema.features if feature.per_event} == {"tags", "device", "hour"}


def test_events_without_timestamps_are_in_order_of_input(tmp_path: Path) -> None:
    events = {"user_id": ["u", "v", "u", "u", "v"], "item_id": [3, 9, 1, 2, 8]}
    schema = prepare_shop(tmp_path, events, columns=ColumnsConfig(timestamp=None))
    items = [row["raw_item_id"] for row in catalog(tmp_path)]
    (test,) = rows(tmp_path, "test")
    assert (test["raw_user_id"], [items[place] for place in test["targets"]]) == ("u", [2])
    assert [items[place] for place in test["history"]] == [3, 1]
    assert "timestamp" not in test
    assert "history_age" not in test
    assert not schema.timestamps
    assert schema.num_events == {"train": 3, "validation": 1, "test": 1}


# --- the folder ------------------------------------------------------------------------------------------------------


def test_types_are_those_of_the_contract(tmp_path: Path) -> None:
    items = {
        "item_id": [1, 2, 3, 4],
        "tags": [["x"], [], [], ["y"]],
        "price": [1.0, 2.0, 3.0, 4.0],
        "image": [[1.0]] * 4,
    }
    features = {"tags": candidate("categorical"), "price": candidate("numeric"), "image": candidate("vector")}
    prepare_shop(tmp_path, events_of(1, 2), items, features=features)
    int32s = pa.list_(pa.field("element", pa.int32(), nullable=False))
    train = pq.read_schema(tmp_path / "out/events/train/part-00000.parquet")
    int64s = pa.list_(pa.field("element", pa.int64(), nullable=False))
    expected = {
        "item_row": pa.int32(),
        "user_id": pa.int32(),
        "history": int32s,
        "history_age": int64s,
        "timestamp": pa.int64(),
    }
    assert {field.name: field.type for field in train} == expected
    test = pq.read_schema(tmp_path / "out/events/test/part-00000.parquet")
    del expected["item_row"]
    held_out = {"targets": int32s, "raw_user_id": pa.int64(), "seen": int32s}
    assert {field.name: field.type for field in test} == expected | held_out
    stored = pa.ipc.open_file(tmp_path / "out/catalog.arrow").schema
    image = pa.list_(pa.field("element", pa.float32(), nullable=False), 1)
    assert {field.name: field.type for field in stored} == {
        "raw_item_id": pa.int64(),
        "train_count": pa.int64(),
        "validation_count": pa.int64(),
        "item_id": pa.int32(),
        "tags": pa.large_list(int32s.value_field),
        "price": pa.float32(),
        "image": image,
    }
    assert not any(field.nullable for schema in (train, test, stored) for field in schema)
    ids = pq.read_schema(tmp_path / "out/vocabulary/item_id.parquet")
    assert {field.name: field.type for field in ids} == {"id": pa.int64(), "index": pa.int32(), "count": pa.int64()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "schema.json",
        "vocabulary",
        "catalog.arrow",
        "events",
    }


def test_schema_is_read_back(tmp_path: Path) -> None:
    schema = prepare_shop(tmp_path, events_of(1, 2))
    assert read_schema(tmp_path / "out") == schema
    history, item = (
        next(f for f in schema.features if f.kind == kind and f.name != "user_id") for kind in ("history", "id")
    )
    assert (history.table, history.num_embeddings) == (item.table, item.num_embeddings) == ("item_id", 3)


def test_training_rows_are_shuffled_into_row_groups(tmp_path: Path) -> None:
    prepare_shop(tmp_path, events_of(*range(100), events=12), row_group_size=64)
    part = pq.ParquetFile(tmp_path / "out/events/train/part-00000.parquet")
    sizes = [part.metadata.row_group(group).num_rows for group in range(part.metadata.num_row_groups)]
    assert sizes == [64] * 15 + [40]
    first = part.read_row_group(0).to_pylist()
    assert len({row["user_id"] for row in first}) > 30
    assert len({row["timestamp"] for row in first}) == 10


@given(lengths=st.lists(st.integers(0, 9), max_size=12), size=st.integers(1, 7))
def test_regroup_keeps_rows_and_makes_equal_batches(lengths: list[int], size: int) -> None:
    numbers = iter(range(sum(lengths)))
    batches = [
        pa.record_batch({"row": pa.array([next(numbers) for _ in range(length)], pa.int64())}) for length in lengths
    ]
    found = [batch["row"].to_pylist() for batch in regroup(batches, size)]
    assert [row for batch in found for row in batch] == list(range(sum(lengths)))
    assert all(len(batch) == size for batch in found[:-1])
    assert all(batch for batch in found)


def test_parts_are_limited(tmp_path: Path) -> None:
    batches = [pa.record_batch({"row": pa.array([number] * 4)}) for number in range(5)]
    assert write_parts(tmp_path / "parts", batches, part_rows=8) == 20
    assert [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "parts").iterdir())] == [8, 8, 4]


@pytest.mark.parametrize("layout", ["event", "sequence"])
def test_threads_and_memory_do_not_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    open_engine = preparation.open_engine
    contents = []
    for threads, memory_limit in ((1, "200MB"), (4, "2GB")):

        def with_threads(folder: Path, limit: str, threads: int = threads) -> Connection:
            connection = open_engine(folder, limit)
            connection.execute(f"SET threads = {threads}")
            return connection

        monkeypatch.setattr(preparation, "open_engine", with_threads)
        features = IDS | {
            "user_id": query("id", hash_buckets=5_000),
            "age": query("numeric"),
            "hour": query("hour"),
            "price": candidate("numeric"),
            "tags": candidate("categorical"),
        }
        config = GeneratedConfig(
            dir=str(tmp_path / str(threads)), features=features, users=10_000, layouts=[layout], sequence_length=8
        )
        prepare(PrepareConfig(data=config, memory_limit=memory_limit))
        files = sorted(path for path in (tmp_path / str(threads)).rglob("*") if path.is_file())
        contents.append({str(path.relative_to(tmp_path / str(threads))): path.read_bytes() for path in files})
    assert contents[0] == contents[1]


def test_vocabulary_order_does_not_follow_popularity_or_input(tmp_path: Path) -> None:
    prepare_shop(tmp_path, events_of(1, 2, 3, events=40))
    order = vocabulary(tmp_path, "item_id")
    assert [order[item] for item in sorted(order)] != list(range(1, len(order) + 1))
    shutil.rmtree(tmp_path / "out")
    events = events_of(1, 2, 3, events=40)
    prepare_shop(tmp_path, {name: values[::-1] for name, values in events.items()})
    assert vocabulary(tmp_path, "item_id") == order
    shutil.rmtree(tmp_path / "out")
    prepare_shop(tmp_path, events, seed=1)
    assert vocabulary(tmp_path, "item_id") != order


def test_two_features_may_read_one_column(tmp_path: Path) -> None:
    features = {"again": candidate("categorical", column="item_id"), "who": query("categorical", column="user_id")}
    prepare_shop(tmp_path, events_of(1, 2), features=features)
    assert [row["again"] for row in catalog(tmp_path)] == [
        vocabulary(tmp_path, "again")[row["raw_item_id"]] for row in catalog(tmp_path)
    ]


def test_a_taken_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    prepare_shop(tmp_path, events_of(1))
    before = (tmp_path / "out/schema.json").read_text()
    with pytest.raises(UserError, match=r"data.dir=.*not prepared yet.*rm -r"):
        prepare_shop(tmp_path, events_of(2))
    assert (tmp_path / "out/schema.json").read_text() == before
    (tmp_path / "out/schema.json").unlink()
    with pytest.raises(UserError, match=r"data.dir=.*a new or an empty folder"):
        prepare_shop(tmp_path, events_of(2))


def test_what_an_interrupted_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "out.partial/events").mkdir(parents=True)
    (tmp_path / "out.partial/events/junk").write_text("junk")
    (tmp_path / "out").mkdir()  # empty: fine
    prepare_shop(tmp_path, events_of(1))
    assert not (tmp_path / "out.partial").exists()
    assert not list((tmp_path / "out").rglob("junk"))


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "write_parts", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_shop(tmp_path, events_of(1))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


# --- notes and errors ------------------------------------------------------------------------------------------------


def test_everything_left_out_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = events_of(1, 2)
    events["item_id"][0] = 99
    features = {
        "gender": query("categorical", optional=True),
        "item_id": candidate("id", min_count=2),
    }
    users = {"user_id": [1]}
    prepare_shop(tmp_path, events, {"item_id": [1, 2, 3, 4]}, users, features, unknown_items="drop")
    told = capsys.readouterr().out
    assert "dropped 1 events that name 1 unknown items, such as 99" in told
    assert "feature gender: left out, the source has no column gender" in told
    assert "4 events of 1 users that the users lack" in told
    assert "feature item_id: 3 values with fewer than 2 occurrences in training share row 0" in told
    assert "events    3 train, 2 validation, 2 test" in told


NO_NUMBERS = pa.array([], pa.int64())
ITEMS = {"item_id": [1, 2, 3, 4], "price": [1.0, 2.0, 3.0, 4.0], "title": ["a", "b", "c", "d"]}
ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"features": {"price": candidate("number")}}, r"data.features.price.kind=number: expected one of id, cat"),
    "side": (
        {"features": {"price": FeatureConfig("item", "numeric")}},
        r"price.side=item: expected one of query, cand",
    ),
    "name": (
        {"features": {"seen": query("categorical")}},
        r"data.features.seen=seen: expected a name other than raw_item",
    ),
    "letters": ({"features": {"a b": query("categorical")}}, r"expected a name of letters, digits and underscores"),
    "column": (
        {"features": {"cost": candidate("numeric")}},
        r"data.features.cost.column=cost: expected a column of the items: item_id, price, title",
    ),
    "type": ({"features": {"title": candidate("numeric")}}, r"title \(VARCHAR\): expected a column of numbers"),
    "text": ({"features": {"price": candidate("text")}}, r"price \(DOUBLE\): expected a column of strings"),
    "vector": (
        {"features": {"price": candidate("vector")}},
        r"price \(DOUBLE\): expected a column of lists of numbers",
    ),
    "candidate hour": ({"features": {"hour": candidate("hour")}}, r"hour.side=candidate: expected query for kind hour"),
    "two ids": ({"features": {"sku": candidate("id")}}, r"exactly one id on the candidate side"),
    "no id": ({"features": {"item_id": candidate("categorical")}}, r"exactly one id on the candidate side"),
    "two histories": ({"features": {"more": query("history")}}, r"data.features=.*expected at most one history"),
    "length": ({"features": {"history": query("history", length=0)}}, r"history.length=0: expected a number above 0"),
    "min_count": ({"features": {"item_id": candidate("id", min_count=0)}}, r"item_id.min_count=0"),
    "split": (
        {"split": SplitConfig(by="items")},
        r"data.split.by=items: expected one of leave_one_out, time, user, random",
    ),
    "shares": ({"split": SplitConfig(by="time", validation=0.5, test=0.5)}, r"shares that leave something to train on"),
    "share": ({"split": SplitConfig(by="time", test=1.5)}, r"data.split.test=1.5: expected a share in \(0, 1\)"),
    "buckets": (
        {"features": {"title": candidate("categorical", hash_buckets=0)}},
        r"title.hash_buckets=0: expected a number from 1 to 2147483646",
    ),
    "too many buckets": (
        {"features": {"item_id": candidate("id", hash_buckets=2**31 - 1)}},
        r"item_id.hash_buckets=2147483647: expected a number from 1 to 2147483646",
    ),
    "hashed and counted": (
        {"features": {"item_id": candidate("id", hash_buckets=10, min_count=2)}},
        r"data.features.item_id.min_count=2: expected 1, for hashing counts no values",
    ),
    "hashed number": (
        {"features": {"price": candidate("numeric", hash_buckets=10)}},
        r"price.hash_buckets=10: expected kind id or categorical for it, not numeric",
    ),
    "element type": (
        {"features": {"title": candidate("text", dtype="float64")}},
        r"title.dtype=float64: expected one of float32, float16",
    ),
    "element type of a number": (
        {"features": {"price": candidate("numeric", dtype="float16")}},
        r"price.dtype=float16: expected kind vector or text for it",
    ),
    "beyond float16": (
        {
            "items": ITEMS | {"image": [[1.0, 2.0], [3.0, -65519.0], [65520.0, 0.0], [1e9, -1e9]]},
            "features": {"image": candidate("vector", dtype="float16")},
        },
        r"image.dtype=float16, with larger numbers in 2 items .*row 3, in row group 0\): expected numbers up to 65504",
    ),
    "max_values": ({"features": {"title": candidate("categorical", max_values=0)}}, r"title.max_values=0"),
    "too many values": (
        {
            "items": ITEMS | {"tags": [["a"] * 3, ["a", None, "b"], None, ["a"] * 5]},
            "features": {"tags": candidate("categorical", max_values=2)},
        },
        r"data.features.tags.max_values=2, with more in 2 items .*row 1.*: expected at least 5, .*"
        r"set data.features.tags.max_values=5",
    ),
    "too many values of an event": (
        {
            "events": events_of(1) | {"context": ["a", "b", "a|b|c", "a|b"]},
            "features": {"context": query("categorical", separator="|", max_values=2)},
        },
        r"context.max_values=2, with more in 1 events \(such as seq 2\) .*row 3.*: expected at least 3",
    ),
    "policy": ({"unknown_items": "skip"}, r"data.unknown_items=skip: expected one of error, drop, out_of"),
    "row groups": ({"row_group_size": 0}, r"data.row_group_size=0"),
    "memory": ({"memory_limit": "lots"}, r"memory_limit=lots: expected an amount like 4GB"),
    "few events": (
        {"events": events_of(1, 2, events=2)},
        r"data.split=.*expected at least one event to go to validation",
    ),
    "no events": ({"events": dict.fromkeys(events_of(1), NO_NUMBERS)}, r"data.events=no rows: expected at least one"),
    "null user": (
        {"events": events_of(1) | {"user_id": [1, None, 1, 1]}},
        r"events.user_id=null in 1 of 4 rows .*row 2",
    ),
    "null item": ({"events": events_of(1) | {"item_id": [1, 2, None, None]}}, r"item_id=null in 2 of 4 rows .*row 3"),
    "null time": ({"events": events_of(1) | {"timestamp": [1, 2, 3, None]}}, r"events.timestamp=null in 1 of 4"),
    "float id": (
        {"events": events_of(1) | {"user_id": [1.5] * 4}},
        r"user_id \(DOUBLE\): expected a column of integers or strings",
    ),
    "float id of a user": (
        {"users": {"user_id": [1.5]}},
        r"users.user_id=DOUBLE: expected integers or strings",
    ),
    "twice": (
        {"items": {"item_id": [1, 1, 2, 3, 4, 4]}},
        r"items.item_id=1, 4 \(first: .*items.parquet row 1, .* and .* row 2, .*\): expected one row an id \(2",
    ),
    "null item id": (
        {"items": {"item_id": [1, 2, None]}},
        r"items.item_id=null in 1 of 3 rows \(first: .*items.parquet row 3,",
    ),
    "id types": ({"items": {"item_id": ["1", "2"]}}, r"items.item_id=string: expected int64, as in the events"),
    "unknown": ({"items": {"item_id": [1, 2]}}, r"events.item_id=2 events that name 2 unknown items, such as 3, 4"),
    "all unknown": ({"items": {"item_id": [8]}, "unknown_items": "drop"}, r"expected some events of known items"),
    "twice a user": (
        {"users": {"user_id": [1, 1]}},
        r"users.user_id=1 \(first: .*row 1,.* and .*row 2,.*\): expected one row an id",
    ),
    "infinite": (
        {"items": ITEMS | {"price": [1.0, math.inf, 2.0, 3.0]}, "features": {"price": candidate("numeric")}},
        r"data.features.price=not finite in 1 items \(such as item_id 2\)",
    ),
    "beyond float32": (
        {"items": ITEMS | {"price": [1.0, 2.0, 1e300, 3.0]}, "features": {"price": candidate("numeric")}},
        r"data.features.price=not finite in 1 items \(such as item_id 3\)",
    ),
    "log1p": (
        {"items": ITEMS | {"price": [1.0, -1.0, -7.0, 3.0]}, "features": {"price": candidate("numeric", log1p=True)}},
        r"data.features.price.log1p=true, with 2 values down to -7.0 \(first: .* row 2, .*\): expected values above -1",
    ),
    "ragged": (
        {"items": ITEMS | {"price": [[1.0], [1.0, 2.0], [1.0], None]}, "features": {"price": candidate("vector")}},
        r"data.features.price=vectors of length 1 to 2 \(first: .* row 2, .*\): expected one length",
    ),
    "vector with NaN": (
        {"items": ITEMS | {"price": [[1.0], [math.nan], [1.0], [1.0]]}, "features": {"price": candidate("vector")}},
        r"data.features.price=not finite in 1 items",
    ),
    "both": (
        {
            "events": events_of(1) | {"age": [1] * 4},
            "users": {"user_id": [1], "age": [1]},
            "features": {"age": query("numeric")},
        },
        r"data.features.age.column=age: expected a column of the events or of the users, not of both",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_field_value_expectation_and_remedy(tmp_path: Path, name: str) -> None:
    given, message = ERRORS[name]
    with pytest.raises(UserError, match=message):
        prepare_shop(tmp_path, **({"events": events_of(1), "items": ITEMS} | given))
    assert {path.suffix for path in tmp_path.iterdir()} <= {".parquet"}


# --- the command -----------------------------------------------------------------------------------------------------


def command(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    line = [sys.executable, "-m", "trainer.prepare", *overrides]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_command_writes_nothing_but_its_folder(tmp_path: Path) -> None:
    done = command(tmp_path, "data=generated", "data.users=500", "data.items=200", "data.dir=made")
    assert done.returncode == 0, done.stderr
    assert "users     500" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert read_schema(tmp_path / "made").user_id_type == "int64"


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (
            (),
            2,
            "error: data=???: expected movielens, user_item_lists, citeulike, tabular, generated or foreign.",
        ),
        (
            ("data=movielens",),
            2,
            "error: data.dir=???: expected a value. Remedy: add data.dir=... to the command line.",
        ),
        (("data=movielens", "data.source=.", "data.dir=out"), 2, "expected a MovieLens folder"),
        (
            ("data=generated", "data.dir=out", "data.itemz=3"),
            2,
            "error: data.itemz: GeneratedConfig has no field itemz. Remedy: items is meant?",
        ),
    ],
)
def test_command_refuses_without_a_traceback(
    tmp_path: Path, overrides: tuple[str, ...], code: int, message: str
) -> None:
    done = command(tmp_path, *overrides)
    assert (done.returncode, message in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_example_of_a_config_of_ones_own(tmp_path: Path) -> None:
    shipped = (Path(CONFIG_DIR) / "data" / "tabular.yaml").read_text()
    (tmp_path / "my_configs" / "data").mkdir(parents=True)
    for line, mine in (("events: ???", "events: '*.csv'"), ("# country", "country"), ("min_count: 5", "column: land")):
        assert line in shipped
        shipped = shipped.replace(line, mine)
    (tmp_path / "my_configs" / "data" / "my_shop.yaml").write_text(shipped)
    lines = [f"{user},{item},{item},de" for user in range(3) for item in range(4)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp,land", *lines]))
    overrides = ("data=my_shop", "data.dir=out", "data.features.history.length=2")
    done = command(tmp_path, "--config-dir", "my_configs", *overrides)
    assert done.returncode == 0, done.stderr
    assert [feature.name for feature in read_schema(tmp_path / "out").features] == [*IDS, "country"]
    assert max(len(row["history"]) for row in rows(tmp_path, "test")) == 2


@pytest.mark.parametrize("overrides", [(), ("data=movielens",)])
def test_help(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    done = command(tmp_path, *overrides, "--help")
    assert done.returncode == 0, done.stderr
    assert "python -m trainer.prepare data=movielens" in done.stdout
    assert ("zip_region" in done.stdout) == bool(overrides)
    assert list(tmp_path.iterdir()) == []


def test_help_loads_neither_engine_nor_arrow() -> None:
    code = "import sys, trainer.prepare; print(sorted({'duckdb', 'pyarrow', 'sklearn', 'torch'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
