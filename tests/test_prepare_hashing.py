from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import md5_lower
from tests.shop import candidate, catalog, events_of, prepare_shop, query, rows
from trainer.data.engine import open_engine
from trainer.data.hashing import describe_collisions, hashed_row
from trainer.data.schema import SPLITS


def row_of(value: object, buckets: int) -> int:
    return 0 if value is None else 1 + md5_lower(str(value)) % buckets


@given(
    values=st.lists(st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(exclude_characters="\0")), max_size=30),
    buckets=st.integers(1, 2**31 - 2),
)
@settings(max_examples=30)
def test_a_row_is_what_hashlib_says(tmp_path: Path, values: list[int | str], buckets: int) -> None:
    with open_engine(tmp_path, "1GB") as connection:
        for value in values:
            kind = "BIGINT" if isinstance(value, int) else "VARCHAR"
            found = connection.execute(f"SELECT {hashed_row(f'$1::{kind}', buckets)}", [value]).fetchone()
            assert found == (row_of(value, buckets),)


@given(values=st.lists(st.none() | st.integers(0, 30), max_size=60), buckets=st.integers(1, 40))
@settings(max_examples=30)
def test_collisions_are_counted(tmp_path: Path, values: list[int | None], buckets: int) -> None:
    with open_engine(tmp_path, "1GB") as connection:
        connection.execute("CREATE OR REPLACE TABLE listed (value BIGINT)")
        connection.executemany("INSERT INTO listed VALUES (?)", [[None], *([value] for value in values)])
        told = describe_collisions(connection, "FROM listed", buckets)
    distinct = {value for value in values if value is not None}
    sizes = Counter(row_of(value, buckets) for value in distinct)
    sharing = sum(sizes[row_of(value, buckets)] > 1 for value in distinct)
    share = 100 * sharing / max(len(distinct), 1)
    assert told == f"{len(distinct):,} values in {buckets:,} rows; {share:.1f} % share a row with another"


@pytest.mark.parametrize("name", [int, "item {}".format])
def test_hashed_features_of_both_sides(tmp_path: Path, name: Any, capsys: pytest.CaptureFixture[str]) -> None:
    events = events_of(1, 2, 3, events=5)
    events["item_id"] = [name(item) for item in events["item_id"]]
    events["device"] = [None, "phone", "", "tv", "web"] * 3
    events["context"] = [["p"], ["p", "q"], [], None, ["q", "new"]] * 3
    items = {
        "item_id": [name(item) for item in range(1, 8)],  # two have no events
        "tags": [[7, 8], None, [], [8], [9, None], [7], [7]],
        "brand": [10, 10, None, 20, 30, 40, 50],
    }
    features = {
        "user_id": query("id", hash_buckets=5),
        "device": query("categorical", hash_buckets=2),
        "context": query("categorical", hash_buckets=6),
        "segment": query("categorical", hash_buckets=3),
        "item_id": candidate("id", hash_buckets=4),
        "tags": candidate("categorical", hash_buckets=7),
        "brand": candidate("categorical", hash_buckets=8),
    }
    users = {"user_id": [1, 2], "segment": ["x", "y"]}
    schema = prepare_shop(tmp_path, events, items, users, features)
    told = capsys.readouterr().out

    by_name = {feature.name: feature for feature in schema.features}
    sizes = {feature.name: feature.num_embeddings for feature in schema.features}
    assert sizes == {name: feature.hash_buckets + 1 for name, feature in features.items()} | {"history": 5}
    assert all(feature.hashed for feature in schema.features)
    assert by_name["history"].table == "item_id"
    assert list((tmp_path / "out/vocabulary").iterdir()) == []

    for row, (item, tags, brand) in zip(
        sorted(catalog(tmp_path), key=lambda row: items["item_id"].index(row["raw_item_id"])),
        zip(*items.values(), strict=True), strict=True,
    ):  # fmt: skip
        assert row["item_id"] == row_of(item, 4)
        assert row["tags"] == [row_of(tag, 7) for tag in tags or [] if tag is not None]
        assert row["brand"] == row_of(brand, 8)

    for split in SPLITS:
        for row in rows(tmp_path, split):
            place = row["timestamp"] // 60
            assert row["device"] == row_of(events["device"][place], 2)
            assert row["context"] == [row_of(value, 6) for value in events["context"][place] or []]
            if split == "test":
                assert row["user_id"] == row_of(row["raw_user_id"], 5)
                assert row["segment"] == row_of({1: "x", 2: "y"}.get(row["raw_user_id"]), 3)

    sizes_of_rows = Counter(row_of(item, 4) for item in items["item_id"])
    sharing = sum(size for size in sizes_of_rows.values() if size > 1)
    assert f"feature item_id: 7 values in 4 rows; {100 * sharing / 7:.1f} % share a row with another" in told
    # Training events alone count for a query: the first three of each user.
    assert "feature context: 2 values in 6 rows;" in told
