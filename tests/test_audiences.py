"""Who chose an item in training, as a feature of the item."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.oracle import EVENTS, Event, as_columns, assign, queries
from tests.shop import candidate, catalog, events_of, prepare_shop, query, vocabulary
from trainer.config import ColumnsConfig, FeatureConfig, SplitConfig
from trainer.errors import UserError


@given(events=EVENTS, length=st.integers(1, 4), min_count=st.integers(1, 2), has_times=st.booleans())
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_audiences_are_the_newest_users_in_training(
    tmp_path: Path, events: list[Event], length: int, min_count: int, has_times: bool
) -> None:
    if not has_times:
        events = [(user, item, place) for place, (user, item, _) in enumerate(events)]
    splits = queries(assign(events, range(1, 7), SplitConfig()))
    assume(all(splits.values()))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    features = {"user_id": query("id", min_count=min_count), "audience": candidate("audience", length=length)}
    columns = as_columns(events) if has_times else {k: v for k, v in as_columns(events).items() if k != "timestamp"}
    named = ColumnsConfig() if has_times else ColumnsConfig(timestamp=None)
    schema = prepare_shop(tmp_path, columns, features=features, columns=named)
    audience = next(feature for feature in schema.features if feature.name == "audience")
    rows = vocabulary(tmp_path, "user_id")
    assert (audience.table, audience.num_embeddings, audience.length) == ("user_id", len(rows) + 1, length)

    newest: dict[int, dict[int, int]] = {}  # of each item, by the row of each known user
    for (user, item, timestamp), _ in splits["train"]:
        if user in rows:
            of_item = newest.setdefault(item, {})
            of_item[rows[user]] = max(timestamp, of_item.get(rows[user], timestamp))
    for item in catalog(tmp_path):
        of_item, found = newest.get(item["raw_item_id"], {}), item["audience"]
        assert found == sorted(set(found)) and len(found) == min(length, len(of_item))
        assert set(found) <= of_item.keys()
        if has_times and found:
            left_out = [timestamp for row, timestamp in of_item.items() if row not in found]
            assert min(of_item[row] for row in found) >= max(left_out, default=min(of_item[row] for row in found))


def test_without_times_an_audience_is_drawn(tmp_path: Path) -> None:
    events = {name: values for name, values in events_of(*range(400), events=5).items() if name != "timestamp"}
    features = {"audience": candidate("audience", length=100)}
    prepare_shop(tmp_path, events, features=features, columns=ColumnsConfig(timestamp=None))
    place = {row: user for user, row in vocabulary(tmp_path, "user_id").items()}
    first = next(item for item in catalog(tmp_path) if item["raw_item_id"] == 1)
    users = [place[row] for row in first["audience"]]
    assert len(users) == 100 and 160 < sum(users) / 100 < 240  # neither the first nor the last of the file


def test_hashed_users_are_an_audience_by_their_hashes(tmp_path: Path) -> None:
    features = {"user_id": query("id", hash_buckets=3), "audience": candidate("audience")}
    schema = prepare_shop(tmp_path, events_of(*range(50), events=4), features=features)
    assert next(feature for feature in schema.features if feature.name == "audience").hashed
    found = {item["raw_item_id"]: item["audience"] for item in catalog(tmp_path)}
    assert found == {1: [1, 2, 3], 2: [1, 2, 3], 3: [], 4: []}  # the last two are held out, of everybody


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"audience": query("audience")}, r"data.features.audience.side=query: expected candidate for kind audience"),
        ({"audience": candidate("audience"), "also": candidate("audience")}, r"expected at most one audience"),
        ({"user_id": query("categorical"), "audience": candidate("audience")}, r"expected the id of the query's user"),
    ],
)
def test_audiences_that_cannot_be_are_refused(tmp_path: Path, features: dict[str, FeatureConfig], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_shop(tmp_path, events_of(1, 2), features=features)
