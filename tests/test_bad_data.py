"""Bad rows and bad files: what is told of them, and that nothing is left."""

import gzip
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.disks import small_disk
from tests.shop import IDS, Columns, candidate, events_of, query, rows
from trainer.config import FeatureConfig, GeneratedConfig, MovieLensConfig, PrepareConfig, TabularConfig
from trainer.data.schema import Schema
from trainer.errors import UserError
from trainer.prepare import prepare

HEADER = "user_id,item_id,timestamp\n"
FOUR = "1,1,1\n1,2,2\n1,3,3\n1,4,4\n"


def prepared(folder: Path, features: dict[str, FeatureConfig] | None = None, **settings: Any) -> Schema:
    """Prepares folder's events*, and items* and users* where there are such, into folder/out."""
    paths: dict[str, Any] = {
        name: f"{name}*" if list(folder.glob(f"{name}*")) else None for name in ("events", "items", "users")
    }
    config = TabularConfig(
        **({"dir": str(folder / "out"), "source": str(folder), "features": IDS | (features or {})} | paths | settings)
    )
    return prepare(PrepareConfig(data=config, memory_limit="500MB"))


def told(folder: Path, **settings: Any) -> str:
    """What is told when preparing fails: one line, and no trace but the input."""
    before = set(folder.iterdir())
    with pytest.raises(UserError) as raised:
        prepared(folder, **settings)
    assert set(folder.iterdir()) == before
    assert "\n" not in str(raised.value)
    return str(raised.value).replace(f"{folder}/", "")


# --- rows ------------------------------------------------------------------------------------------------------------


def parquet(folder: Path, name: str, columns: Columns) -> None:
    """Two files of two row groups each."""
    table = pa.table(columns)
    half = table.num_rows // 2
    for part, rows_ in (("a", table[:half]), ("b", table[half:])):
        pq.write_table(rows_, folder / f"{name}_{part}.parquet", row_group_size=max(1, (rows_.num_rows + 1) // 2))


def with_value(columns: Columns, name: str, row: int, value: Any) -> Columns:
    return columns | {name: [value if place == row else old for place, old in enumerate(columns[name])]}


EVENTS = events_of(1, 2, 3)  # 12 rows: files of 6, row groups of 3
ITEMS = {"item_id": [1, 2, 3, 4], "price": [1.0, 2.0, 3.0, 4.0], "image": [[1.0, 2.0]] * 4}
FEATURES = {"price": candidate("numeric"), "image": candidate("vector")}


@pytest.mark.parametrize(
    ("table", "column", "row", "value", "message"),
    [
        ("events", "user_id", 10, None, "null in 1 of 12 rows (first: events_b.parquet row 5, in row group 1)"),
        ("events", "timestamp", 0, None, "null in 1 of 12 rows (first: events_a.parquet row 1, in row group 0)"),
        (
            "events",
            "item_id",
            5,
            9,
            "1 events that name 1 unknown items, such as 9 (first: events_a.parquet row 6, in row group 1)",
        ),
        (
            "items",
            "item_id",
            3,
            2,
            "item_id=2 (first: items_a.parquet row 2, in row group 1 and items_b.parquet row 2, in row group 1)",
        ),
        ("items", "price", 2, float("inf"), "(such as item_id 3) (first: items_b.parquet row 1, in row group 0)"),
        ("items", "image", 3, [1.0], "vectors of length 1 to 2 (first: items_b.parquet row 2, in row group 1)"),
        (
            "items",
            "image",
            1,
            [1.0, None],
            "not finite in 1 items (such as item_id 2) (first: items_a.parquet row 2, in row",
        ),
    ],
)
def test_the_first_wrong_row_is_located(
    tmp_path: Path, table: str, column: str, row: int, value: Any, message: str
) -> None:
    tables = {"events": EVENTS, "items": ITEMS}
    tables[table] = with_value(tables[table], column, row, value)
    for name, columns in tables.items():
        parquet(tmp_path, name, columns)
    assert message in told(tmp_path, features=FEATURES)


def test_the_first_by_file_is_not_the_first_by_time(tmp_path: Path) -> None:
    late_first = {
        "user_id": [1, 1, None, 1, None, 1],
        "item_id": [1] * 6,
        "timestamp": [9_000, 8_000, 7_000, 3_000, 2_000, 1_000],
    }
    parquet(tmp_path, "events", late_first)
    message = told(tmp_path, timestamp_unit="ms")
    assert "null in 2 of 6 rows (first: events_a.parquet row 3, in row group 1)" in message


def test_lines_of_csv_are_those_a_person_counts(tmp_path: Path) -> None:
    quoted_lines = (
        'user_id,item_id,timestamp,words\r\n1,1,1,"one\r\ntwo\r\n"\r\n\r\n1,2,2,"a ""b"""\r\n1,,3,x\r\n1,4,4,y\r\n'
    )
    (tmp_path / "events.csv").write_bytes(quoted_lines.encode())
    message = "events.item_id=null in 1 of 4 rows (first: events.csv row 3, line 7)"
    assert message in told(tmp_path)
    (tmp_path / "events.csv").unlink()
    (tmp_path / "events.csv.gz").write_bytes(gzip.compress(quoted_lines.encode()))
    assert message.replace(".csv", ".csv.gz") in told(tmp_path)


@pytest.mark.parametrize(
    ("events", "settings", "message"),
    [
        (
            "1,1,1\n1,2,soon\n1,3,3\n",
            {},
            "timestamp=timestamp, where 1 of 3 values are something else (first: events.csv row 2, line 3, 'soon')",
        ),
        (
            "1,1,2024-01-01T00:00:00Z\n1,2,2024-01-01 00:00:00+01\n1,3,2024-01-01\n",
            {},
            "where 1 of 3 values are something else (first: events.csv row 3, line 4, '2024-01-01')",
        ),
        (
            "1,1,1\n1,2,2\n1,3,n/a\n",
            {"features": {"when": query("numeric", column="timestamp")}},
            "features.when.column=timestamp, where 1 of 3 values are something else (first: events.csv row 3, "
            "line 4, 'n/a')",
        ),
        ("1,1,1\n1,99999999999999999999,2\n1,3,3\n", {}, "item_id (DOUBLE): expected a column of integers or strings"),
        (
            "1,1,1\n1,2,2\n1,3,1e30\n",
            {},
            "events.timestamp=null in 1 of 3 rows (first: events.csv row 3, line 4): expected a time in",
        ),
    ],
)
def test_mistyped_values(tmp_path: Path, events: str, settings: dict[str, Any], message: str) -> None:
    (tmp_path / "events.csv").write_text(HEADER + events)
    assert message in told(tmp_path, **settings)


def test_an_id_that_is_no_integer_in_one_table_alone(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text(HEADER + FOUR)
    (tmp_path / "items.csv").write_text("item_id\n1\n2\nthree\n")
    message = (
        "items.item_id=string: expected int64, as in the events; one is no integer (first: items.csv row 3, line 4)"
    )
    assert message in told(tmp_path)


def test_movielens_names_the_file_and_the_row(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::1::5::1\nx::1::5::1\n")
    (tmp_path / "movies.dat").write_text("1::Toy Story (1995)::Comedy\n")
    config = MovieLensConfig(dir=str(tmp_path / "out"), source=str(tmp_path), features=IDS)
    with pytest.raises(UserError, match=r"ratings.dat.*(row|line) 2"):
        prepare(PrepareConfig(data=config))


# --- counts ----------------------------------------------------------------------------------------------------------


def test_rows_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "events_a.csv").write_text(HEADER + "1,1,10\n1,2,5\n1,9,20\n1,3,30\n2,1,1\n2,2,2\n1,4,29\n")
    (tmp_path / "events_b.csv").write_text(HEADER)
    (tmp_path / "items.csv").write_text("item_id\n1\n2\n3\n4\n5\n")
    (tmp_path / "users.csv").write_text("user_id,age\n1,3\n3,4\n4,5\n")
    schema = prepared(tmp_path, unknown_items="drop")
    lines = [re.sub(" +", " ", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [
        "users 3 read, 1 kept, 2 dropped: 2 have no events",
        "items 5 read, 5 kept",
        "events 7 read, 6 kept, 1 dropped: 1 name unknown items",
    ]
    assert sum(schema.num_events.values()) == 6
    assert "note 1 of 2 files of events have no rows" in lines
    # item 2 after 1, item 4 after 3; not user 2's first after user 1's last
    assert "note 2 events are earlier than the one listed before of the same user: sorted by time" in lines


@pytest.mark.parametrize("unit", ["s", "ms"])
@pytest.mark.parametrize(("times", "late"), [([1, 2, 2, 3], 0), ([4, 3, 2, 1], 3), ([1, 9, 5, 6], 1)])
def test_events_out_of_order_are_counted_and_sorted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unit: str, times: list[int], late: int
) -> None:
    pq.write_table(
        pa.table({"user_id": [1] * 4, "item_id": [1, 2, 3, 4], "timestamp": times}), tmp_path / "events.parquet"
    )
    prepared(tmp_path, timestamp_unit=unit)
    out = capsys.readouterr().out
    assert re.findall(r"(\d+) events are earlier", out) == ([str(late)] if late else [])


def test_a_source_without_files_is_counted_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = GeneratedConfig(dir=str(tmp_path / "out"), features=IDS, users=200, items=300)
    schema = prepare(PrepareConfig(data=config))
    total = sum(schema.num_events.values())
    assert f"events    {total:,} read, {total:,} kept\n" in capsys.readouterr().out


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        (HEADER + FOUR).replace("\n", "\r\n").encode(),
        (HEADER + FOUR).replace("\n", "\r").encode(),
        b"\xef\xbb\xbf" + (HEADER + FOUR).encode(),
        (HEADER + FOUR.replace("\n", "\n\n") + "\n\n").encode(),
        (HEADER + FOUR).strip().encode(),
        (HEADER + FOUR).replace(",", "\t").encode(),
        (HEADER + FOUR).replace(",", "|").encode(),
        b'"user_id","item_id","timestamp"\n"1","1","1"\n"1","2","2"\n1,3,3\n1,4,4\n',
    ],
)
def test_ways_to_write_the_same_csv(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "events.csv").write_bytes(content)
    assert prepared(tmp_path).num_events == {"train": 2, "validation": 1, "test": 1}
    assert [(row["raw_user_id"], row["timestamp"]) for row in rows(tmp_path, "test")] == [(1, 4)]


def some_csv(at_the_end: str = "") -> str:
    return HEADER + "".join(f"{user},{item},{item}\n" for user in range(3000) for item in range(4)) + at_the_end


WHOLE = gzip.compress(some_csv().encode(), mtime=0)
ZSTD = pa.Codec("zstd").compress(some_csv().encode(), asbytes=True)


def parquet_of(columns: Columns) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("events.csv", HEADER, "data.events=no rows: expected at least one in events.csv"),
        ("events.csv", "\n" + HEADER + FOUR, "events.csv: expected a first line with the names of the columns"),
        ("events.csv", "user_id,item_id,Item_ID,timestamp\n1,1,1,1\n", "expected every name once, whatever its case"),
        ("events.csv", some_csv("9,9\n"), "readable files (line 12002: Expected Number of Columns: 3 Found: 2)"),
        ("events.csv", some_csv('9,9,"9\n'), "readable files (line 12002: Value with unterminated quote found.)"),
        (
            "events.csv",
            some_csv("9,9,9\r\n9,8,7\r\n"),
            "(its lines do not all end alike, or its quotes are not as in RFC 4180)",
        ),
        (
            "events.csv",
            some_csv("9,caf\xe9,9\n").encode("latin-1"),
            "(line 12002: Invalid unicode (byte sequence mismatch)",
        ),
        (
            "events.csv",
            "us\xe9r,item_id\n".encode("latin-1"),
            "events.csv: expected readable files ('utf-8' codec can't decode",
        ),
        ("events.csv", some_csv().encode("utf-16"), "events.csv: expected readable files ('utf-8' codec can't decode"),
        ("events.csv.gz", WHOLE[:-2000], "csv.gz: expected readable files (Truncated compressed stream)"),
        ("events.csv.gz", WHOLE[:-4], "csv.gz: expected readable files (Truncated compressed stream)"),
        ("events.csv.gz", WHOLE[:-8] + b"\0\0\0\0" + WHOLE[-4:], "(zlib inflate failed: incorrect data check)"),
        ("events.csv.gz", some_csv(), "csv.gz: expected readable files (zlib inflate failed: incorrect header check)"),
        (
            "events.csv.zst",
            ZSTD[: len(ZSTD) // 2],
            "events.csv.zst: expected readable files (Truncated compressed stream)",
        ),
        ("events.parquet", some_csv(), "expected readable files (Invalid Input Error: No magic bytes found"),
        ("events.parquet", parquet_of(EVENTS)[:-100], "expected readable files (Invalid Input Error: No magic"),
        ("events.parquet", parquet_of(EVENTS | {"user_id": [{"id": 1}] * 12}), "user_id (STRUCT(id BIGINT)): expected"),
        (
            "events.parquet",
            parquet_of(EVENTS | {"user_id": [[1]] * 12}),
            "user_id (BIGINT[]): expected a column of integers or",
        ),
        ("events.parquet", parquet_of(EVENTS | {"item_id": [b"x"] * 12}), "item_id (BLOB): expected"),
        (
            "events.parquet",
            parquet_of(EVENTS | {"timestamp": ["x"] * 12}),
            "timestamp (VARCHAR): expected a column of integers,",
        ),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in told(tmp_path)


def test_files_of_two_separators(tmp_path: Path) -> None:
    (tmp_path / "events_a.csv").write_text(HEADER + FOUR)
    (tmp_path / "events_b.csv").write_text((HEADER + FOUR).replace(",", ";"))
    assert "events_b.csv with separator ';': expected ',', as in events_a.csv" in told(tmp_path)


def test_a_type_is_decided_by_every_row(tmp_path: Path) -> None:
    """As a sample would not have it: the first letter and the only offset from UTC come at the end."""
    lines = [f"{row % 50},{row},2024-01-01 00:00:{row % 60:02}" for row in range(30_000)]
    (tmp_path / "events.csv").write_text(HEADER + "\n".join([*lines, "anna,1,2024-01-01 00:00:00"]))
    assert prepared(tmp_path).user_id_type == "string"
    (tmp_path / "events.csv").write_text(HEADER + "\n".join([*lines, "1,1,2024-01-01 00:00:00+02:00"]))
    assert "row 30001, line 30002" in told(tmp_path, dir=str(tmp_path / "other"))


def test_an_offset_from_utc_counts(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text(
        HEADER + "1,1,1970-01-01T00:00:00Z\n1,2,1970-01-01 02:00:01+02\n1,3,1970-01-01T00:00:02+00:00\n"
    )
    prepared(tmp_path)
    assert [row["timestamp"] for split in ("train", "validation", "test") for row in rows(tmp_path, split)] == [0, 1, 2]


# --- room on disk ----------------------------------------------------------------------------------------------------


@pytest.fixture(name="small_disk")
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "6m") as folder:
        yield folder


def write_many(folder: Path, events: int) -> None:
    numbers = list(range(events))
    columns = {
        "user_id": [row // 20 for row in numbers],
        "item_id": [row * 7919 % 100_003 for row in numbers],
        "timestamp": numbers,
    }
    pq.write_table(pa.table(columns), folder / "events.parquet")


@pytest.mark.parametrize("events", [100_000, 200_000, 400_000])  # full in another stage each
def test_a_full_disk(tmp_path: Path, small_disk: Path, events: int) -> None:
    write_many(tmp_path, events)
    with pytest.raises(
        UserError, match=r"data.dir=.*disk/out: expected room on its disk.*Remedy: free space there, or set"
    ):
        prepared(tmp_path, dir=str(small_disk / "out"))
    assert list(small_disk.iterdir()) == []


LIMITED = """
import resource, signal, sys
from pathlib import Path
import tests.test_bad_data as tests
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
folder = Path(sys.argv[1])
try:
    tests.prepared(folder)
except tests.UserError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [1_000_000])
def test_files_that_may_not_grow(tmp_path: Path, limit: int) -> None:
    write_many(tmp_path, 300_000)
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(limit)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert re.match(r"data.dir=.*/out: expected room on its disk.*File too large", done.stdout), (
        done.stdout + done.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["events.parquet"]
