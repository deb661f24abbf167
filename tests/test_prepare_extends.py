import shutil
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shop import Columns, candidate, catalog, events_of, prepare_shop, query, rows, vocabulary
from trainer.config import FeatureConfig
from trainer.data.schema import Schema, read_schema
from trainer.errors import UserError

DAY = 86_400


def day(number: int, items: list[int]) -> Columns:
    """A user of that day sees the items one after another, then 1, then 2."""
    items = [*items, 1, 2]
    return {
        "user_id": [number] * len(items),
        "item_id": items,
        "timestamp": [number * DAY + step for step in range(len(items))],
        "spent": [float(number + step) for step in range(len(items))],
    }


def together(*days: Columns) -> Columns:
    return {name: [value for columns in days for value in columns[name]] for name in days[0]}


def counts(folder: Path, table: str) -> dict[int | str, int]:
    path = folder / "out" / "vocabulary" / f"{table}.parquet"
    return {row["id"]: row["count"] for row in pq.read_table(path).to_pylist()}


def prepare_days(folder: Path, events: Columns, earlier: Path | None = None, **settings: Any) -> Schema:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    extends = None if earlier is None else str(earlier / "out")
    return prepare_shop(folder, events, extends=extends, **settings)


@given(
    days=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=12), min_size=3, max_size=3),
    min_count=st.integers(1, 3),
    keep_first=st.booleans(),
)
@settings(max_examples=10)
def test_vocabularies_keep_their_rows_and_grow(
    tmp_path: Path, days: list[list[int]], min_count: int, keep_first: bool
) -> None:
    features = {"item_id": candidate("id", min_count=min_count), "spent": query("numeric"), "hour": query("hour")}
    logs = [day(number, items) for number, items in enumerate(days)]
    chosen = [logs[:1], logs[:2] if keep_first else logs[1:2], logs if keep_first else logs[2:]]
    schemas: list[Schema] = []
    known: dict[int | str, int] = {}
    for number, of_day in enumerate(chosen):
        events, folder = together(*of_day), tmp_path / f"day{number}"
        earlier = tmp_path / f"day{number - 1}" if number else None
        schemas.append(prepare_days(folder, events, earlier, features=features, seed=number))
        trained = [item for columns in of_day for item in columns["item_id"][:-2]]
        frequent = {item for item, count in Counter(trained).items() if count >= min_count}
        found = vocabulary(folder, "item_id")
        assert {item: found[item] for item in known} == known
        assert {item for item in found if item not in known} == frequent - set(known)
        assert sorted(found.values()) == list(range(1, len(found) + 1))
        assert counts(folder, "item_id") == {item: Counter(trained)[item] for item in found}
        assert schemas[-1].item_id.num_embeddings == len(found) + 1
        assert {row["raw_item_id"]: row["item_id"] for row in catalog(folder)} == {
            item: found.get(item, 0) for item in set(events["item_id"])
        }
        assert vocabulary(folder, "hour") == {hour: hour + 1 for hour in range(24)}
        known = found
    first, second, third = schemas
    assert first.extends == ()
    assert second.extends == (first.fingerprint,)
    assert third.extends == (first.fingerprint, second.fingerprint)
    spent = logs[0]["spent"][:-2]
    for schema in schemas:
        statistics_of_spent = next((f.mean, f.std) for f in schema.features if f.name == "spent")
        assert statistics_of_spent == pytest.approx((statistics.fmean(spent), statistics.pstdev(spent) or 1))


def test_lists_and_strings_continue_too_and_all_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items: Columns = {"item_id": [1, 2, 3, 4], "tags": [["a", "b"], ["b"], [], None], "price": [1.0, 3.0, 1.0, 3.0]}
    features = {"tags": candidate("categorical"), "price": candidate("numeric"), "hour": query("hour")}
    prepare_days(tmp_path / "old", events_of(1, 2), items=items, features=features)
    before = vocabulary(tmp_path / "old", "tags")
    more = {"item_id": [1, 2, 3, 4, 5], "tags": [["c"], ["b", "c"], ["d"], [], []], "size": [5.0, 7.0, 9.0, 5.0, 5.0]}
    features = {"tags": candidate("categorical"), "size": candidate("numeric"), "hour": query("hour")}
    capsys.readouterr()
    schema = prepare_days(tmp_path / "new", events_of(2, 3, events=5), tmp_path / "old", items=more, features=features)
    told = capsys.readouterr().out
    after = vocabulary(tmp_path / "new", "tags")
    assert {tag: after[tag] for tag in before} == before
    assert {after["c"], after["d"]} == {3, 4}
    by_id = {row["raw_item_id"]: row["tags"] for row in catalog(tmp_path / "new")}
    assert by_id[2] == [before["b"], after["c"]]
    assert counts(tmp_path / "new", "tags") == {"a": 0, "b": 1, "c": 2, "d": 1}
    users = vocabulary(tmp_path / "new", "user_id")
    assert users == vocabulary(tmp_path / "old", "user_id") | {3: 3}
    assert all(row["user_id"] == users[row["raw_user_id"]] for row in rows(tmp_path / "new", "test"))
    old = tmp_path / "old" / "out"
    assert f"feature size: new, {old} lacks it" in told
    assert f"feature price: left out, though {old} has it" in told
    assert "feature tags: 2 values kept, 2 gained" in told
    assert "feature item_id: 2 values kept, 1 gained" in told
    assert "feature item_id: 2 values with no occurrence in training share row 0" in told
    assert next(f.mean for f in schema.features if f.name == "size") == pytest.approx(6.2)


OLD = {
    "brand": candidate("categorical"),
    "maker": candidate("categorical", hash_buckets=10),
    "tags": candidate("categorical"),
    "price": candidate("numeric"),
    "title": candidate("text", dim=8),
    "image": candidate("vector"),
}
ITEMS: Columns = {
    "item_id": [1, 2, 3, 4],
    "brand": ["a", "b", "c", "d"],
    "maker": [1, 2, 3, 4],
    "tags": [["x"], ["y"], [], []],
    "price": [1.0, 2.0, 3.0, 4.0],
    "title": ["a", "b", "c", "d"],
    "image": [[1.0, 2.0]] * 4,
}
STRINGS = events_of(1) | {"item_id": ["1", "2", "3", "4"]}
CHANGES: dict[str, tuple[dict[str, FeatureConfig], Columns, str]] = {
    "kind": ({"price": candidate("categorical")}, {}, r"price.kind=categorical: expected numeric, as in data.extends="),
    "side": ({"price": query("numeric")}, {}, r"price.side=query: expected candidate, as in"),
    "log1p": ({"price": candidate("numeric", log1p=True)}, {}, r"price.log1p=True: expected False, as in"),
    "hashed": ({"brand": candidate("categorical", hash_buckets=9)}, {}, r"brand.hash_buckets=9: expected null, as in"),
    "not hashed": ({"maker": candidate("categorical")}, {}, r"maker.hash_buckets=null: expected 10, as in"),
    "buckets": ({"maker": candidate("categorical", hash_buckets=9)}, {}, r"hash_buckets=9: expected 10, as in"),
    "text": ({"title": candidate("text", dim=4)}, {}, r"title.dim=4: expected 8, as in"),
    "vector": ({}, {"image": [[1.0]] * 4}, r"data.features.image=dim 1: expected dim 2, as in"),
    "lists": ({}, {"tags": ["x", "y", "z", "z"]}, r"tags=single values: expected lists of values, as in"),
    "type": ({}, {"brand": [1, 2, 3, 4]}, r"data.features.brand=int64: expected string, as in"),
    "type of ids": ({}, {"item_id": ["1", "2", "3", "4"]}, r"data.features.item_id=string: expected int64, as in"),
}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to extend."""
    folder = tmp_path_factory.mktemp("old")
    prepare_days(folder / "shop", events_of(1), items=ITEMS, features=OLD)
    return folder / "shop"


@pytest.mark.parametrize("name", CHANGES)
def test_a_feature_that_changed_is_refused(tmp_path: Path, old: Path, name: str) -> None:
    features, columns, message = CHANGES[name]
    events = STRINGS if name == "type of ids" else events_of(1)
    with pytest.raises(UserError, match=message):
        prepare_days(tmp_path / "new", events, old, items=ITEMS | columns, features=OLD | features)
    assert not (tmp_path / "new" / "out").exists()


def test_a_folder_that_is_not_prepared_or_damaged_is_refused(tmp_path: Path, old: Path) -> None:
    with pytest.raises(UserError, match=r"data.extends=.*: expected a folder written by trainer.prepare"):
        prepare_days(tmp_path / "new", events_of(1), tmp_path)
    shutil.copytree(old, tmp_path / "old")
    path = tmp_path / "old/out/vocabulary/brand.parquet"
    others = pq.read_table(path)
    others = others.set_column(0, "id", others["id"].take(pa.array(range(len(others))[::-1])))
    intact = path.read_bytes()
    pq.write_table(others, path)  # the same values, but each has another's row
    with pytest.raises(UserError, match=r"brand.parquet=damaged or another: expected the file that was written"):
        prepare_days(tmp_path / "new", events_of(1), tmp_path / "old", items=ITEMS, features=OLD)
    path.write_bytes(intact)
    schema = replace(read_schema(tmp_path / "old/out"), footers={})  # as one was written that knew no vocabularies
    (tmp_path / "old/out/schema.json").write_text(schema.to_json())
    pq.write_table(pq.read_table(path).slice(0, 3), path)
    with pytest.raises(UserError, match=r"data.extends=.*brand.parquet: expected 4 values, as its schema.json says"):
        prepare_days(tmp_path / "new", events_of(1), tmp_path / "old", items=ITEMS, features=OLD)
    path.write_text("no parquet")
    with pytest.raises(UserError, match=r"data.extends=.*brand.parquet: expected readable files"):
        prepare_days(tmp_path / "new", events_of(1), tmp_path / "old", items=ITEMS, features=OLD)
    path.unlink()
    with pytest.raises(UserError, match=r"data.extends=.*brand.parquet: expected readable files"):
        prepare_days(tmp_path / "new", events_of(1), tmp_path / "old", items=ITEMS, features=OLD)


def test_what_is_refused_by_its_declaration_is_so_before_data_is_read(tmp_path: Path, old: Path) -> None:
    changed = OLD | {"price": candidate("categorical")}
    with pytest.raises(UserError, match=r"price.kind=categorical"):
        prepare_days(tmp_path / "new", {"user_id": pa.array([], pa.int64())}, old, items=ITEMS, features=changed)
