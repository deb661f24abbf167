import shutil
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.oracle import EVENTS, Event, as_columns, assign
from tests.shop import catalog, events_of, prepare_shop, query, rows, sequences, vocabulary
from trainer.config import ColumnsConfig, SplitConfig
from trainer.errors import UserError

FEATURES = {
    "spent": query("numeric"),
    "context": query("categorical"),
    "screen": query("vector", dtype="float16"),
    "hour": query("hour"),
    "country": query("categorical"),
    "interests": query("categorical"),
    "photo": query("vector"),
}
USERS = {  # without user 4
    "user_id": [1, 2, 3],
    "country": ["de", "fr", None],
    "interests": [["a", "b"], None, ["b"]],
    "photo": [[1.0], [2.0], None],
}


def with_features(events: list[Event]) -> dict[str, Any]:
    """Columns of the events; those beside the ids and the time follow from them."""
    return as_columns(events) | {
        "spent": [10.0 * time + item for _, item, time in events],
        "context": [[f"item {item}"] * (item % 3) for _, item, _ in events],
        "screen": [[item, -time] for _, item, time in events],
    }


@given(
    events=EVENTS,
    known=st.sets(st.integers(1, 6), min_size=3),
    split=st.sampled_from([SplitConfig(), SplitConfig("time", 0.2, 0.2), SplitConfig("user", 0.3, 0.3)]),
    length=st.integers(2, 6),
    batch=st.integers(1, 9),
)
@settings(max_examples=20, suppress_health_check=list(HealthCheck))
def test_sequences_equal_those_of_plain_python(
    tmp_path: Path, events: list[Event], known: set[int], split: SplitConfig, length: int, batch: int
) -> None:
    users = assign(events, known, split)
    expected = oracle.sequences(users, length)
    assume(expected and all(oracle.queries(users).values()))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    schema = prepare_shop(
        tmp_path, with_features(events), {"item_id": sorted(known)}, USERS, FEATURES, split=split,
        unknown_items="out_of_vocabulary", layouts=["sequence", "event"], sequence_length=length, row_group_size=batch,
    )  # fmt: skip
    place = {row["raw_item_id"]: number for number, row in enumerate(catalog(tmp_path))}
    index = {name: vocabulary(tmp_path, name) for name in ("user_id", "context", "country", "interests")}
    countries = dict(zip(USERS["user_id"], USERS["country"], strict=True))
    interests = dict(zip(USERS["user_id"], USERS["interests"], strict=True))
    photos = dict(zip(USERS["user_id"], USERS["photo"], strict=True))
    wanted = [
        {
            "item_row": [place.get(item, -1) for _, item, _ in row],
            "timestamp": [time for _, _, time in row],
            "spent": [10.0 * time + item for _, item, time in row],
            "context": [[index["context"].get(f"item {item}", 0)] * (item % 3) for _, item, _ in row],
            "screen": [[item, -time] for _, item, time in row],
            "hour": [1 if time >= 0 else 24 for _, _, time in row],
            "user_id": index["user_id"][row[0][0]],
            "country": index["country"].get(countries.get(row[0][0]), 0),
            "interests": [index["interests"].get(one, 0) for one in interests.get(row[0][0]) or []],
            "photo": photos.get(row[0][0]) or [0.0],
        }
        for row in expected
    ]
    assert sequences(tmp_path) == wanted
    assert schema.num_sequences == len(wanted)
    part = pq.ParquetFile(tmp_path / "out/sequences/part-00000.parquet")
    groups = [part.read_row_group(group)["item_row"].to_pylist() for group in range(part.num_row_groups)]
    assert all(0 < sum(map(len, rows)) <= batch + length for rows in groups)

    # Every training event but its user's first comes once after others.
    trained = [[event for event, name in theirs if name == "train"] for theirs in users.values()]
    positives = [item for row in sequences(tmp_path) for item in row["item_row"][1:] if item >= 0]
    assert Counter(positives) == Counter(place[item] for theirs in trained for _, item, _ in theirs[1:])
    assert len(rows(tmp_path, "train")) == schema.num_events["train"] == sum(map(len, trained))


def test_types_and_schema(tmp_path: Path) -> None:
    events = with_features([(user, item, 60 * item) for user in (1, 2) for item in range(1, 6)])
    schema = prepare_shop(tmp_path, events, users=USERS, features=FEATURES, layouts=["sequence"])

    def a_list(element: pa.DataType) -> pa.DataType:
        return pa.list_(pa.field("element", element, nullable=False))

    def vector(element: pa.DataType, dim: int) -> pa.DataType:
        return pa.list_(pa.field("element", element, nullable=False), dim)

    stored = pq.read_schema(tmp_path / "out/sequences/part-00000.parquet")
    assert {field.name: field.type for field in stored} == {
        "item_row": a_list(pa.int32()),
        "timestamp": a_list(pa.int64()),
        "spent": a_list(pa.float32()),
        "context": a_list(a_list(pa.int32())),
        "screen": a_list(vector(pa.float16(), 2)),
        "hour": a_list(pa.int32()),
        "user_id": pa.int32(),
        "country": pa.int32(),
        "interests": a_list(pa.int32()),
        "photo": vector(pa.float32(), 1),
    }
    assert not any(field.nullable for field in stored)
    assert {feature.name for feature in schema.features if feature.per_event} == {"spent", "context", "screen", "hour"}
    assert sorted(path.name for path in (tmp_path / "out/events").iterdir()) == ["test", "validation"]
    assert schema.num_events == {"train": 6, "validation": 2, "test": 2}
    assert schema.num_sequences == 2


@pytest.mark.parametrize("layouts", [["event"], ["sequence"], ["sequence", "event"]])
def test_statistics_are_those_of_the_first_pass_over_training_rows(tmp_path: Path, layouts: list[str]) -> None:
    events = events_of(1, 2, events=7)  # of each user, five train
    events["spent"] = [1.0, 2.0, 4.0, 8.0, 16.0, 1e9, 1e9] * 2
    users = {"user_id": [1, 2], "age": [20, 50]}
    features = {"spent": query("numeric"), "age": query("numeric")}
    schema = prepare_shop(tmp_path, events, None, users, features, layouts=layouts, sequence_length=3)
    # Rows of three overlap by one.
    passed = [1, 2, 4, 4, 8, 16] if layouts == ["sequence"] else [1, 2, 4, 8, 16]
    by_name = {feature.name: feature for feature in schema.features}
    assert by_name["spent"].mean == pytest.approx(statistics.fmean(passed))
    assert by_name["spent"].std == pytest.approx(statistics.pstdev(passed))
    assert (by_name["age"].mean, by_name["age"].std) == (35, 15)


def test_events_without_timestamps_and_users_with_one_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = {"user_id": ["u"] * 5 + ["v"], "item_id": [9, 8, 7, 6, 5, 4]}
    prepare_shop(tmp_path, events, columns=ColumnsConfig(timestamp=None), layouts=["sequence"])
    items = [row["raw_item_id"] for row in catalog(tmp_path)]
    (row,) = sequences(tmp_path)
    assert [items[place] for place in row["item_row"]] == [9, 8, 7]
    assert "timestamp" not in row
    assert "sequences: 1 users have none, for they have a single training event" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layouts": []}, r"data.layouts=\[\]: expected one layout or two different"),
        ({"layouts": ["event", "event"]}, r"data.layouts=\['event', 'event'\]: expected one layout or two different"),
        ({"layouts": ["event", "list"]}, r"data.layouts=list: expected one of event, sequence"),
        ({"sequence_length": 1}, r"data.sequence_length=1: expected 2 or more"),
        (
            {"layouts": ["sequence"], "events": events_of(1, 2, events=3)},
            r"data.layouts=sequence: expected a user with two training events or more",
        ),
    ],
)
def test_errors(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_shop(tmp_path, **({"events": events_of(1)} | settings))
    assert not (tmp_path / "out").exists()
