from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shop import IDS, catalog, events_of, query, rows
from trainer.config import ColumnsConfig, PrepareConfig, TabularConfig
from trainer.data.engine import EVENTS, ITEMS, USERS
from trainer.data.tabular import read_tabular
from trainer.errors import UserError
from trainer.prepare import prepare


def read(folder: Path, view: str = EVENTS, **settings: Any) -> list[dict[str, Any]]:
    """The rows of a view that the source makes, by seq."""
    connection = duckdb.connect()
    read_tabular(TabularConfig(dir="", source=str(folder), **({"events": "events.csv"} | settings)), connection)
    order = "ORDER BY seq" if view == EVENTS else ""
    return connection.sql(f"SELECT * FROM {view} {order}").to_arrow_table().to_pylist()


def test_csv_with_other_names(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text('who;what;"at;time"\n1;a b;5\n2;"c;d";6\n')
    columns = ColumnsConfig(user_id="who", item_id="what", timestamp="at;time")
    found = read(tmp_path, events="log.csv", columns=columns)
    assert [(row["user_id"], row["item_id"], row["timestamp"], row["seq"]) for row in found] == [
        (1, "a b", 5, 0),
        (2, "c;d", 6, 1),
    ]
    assert found[0]["who"] == 1  # features may go by either name


def test_names_that_differ_by_their_case(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("User_ID,item_id,Timestamp\n1,2,5\n3,4,6\n")
    columns = ColumnsConfig(user_id="User_ID", timestamp="Timestamp")
    assert read(tmp_path, columns=columns) == [
        {"item_id": 2, "user_id": 1, "timestamp": 5, "seq": 0},
        {"item_id": 4, "user_id": 3, "timestamp": 6, "seq": 1},
    ]


def test_items_and_users(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user_id,sku,timestamp\n1,7,5\n")
    (tmp_path / "items.csv").write_text("sku,price\n7,1.5\n")
    (tmp_path / "users.csv").write_text("user_id,country\n1,de\n")
    settings = {"items": "items.csv", "users": "users.csv", "columns": ColumnsConfig(item_id="sku")}
    assert read(tmp_path, ITEMS, **settings) == [{"sku": 7, "price": 1.5, "item_id": 7}]
    assert read(tmp_path, USERS, **settings) == [{"user_id": 1, "country": "de"}]


@pytest.mark.parametrize("path", ["logs", "logs/*.csv", "logs/**/*.csv"])
def test_several_files_come_by_name(tmp_path: Path, path: str) -> None:
    (tmp_path / "logs").mkdir()
    for name, user in (("part-10", 3), ("part-02", 2), ("part-01", 1)):
        lines = "".join(f"{user},{item},0\n" for item in range(5000))
        (tmp_path / "logs" / f"{name}.csv").write_text("user_id,item_id,timestamp\n" + lines)
    (tmp_path / "logs" / "_SUCCESS").write_text("")
    (tmp_path / "logs" / "_part-01.csv").write_text("not mine")
    found = read(tmp_path, events=path)
    assert [(row["user_id"], row["item_id"]) for row in found] == [(u, i) for u in (1, 2, 3) for i in range(5000)]
    assert [row["seq"] for row in found] == list(range(15_000))


def test_a_later_csv_may_widen_a_type(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp,x\n1,7,1,1\n")
    (tmp_path / "b.csv").write_text("user_id,item_id,timestamp,x\nanna,8,2,1.5\n")
    found = read(tmp_path, events="*.csv")
    assert [(row["user_id"], row["x"]) for row in found] == [("1", 1.0), ("anna", 1.5)]
    (tmp_path / "b.csv").write_text("user_id,item_id,timestamp,x\n")  # no rows, no types
    (tmp_path / "c.csv").write_text("user_id,item_id,timestamp,x\n3,8,2,\n")
    assert [(row["user_id"], row["x"]) for row in read(tmp_path, events="*.csv")] == [(1, 1), (3, None)]
    late = "".join(f"{number},7,{number},0\n" for number in range(30_000))
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp,x\n" + late + "anna,7,1,0\n")
    assert read(tmp_path, events="a.csv")[-1]["user_id"] == "anna"


MOMENT = datetime(2024, 2, 29, 23, 59, 58, tzinfo=timezone.utc)
SECONDS = 1_709_251_198


@pytest.mark.parametrize(
    ("unit", "convert"),
    [
        ("s", lambda seconds: seconds),
        ("ms", lambda seconds: seconds * 10**3 + 999),
        ("us", lambda seconds: seconds * 10**6 + 999_999),
        ("ns", lambda seconds: seconds * 10**9 + 999_999_999),
        ("s", lambda seconds: seconds + 0.75),
        ("s", lambda seconds: datetime(1970, 1, 1) + timedelta(seconds=seconds + 0.5)),
        ("s", lambda seconds: datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)),
    ],
)
def test_timestamps_become_seconds(tmp_path: Path, unit: str, convert: Callable[[int], Any]) -> None:
    seconds = [SECONDS, SECONDS + 1, 0, -1, -86_400]
    assert MOMENT.timestamp() == SECONDS
    table = pa.table({"user_id": [1] * 5, "item_id": [1] * 5, "timestamp": [convert(second) for second in seconds]})
    pq.write_table(table, tmp_path / "events.parquet")
    found = read(tmp_path, events="events.parquet", timestamp_unit=unit)
    assert sorted(row["timestamp"] for row in found) == sorted(seconds)


@given(times=st.lists(st.integers(-3000, 3000), min_size=1, max_size=20))
@settings(max_examples=20)
def test_a_finer_clock_decides_within_a_second(tmp_path: Path, times: list[int]) -> None:
    rows_ = {"user_id": [1] * len(times), "item_id": list(range(len(times))), "timestamp": times}
    pq.write_table(pa.table(rows_), tmp_path / "events.parquet")
    found = read(tmp_path, events="events.parquet", timestamp_unit="ms")
    ordered = sorted(found, key=lambda row: (row["timestamp"], row["seq"]))
    assert [row["item_id"] for row in ordered] == sorted(range(len(times)), key=lambda item: times[item])
    assert all(row["timestamp"] == times[row["item_id"]] // 1000 for row in found)


def test_csv_and_parquet_prepare_alike(tmp_path: Path) -> None:
    table = pa.table(events_of(1, 2, 3, events=6) | {"spent": [0.5 * number for number in range(18)]})
    pa.csv.write_csv(table, tmp_path / "events.csv")
    pq.write_table(table, tmp_path / "events.parquet")
    found = []
    for file in ("events.csv", "events.parquet"):
        folder = tmp_path / file.split(".")[1]
        features = IDS | {"spent": query("numeric")}
        prepare(
            PrepareConfig(
                data=TabularConfig(dir=str(folder / "out"), source=str(tmp_path), events=file, features=features)
            )
        )
        found.append((catalog(folder), [rows(folder, split) for split in ("train", "validation", "test")]))
    assert found[0] == found[1]


def damaged_parquet(folder: Path) -> None:
    table = pa.table({name: values * 500 for name, values in events_of(1).items()})
    pq.write_table(table, folder / "events.parquet", compression="none", use_dictionary=False)
    content = bytearray((folder / "events.parquet").read_bytes())
    content[4:60] = b"\xff" * 56  # the first page's header
    (folder / "events.parquet").write_bytes(content)


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


HEADER = "user_id,item_id,timestamp\n"


@pytest.mark.parametrize(
    ("write", "settings", "message"),
    [
        (text("x.csv", ""), {}, r"data.events=.*events.csv: expected a CSV or Parquet file, a folder"),
        (text("x.json", "{}"), {"events": "x.json"}, r"data.events=.*x.json: expected a name that ends in .parquet"),
        (text("events.csv", "user,item_id,timestamp\n1,1,1\n"), {},
         r"data.columns.user_id=user_id: expected a column of the events: user, item_id, timestamp. Remedy: set"),
        (text("events.csv", ""), {}, r"data.events=.*events.csv: expected a file that is not empty"),
        (text("events.csv", "user_id,item_id\n1,1\n"), {},
         r"data.columns.timestamp=timestamp: expected a column of the events: user_id, item_id"),
        (text("events.csv", HEADER + "1,1,soon\n"), {},
         r"data.columns.timestamp=timestamp \(VARCHAR\): expected a col"),
        (text("events.csv", HEADER + "1,1,1\n"), {"timestamp_unit": "h"}, r"data.timestamp_unit=h: expected one of s"),
        (text("events.csv", HEADER + "1,1,1\n"), {"items": "items.csv"}, r"data.items=.*items.csv: expected a CSV"),
        (text("events.csv", "sku,user_id,item_id,timestamp\n1,1,1,1\n"), {"columns": ColumnsConfig(item_id="sku")},
         r"data.columns.item_id=sku: expected item_id, for the events have a column of that name"),
        (damaged_parquet, {"events": "events.parquet"}, r"data.events=.*events.parquet: expected readable files"),
        (text("events.parquet", "no parquet"), {"events": "events.parquet"}, r"events.parquet: expected readable"),
        (text("events.csv", HEADER + "1,1,1\n1,1\n"), {},
         r"data.events=.*events.csv: expected readable files \(line 3: Expected Number of Columns: 3 Found: 2\)"),
    ],
)  # fmt: skip
def test_errors(tmp_path: Path, write: Callable[[Path], object], settings: dict[str, Any], message: str) -> None:
    write(tmp_path)
    defaults = {"dir": str(tmp_path / "out"), "source": str(tmp_path), "events": "events.csv", "features": IDS}
    config = TabularConfig(**(defaults | settings))
    with pytest.raises(UserError, match=message):
        prepare(PrepareConfig(data=config))
    assert not (tmp_path / "out").exists()


def test_files_that_differ(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "1,1,1\n")
    (tmp_path / "b.csv").write_text("user_id,timestamp,item_id\n1,1,1\n")
    with pytest.raises(
        UserError, match=r"b.csv with columns user_id, timestamp, item_id: expected user_id, item_id, time"
    ):
        read(tmp_path, events="*.csv")
    pq.write_table(pa.table({"user_id": [1], "item_id": [1], "timestamp": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="expected either CSV or Parquet"):
        read(tmp_path, events="[ab].*")
    pq.write_table(pa.table({"user_id": ["1"], "item_id": [1], "timestamp": [1]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b.parquet, where user_id is VARCHAR: expected BIGINT, as in .*a.parquet"):
        read(tmp_path, events="*.parquet")


def test_ids_may_have_other_names_in_items_and_users(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("customer,article,timestamp\n1,7,5\n")
    (tmp_path / "items.csv").write_text("sku,price\n7,1.5\n")
    (tmp_path / "users.csv").write_text("id,country\n1,de\n")
    columns = ColumnsConfig("customer", "article", items_item_id="sku", users_user_id="id")
    settings = {"items": "items.csv", "users": "users.csv", "columns": columns}
    assert [(row["user_id"], row["item_id"]) for row in read(tmp_path, **settings)] == [(1, 7)]
    assert read(tmp_path, ITEMS, **settings)[0]["item_id"] == 7
    assert read(tmp_path, USERS, **settings)[0]["user_id"] == 1
    with pytest.raises(UserError, match=r"data.columns.items_item_id=article: expected a column of the items: sku, pr"):
        read(tmp_path, ITEMS, **(settings | {"columns": ColumnsConfig("customer", "article")}))


def test_a_unit_that_leads_beyond_2200_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = events_of(1) | {"timestamp": [1_700_000_000_000 + step for step in range(4)]}
    pq.write_table(pa.table(events), tmp_path / "events.parquet")
    config = {"source": str(tmp_path), "events": "events.parquet", "features": IDS, "dir": str(tmp_path / "out")}
    with pytest.raises(UserError, match=r"data.timestamp_unit=times up to 1,700,000,000,003 s.*year 2200.*ms"):
        prepare(PrepareConfig(data=TabularConfig(**config)))
    prepare(PrepareConfig(data=TabularConfig(**config, timestamp_unit="ms")))
    assert "note      events from 2023-11-14 22:13 to 2023-11-14 22:13 UTC" in capsys.readouterr().out
