import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.prepared import ITEMS, ROW_GROUP, ROWS, SCHEMA
from trainer.data.footers import footer_checksums
from trainer.data.row_groups import open_events
from trainer.data.schema import HISTORY_AGE, ITEM_ROW, RAW_USER_ID, SEEN, TARGETS, TIMESTAMP
from trainer.errors import UserError

PART = "part-00001.parquet"


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy that may be spoiled."""
    return shutil.copytree(prepared, tmp_path / "copy")


def rewrite(folder: Path, split: str, change: Callable[[pa.Table], pa.Table], statistics: bool = True) -> None:
    """Writes one of the split's files anew, as another engine might."""
    path = folder / "events" / split / PART
    pq.write_table(change(pq.read_table(path)), path, row_group_size=ROW_GROUP, write_statistics=statistics)


def read_all(folder: Path, split: str = "train", schema: object = SCHEMA) -> list[pa.Table]:
    files = open_events(folder, schema, split)
    return [files.read(group) for group in range(len(files.sizes))]


def same(one: pa.Table, other: pa.Table) -> bool:
    """Whether the values are the same, whatever the widths; NaN equals NaN."""
    return repr(one.to_pylist()) == repr(other.to_pylist())


def with_value(name: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    """Puts a value into a row of the file."""

    def change(table: pa.Table) -> pa.Table:
        column = table.column(name)
        values = column.to_pylist()
        values[row] = value
        changed = pa.array(values, column.type)
        return table.set_column(table.schema.get_field_index(name), name, changed)

    return change


def cast(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.schema.get_field_index(name), name, table.column(name).cast(kind))


def test_rows_are_those_of_the_files(prepared: Path) -> None:
    expected = pq.read_table(prepared / "events" / "test").select(
        [TARGETS, "user_id", "age", "hour", "history", TIMESTAMP, HISTORY_AGE, RAW_USER_ID, SEEN]
    )
    tables = read_all(prepared, "test")
    assert [len(table) for table in tables] == list(open_events(prepared, SCHEMA, "test").sizes)
    assert same(pa.concat_tables(tables), expected)


@pytest.mark.parametrize("statistics", [True, False], ids=["statistics", "values"])
@pytest.mark.parametrize(
    ("split", "name", "value", "message"),
    [
        ("train", "user_id", 61, r"61: expected 0 to 60"),
        ("train", "user_id", None, r"1 nulls: expected none|row 5=null: expected no null"),
        ("train", ITEM_ROW, -1, r"-1: expected 0 to 39"),
        ("train", "history", [3, 40], r"40: expected -1 to 39|40 in a list: expected -1 to 39"),
        ("train", "history", [1] * 7, r"row 5=a list of 7: expected 0 to 6 values"),
        ("train", "history", None, r"row 5=null: expected no null"),
        ("train", "history", [1, None], r"row 5=null in a list: expected no null"),
        ("train", "age", float("inf"), r"row 5=inf: expected finite numbers, or NaN"),
        ("test", TARGETS, [], r"row 5=a list of 0: expected 1 to"),
        ("test", TARGETS, [4, 2, 4], r"row 5=4 twice in a list: expected every value once"),
        ("test", SEEN, [ITEMS], rf"{ITEMS}: expected -1 to 39|{ITEMS} in a list: expected -1 to 39"),
        ("test", RAW_USER_ID, None, r"1 nulls: expected none|row 5=null: expected no null"),
    ],
)
def test_a_value_that_breaks_the_contract_is_named_with_its_place(
    folder: Path, split: str, name: str, value: object, message: str, statistics: bool
) -> None:
    rewrite(folder, split, with_value(name, 5, value), statistics)
    with pytest.raises(UserError, match=rf"{PART} row group 0 column {name}.*({message}).*docs/prepared_folder.md"):
        read_all(folder, split)


def test_the_row_is_counted_within_its_row_group(folder: Path) -> None:
    rewrite(folder, "train", with_value("history", ROW_GROUP + 17, [1, 2, 99]), statistics=False)
    with pytest.raises(UserError, match=r"row group 1 column history row 17=99 in a list: expected -1 to 39"):
        read_all(folder)


def test_what_another_engine_may_write_differently_is_read_alike(folder: Path) -> None:
    """int64 row numbers, nullable fields and large lists, without statistics."""
    before = pa.concat_tables(read_all(folder))
    for path in (folder / "events" / "train").iterdir():
        table = pq.read_table(path)
        for change in (cast("user_id", pa.int64()), cast("history", pa.large_list(pa.int64()))):
            table = change(table)
        pq.write_table(table, path, write_statistics=False, compression="snappy")
    after = pa.concat_tables(read_all(folder))
    assert same(after, before)


def test_an_item_that_the_catalogue_lacks_may_stand_in_histories(folder: Path) -> None:
    rewrite(folder, "train", with_value("history", 5, [-1, 3]))
    rewrite(folder, "train", with_value(HISTORY_AGE, 5, [9, 4]))
    assert pc.sum(pc.equal(pa.concat_tables(read_all(folder)).column("history").combine_chunks().values, -1)).as_py()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cast("user_id", pa.string()), r"part-00001.parquet column user_id=string: expected int32 or int64"),
        (cast("age", pa.float64()), r"column age=double: expected float"),
        (cast("user_id", pa.int64()), r"column user_id=int64: expected int32, as in the first file"),
        (lambda table: table.drop_columns(["history"]), r"expected a column history of lists of int32 or int64 beside"),
        (lambda table: table.slice(1), r"expected the 1000 rows of schema.json in .*train, not 999"),
    ],
)
def test_types_columns_and_counts_are_checked_on_opening(
    folder: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    rewrite(folder, "train", change)
    with pytest.raises(UserError, match=message):
        open_events(folder, SCHEMA, "train")


def test_files_that_are_missing_or_cut_are_named(folder: Path) -> None:
    part = folder / "events" / "test" / PART
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"{PART}=damaged: expected readable Parquet"):
        open_events(folder, SCHEMA, "test")
    part.unlink()
    with pytest.raises(UserError, match=r"the 60 rows of schema.json in .*test, not 30"):
        open_events(folder, SCHEMA, "test")
    shutil.rmtree(folder / "events" / "validation")
    with pytest.raises(UserError, match=r"the 57 rows of schema.json in .*validation, not 0"):
        open_events(folder, SCHEMA, "validation")
    shutil.rmtree(folder / "events" / "train")
    with pytest.raises(UserError, match=r"not 0 \(it was prepared with data.layouts=\[sequence\]\)"):
        open_events(folder, replace(SCHEMA, num_sequences=9), "train")


def test_a_flipped_bit_in_a_page_is_noticed(folder: Path) -> None:
    path = folder / "events" / "train" / PART
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=ROW_GROUP, write_page_checksum=True, compression="none",
                   use_dictionary=False)  # fmt: skip
    expected = pa.concat_tables(read_all(folder))
    place = path.read_bytes().index(np.asarray(table.column("user_id")[:20], np.int32).tobytes())
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=rf"{PART} row group 0=damaged: expected readable Parquet"):
        read_all(folder)
    assert len(expected) == ROWS["train"]


def test_the_size_of_the_largest_row_group_is_that_of_its_arrow_arrays(prepared: Path) -> None:
    files = open_events(prepared, SCHEMA, "train")
    sizes = [files.read(group).nbytes for group in range(len(files.sizes))]
    assert 0.95 * max(sizes) < files.largest < 1.2 * max(sizes)


def test_parts_that_are_missing_added_or_exchanged_are_named(folder: Path) -> None:
    schema = replace(SCHEMA, footers=footer_checksums(folder))
    assert len(schema.footers) == 8 + len(list((folder / "vocabulary").glob("*")))
    open_events(folder, schema, "train")
    first, second = (folder / "events" / "train" / f"part-0000{number}.parquet" for number in (0, 1))
    shutil.copy(first, folder / "events" / "train" / "part-00002.parquet")
    with pytest.raises(UserError, match=r"events/train/part-00002.parquet=there: expected no other file"):
        open_events(folder, schema, "train")
    (folder / "events" / "train" / "part-00002.parquet").rename(second)
    with pytest.raises(UserError, match=r"part-00001.parquet=damaged or another: expected the file that was written"):
        open_events(folder, schema, "train")
    second.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"part-00001.parquet=damaged or another: expected the file that was written"):
        open_events(folder, schema, "train")
    second.unlink()
    with pytest.raises(UserError, match=r"part-00001.parquet=missing: expected the file that was written"):
        open_events(folder, schema, "train")
