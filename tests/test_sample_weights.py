from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.shop import IDS, candidate, catalog, events_of, prepare_shop, query, rows, sequences
from trainer.config import ColumnsConfig, PrepareConfig, TabularConfig
from trainer.data.schema import read_schema
from trainer.errors import UserError
from trainer.prepare import prepare

WEIGHTED = ColumnsConfig(weight="stay")
STAYS = [0.0, 2.5, 1.0, 7.0, 8.0]


def test_training_rows_have_the_weights_of_their_events(tmp_path: Path) -> None:
    events = events_of(1, 2, events=5) | {
        "stay": [*STAYS, *(10 * stay for stay in STAYS)],
        "weight": [1, 2, 3, 4, 5] * 2,
    }
    features = {"kg": query("numeric", column="weight")}  # a column of that name is one's own
    schema = prepare_shop(tmp_path, events, features=features, columns=WEIGHTED, layouts=["event", "sequence"])
    assert schema.sample_weights
    items = [row["raw_item_id"] for row in catalog(tmp_path)]
    found = {(row["user_id"], items[row["item_row"]]): (row["weight"], row["kg"]) for row in rows(tmp_path, "train")}
    assert len(found) == 6
    assert len({weights for (_, item), weights in found.items() if item == 2}) == 2
    assert all(
        weight in (STAYS[item - 1], 10 * STAYS[item - 1]) and kg == item for (_, item), (weight, kg) in found.items()
    )
    for row in sequences(tmp_path):
        assert row["weight"] == [found[row["user_id"], items[place]][0] for place in row["item_row"]]
    kinds = pq.read_schema(tmp_path / "out/events/train/part-00000.parquet")
    assert (kinds.field("weight").type, kinds.field("weight").nullable) == (pa.float32(), False)
    assert not any("weight" in row for split in ("validation", "test") for row in rows(tmp_path, split))


def test_csv_without_times(tmp_path: Path) -> None:
    pa.csv.write_csv(pa.table(events_of(1) | {"stay": [1, 2, 3, 4]}), tmp_path / "events.csv")
    config = TabularConfig(dir=str(tmp_path / "out"), source=str(tmp_path), events="events.csv", features=IDS,
                           columns=ColumnsConfig(timestamp=None, weight="stay"))  # fmt: skip
    prepare(PrepareConfig(data=config))
    assert sorted(row["weight"] for row in rows(tmp_path, "train")) == [1, 2]
    assert not read_schema(tmp_path / "out").timestamps


def csv_of(*stays: str) -> str:
    lines = (f"1,{item},{item},{stay}" for item, stay in enumerate(stays))
    return "\n".join(["user_id,item_id,timestamp,stay", *lines])


@pytest.mark.parametrize(
    ("stays", "column", "message"),
    [
        (("1", "", "2", "3"), "stay", r"weight=something else in 1 events \(first: .*row 2, line 3\): expected finite"),
        (("1", "2", "-1", "-2"), "stay", r"weight=something else in 2 events \(first: .*row 3, line 4\)"),
        (("1", "2", "1e39", "3"), "stay", r"weight=something else in 1 events \(first: .*row 3, line 4\)"),
        (("nan", "2", "1", "inf"), "stay", r"weight=something else in 2 events \(first: .*row 1, line 2\)"),
        (("1", "2", "long", "3"), "stay", r"weight=stay, where 1 of 4 values .*row 3.*: expected a column of numbers"),
        (("a", "b", "c", "d"), "stay", r"weight=stay \(VARCHAR\): expected a column of numbers"),
        (("1", "2", "3", "4"), "stays", r"weight=stays: expected a column of the events: user_id, item_id, timestamp"),
    ],
)
def test_errors(tmp_path: Path, stays: tuple[str, ...], column: str, message: str) -> None:
    (tmp_path / "events.csv").write_text(csv_of(*stays))
    config = TabularConfig(dir=str(tmp_path / "out"), source=str(tmp_path), events="events.csv", features=IDS,
                           columns=ColumnsConfig(weight=column))  # fmt: skip
    with pytest.raises(UserError, match=r"data.columns." + message):
        prepare(PrepareConfig(data=config))


@pytest.mark.parametrize("name", ["weight", "history_age", "timestamp"])
def test_names_of_these_columns_are_no_features(tmp_path: Path, name: str) -> None:
    features: dict[str, Any] = {name: candidate("numeric", column="item_id")}
    with pytest.raises(UserError, match=rf"data.features.{name}={name}: expected a name other than"):
        prepare_shop(tmp_path, events_of(1), features=features)
