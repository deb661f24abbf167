import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.oracle import EVENTS, Event, as_columns, assign, md5_lower, queries
from tests.shop import candidate, catalog, events_of, positives, prepare_shop, query, rows, vocabulary
from trainer.config import ColumnsConfig, SplitConfig
from trainer.data.schema import SPLITS
from trainer.errors import UserError

SHARES = [
    SplitConfig(),
    SplitConfig("time", 0.2, 0.3),
    SplitConfig("user", 0.3, 0.3),
    SplitConfig(validation=0.0),
    SplitConfig("time", 0.0, 0.3),
    SplitConfig("user", 0.0, 0.3),
]


@given(
    events=EVENTS,
    known=st.none() | st.sets(st.integers(1, 6), min_size=2),
    split=st.sampled_from(SHARES),
    min_count=st.integers(1, 3),
    length=st.integers(1, 4),
)
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
def test_rows_equal_those_of_plain_python(
    tmp_path: Path, events: list[Event], known: set[int] | None, split: SplitConfig, min_count: int, length: int
) -> None:
    there = {item for _, item, _ in events} if known is None else known
    users = assign(events, there, split)
    expected = queries(users)
    assume(all(expected[name] for name in SPLITS if name != "validation" or split.validation))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    features = {
        "user_id": query("id", min_count=min_count),
        "item_id": candidate("id", min_count=min_count),
        "history": query("history", length=length),
    }
    items = None if known is None else {"item_id": sorted(known)}
    schema = prepare_shop(
        tmp_path, as_columns(events), items, features=features, split=split, unknown_items="out_of_vocabulary"
    )
    named: dict[int, int | None] = {place: row["raw_item_id"] for place, row in enumerate(catalog(tmp_path))}
    assert sorted(named.values()) == sorted(there)
    named[-1] = None

    trained = [event for event, _ in expected["train"]]
    for column, table in enumerate(("user_id", "item_id")):
        counts = Counter(event[column] for event in trained)
        indices = vocabulary(tmp_path, table)
        assert set(indices) == {value for value, count in counts.items() if count >= min_count}
        assert sorted(indices.values()) == list(range(1, len(indices) + 1))
    user_indices, item_indices = vocabulary(tmp_path, "user_id"), vocabulary(tmp_path, "item_id")
    for row in catalog(tmp_path):
        assert row["train_count"] == sum(item == row["raw_item_id"] for _, item, _ in trained)
        assert row["item_id"] == item_indices.get(row["raw_item_id"], 0)

    for name in SPLITS:
        found = []
        for row in rows(tmp_path, name):
            (item,), history = [named[place] for place in positives(row)], [named[place] for place in row["history"]]
            key: tuple[Any, ...] = (row["user_id"], item, row["timestamp"], history, row["history_age"])
            if name != "train":
                key = (*key, row["raw_user_id"], [named[place] for place in row["seen"]])
            found.append(key)
        wanted: list[tuple[Any, ...]] = []
        for (user, item, timestamp), past in expected[name]:
            before = [its if its in there else None for _, its, _ in past]
            ages = [timestamp - earlier for _, _, earlier in past]
            key = (user_indices.get(user, 0), item, timestamp, before[-length:], ages[-length:])
            wanted.append(key if name == "train" else (*key, user, before))
        assert sorted(found, key=repr) == sorted(wanted, key=repr)
        assert schema.num_events[name] == len(wanted)
    times = [row["timestamp"] for row in rows(tmp_path, "test")]
    assert times == sorted(times)


@given(events=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 9)), min_size=10, max_size=30))
@settings(max_examples=8)
def test_split_by_time_cuts_the_order_of_time_at_the_shares(tmp_path: Path, events: list[Event]) -> None:
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    prepare_shop(tmp_path, as_columns(events), split=SplitConfig(by="time", validation=0.2, test=0.3))
    ordered = sorted(events, key=lambda event: event[2])
    first_test = len(events) - round(0.3 * len(events))
    first_validation = first_test - round(0.2 * len(events))
    items = [row["raw_item_id"] for row in catalog(tmp_path)]
    for split, part in (("validation", ordered[first_validation:first_test]), ("test", ordered[first_test:])):
        found = [
            (row["raw_user_id"], *(items[place] for place in row["targets"]), row["timestamp"])
            for row in rows(tmp_path, split)
        ]
        assert found == part  # and in that order


@pytest.mark.parametrize("name", [str, int])
def test_split_by_user_holds_out_the_same_users_as_data_grows(tmp_path: Path, name: type) -> None:
    split = SplitConfig(by="user", validation=0.1, test=0.2)
    for users in (300, 600):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        events = events_of(*range(users), events=3)
        events["user_id"] = [name(user) for user in events["user_id"]]
        prepare_shop(tmp_path, events, split=split, seed=7)
        share = {user: md5_lower(f"7:user:{user}") / 2**64 for user in range(users)}
        test = {user for user in share if share[user] < 0.2}
        validation = {user for user in share if share[user] < 0.1 + 0.2} - test
        for held_out, theirs in (("test", test), ("validation", validation)):
            found = [(row["raw_user_id"], row["timestamp"], len(row["history"])) for row in rows(tmp_path, held_out)]
            assert sorted(found) == sorted((name(user), 60 * step, step) for user in theirs for step in range(3))
            assert all(row["user_id"] == 0 for row in rows(tmp_path, held_out))
        assert set(vocabulary(tmp_path, "user_id")) == {name(user) for user in set(share) - test - validation}


def test_split_by_time_needs_timestamps(tmp_path: Path) -> None:
    events = {"user_id": [1] * 4, "item_id": [1, 2, 3, 4]}
    with pytest.raises(UserError, match=r"data.split.by=time: expected events with timestamps"):
        prepare_shop(tmp_path, events, columns=ColumnsConfig(timestamp=None), split=SplitConfig(by="time"))


def test_unknown_items_out_of_vocabulary_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = events_of(1, events=6)
    events = {name: values + more for (name, values), more in zip(events.items(), ([2], [99], [0]), strict=True)}
    schema = prepare_shop(tmp_path, events, {"item_id": [2, 3, 5, 6]}, unknown_items="out_of_vocabulary")
    told = capsys.readouterr().out
    assert "users     1\n" in told  # the other has nothing but an unknown item
    assert "kept in histories alone, as out of vocabulary: 3 events that name 3 unknown items, such as 1, 4, 99" in told
    assert schema.num_events == {"train": 2, "validation": 1, "test": 1}
    (test,) = rows(tmp_path, "test")
    assert [place < 0 for place in test["history"]] == [False, True, False]  # items 3, 4 and 5
    assert [place < 0 for place in test["seen"]] == [True, False, False, True, False]
