"""Splits with one query a user, against plain Python."""

import shutil
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tests.oracle import EVENTS, Event, as_columns, md5_lower
from tests.shop import catalog, events_of, prepare_shop, query, rows
from trainer.config import ColumnsConfig, SplitConfig
from trainer.errors import UserError

Before = list[tuple[int | None, int]]  # items, and when they are known
Asked = tuple[int, list[int], Before, int, int]  # user, targets, what came before, time, weight

SPLITS = [
    SplitConfig("random", 0.2, 0.3),
    SplitConfig("item", 0.3, 0.3),
    SplitConfig("given", 0.3),
    SplitConfig("given", 0.3, validation_by="item"),
    SplitConfig("random", 0.0, 0.3),
    SplitConfig("item", 0.0, 0.3),
    SplitConfig("given", 0.0),
]


def draw(events: list[Event], stated: list[str], known: Collection[int], split: SplitConfig) -> list[str | None]:
    """Each event's split: as stated, or drawn from what is stated to be train; None for an unknown item."""
    shares = {"test": split.test} if split.by != "given" else {}
    shares |= {"validation": split.validation} if split.by != "given" or "validation" not in stated else {}
    by_item = "item" in (split.by, split.validation_by)
    found = [name if event[1] in known else None for name, event in zip(stated, events, strict=True)]
    for user in {user for user, _, _ in events}:
        left = [seq for seq, event in enumerate(events) if event[0] == user and found[seq] == "train"]
        left.sort(key=lambda seq: md5_lower(f"0:event:{seq}"))
        count, bound = len(left), 0.0
        for name, share in shares.items():
            bound += share
            drawn = left[: int(count * share + 1e-9)]
            if by_item:
                drawn = [seq for seq in left if md5_lower(f"0:item:{events[seq][1]}") / 2**64 < bound]
            for seq in drawn:
                found[seq] = name
            left = [seq for seq in left if seq not in drawn]
    return found


def ask(events: list[Event], stated: list[str], splits: list[str | None]) -> tuple[dict[str, list[Asked]], list[Asked]]:
    """The queries of validation and test, and the training rows; an event weighs as many as came before it."""
    asked: dict[str, list[Asked]] = {"validation": [], "test": []}
    trained = []
    for user in {user for user, _, _ in events}:
        theirs = sorted((time, seq, item, splits[seq]) for seq, (its, item, time) in enumerate(events) if its == user)
        before: Before = []
        for time, seq, item, split in theirs:
            if split == "train":
                trained.append((user, [item], list(before), time, seq))
            if stated[seq] == "train" and split in ("train", None):
                before.append((item if split else None, time))
        for name, queries in asked.items():
            had, first = {item for item, _ in before}, dict[int, int]()
            for time, _, item, split in theirs:
                if split == name and item not in had:
                    first.setdefault(item, time)
            known = list(before)
            for item, time in first.items():
                before.append((item, max([time, *(at for _, at in before)])))
            if first and known:
                queries.append((user, [*first], known, before[len(known)][1], 0))
    return asked, trained


def past(before: Before, time: int) -> tuple[list[int | None], list[int]]:
    """The history, of three events at most, and their ages."""
    return [item for item, _ in before[-3:]], [time - at for _, at in before[-3:]]


@given(
    events=EVENTS,
    known=st.none() | st.sets(st.integers(1, 6), min_size=3),
    split=st.sampled_from(SPLITS),
    stated=st.lists(st.sampled_from(["train", "train", "train", "test", "validation"]), min_size=30, max_size=30),
    validation_stated=st.booleans(),
)
@example(  # an event of an unknown item, to come
    events=[(1, 1, 0), (1, 2, 1), (1, 5, 2), (1, 3, 3)], known={1, 2, 3}, split=SPLITS[2],
    stated=["train", "validation", "test", "test"], validation_stated=True,
)  # fmt: skip
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
def test_queries_equal_those_of_plain_python(
    tmp_path: Path, events: list[Event], known: set[int] | None, split: SplitConfig, stated: list[str],
    validation_stated: bool,
) -> None:  # fmt: skip
    there = {item for _, item, _ in events} if known is None else known
    stated = [name if name != "validation" or validation_stated else "test" for name in stated[: len(events)]]
    fold = stated
    if split.by != "given":
        stated = ["train"] * len(events)
    if not split.validation:
        stated = [name.replace("validation", "train") for name in stated]
    asked, trained = ask(events, stated, draw(events, stated, there, split))
    assume(trained and asked["test"] and (asked["validation"] or not split.validation))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    columns = ColumnsConfig(split="fold" if split.by == "given" else None, weight="value")
    items = None if known is None else {"item_id": sorted(known)}
    schema = prepare_shop(
        tmp_path, as_columns(events) | {"fold": fold, "split": [7] * len(events), "value": [*range(len(events))]},
        items, split=split, columns=columns, unknown_items="out_of_vocabulary", layouts=["event"],
    )  # fmt: skip
    item: dict[int, int | None] = {place: row["raw_item_id"] for place, row in enumerate(catalog(tmp_path))}
    item[-1] = None
    for name, expected in asked.items():
        found = [
            (row["raw_user_id"], [item[place] for place in row["targets"]], [item[place] for place in row["seen"]],
             row["timestamp"], [item[place] for place in row["history"]], row["history_age"])
            for row in rows(tmp_path, name)
        ]  # fmt: skip
        wanted = [(user, targets, [its for its, _ in before], time, *past(before, time))
                  for user, targets, before, time, _ in expected]  # fmt: skip
        assert sorted(found, key=repr) == sorted(wanted, key=repr)
        assert schema.num_events[name] == len(expected)
    found_train = [
        (item[row["item_row"]], row["weight"], row["timestamp"], [item[place] for place in row["history"]],
         row["history_age"])
        for row in rows(tmp_path, "train")
    ]  # fmt: skip
    wanted = [(its, weight, time, *past(before, time)) for _, (its,), before, time, weight in trained]
    assert sorted(found_train, key=repr) == sorted(wanted, key=repr)
    counts = Counter(its for its, *_ in wanted)
    assert {row["raw_item_id"]: row["train_count"] for row in catalog(tmp_path)} == {its: counts[its] for its in there}


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "split: " in line]


def test_what_is_not_asked_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = events_of(1, 2, events=10)  # of ten, two and one
    events = {
        name: values + more for (name, values), more in zip(events.items(), ([3] * 4, [1] * 4, [0] * 4), strict=True)
    }
    schema = prepare_shop(tmp_path, events, split=SplitConfig("random", 0.1, 0.2))
    assert schema.num_events == {"train": 18, "validation": 2, "test": 2}
    assert [len(row["targets"]) for row in rows(tmp_path, "test")] == [2, 2]
    assert told(capsys) == [
        "note      split: 1 users have too few events for 0.2 of them to be held out for test",
        "note      split: 1 users have too few events for 0.1 of them to be held out for validation",
    ]


def test_given_splits_tell_what_is_no_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = {
        "user_id": [1, 1, 1, 1, 2, 2, 3],
        "item_id": ["a", "b", "a", "c", "a", "b", "c"],
        "split": ["train", "validation", "test", "test", "train", "validation", "test"],
    }
    columns = ColumnsConfig(timestamp=None, split="split")
    schema = prepare_shop(tmp_path, events, columns=columns, split=SplitConfig("given"))
    assert schema.num_events == {"train": 2, "validation": 2, "test": 1}
    assert told(capsys) == [
        "note      split: 1 users with events in test have none before and are not asked",
        "note      split: 1 held-out events are of items that their users have had before: no targets",
    ]


def test_items_that_are_held_out_have_no_row_of_their_own_but_their_features(tmp_path: Path) -> None:
    items = {"item_id": list(range(1, 61)), "kind": ["x"] * 60}
    features = {"kind": query("categorical", min_count=1)}
    features["kind"].side = "candidate"
    prepare_shop(tmp_path, events_of(1, 2, events=60), items, features=features, split=SplitConfig("item", 0.2, 0.2))
    place = {item: md5_lower(f"0:item:{item}") / 2**64 for item in items["item_id"]}
    found = {row["raw_item_id"]: row for row in catalog(tmp_path)}
    for item, row in found.items():
        assert (row["item_id"] == 0) == (row["train_count"] == 0) == (place[item] < 0.4)
        assert row["validation_count"] == 2 * (0.2 <= place[item] < 0.4)
        assert row["kind"] == 1


@pytest.mark.parametrize(
    ("split", "columns", "fold", "message"),
    [
        ("given", ColumnsConfig(), "train", r"data.columns.split=None: expected the events' column of splits"),
        ("random", ColumnsConfig(split="fold"), "train", r"data.columns.split=fold: expected .* null for "),
        ("given", ColumnsConfig(split="part"), "train", r"data.columns.split=part: expected a column of the events: "),
        ("given", ColumnsConfig(split="fold"), "dev", r"events.split=dev in 1 rows \(first: .* row 3.*expected train"),
        ("given", ColumnsConfig(split="fold"), None, r"events.split=null in 1 rows \(first: .* row 3"),
        ("given", ColumnsConfig(split="fold"), "train", r"data.split=.*expected at least one event to go to test"),
    ],
)  # fmt: skip
def test_a_split_that_is_not_given_is_refused(
    tmp_path: Path, split: str, columns: ColumnsConfig, fold: Any, message: str
) -> None:
    events = events_of(1, events=20) | {"fold": ["train", "train", fold, *["train"] * 17]}
    with pytest.raises(UserError, match=message):
        prepare_shop(tmp_path, events, columns=columns, split=SplitConfig(split))
