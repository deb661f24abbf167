"""DuckDB as `prepare` uses it: bounded memory, spilling into a folder of ours, and SQL helpers.

Polars is as quick or quicker, but what it holds in memory grows with the data; DuckDB keeps to its limit
(benchmarks/engines.py).
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb
import pyarrow as pa

from trainer.errors import UserError

Connection = duckdb.DuckDBPyConnection

INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
NUMBERS = (*INTEGERS, "UBIGINT", "HUGEINT", "UHUGEINT", "FLOAT", "DOUBLE", "BOOLEAN", "DECIMAL")

SAMPLE_WEIGHT = "sample_weight"
"""Column of the events; not `weight`, which those may well have for something else."""

_CSV_COMPLAINTS = r"Expected Number|Value with|Invalid unicode|Maximum line size|Error when converting|Could not"

EVENTS, ITEMS, USERS = "source_events", "source_items", "source_users"
"""Views that a source leaves in the connection; the last two may be absent.

    source_events(user_id, item_id, timestamp BIGINT in seconds or absent, seq BIGINT: input order, ...,
                  input_row BIGINT: input order, where seq is that of a finer clock,
                  sample_weight DOUBLE or absent,
                  split VARCHAR: train, validation or test, for data.split.by=given)
    source_items(item_id, ...)    source_users(user_id, ...)
"""


@dataclass(frozen=True)
class Scan:
    """One file of a view."""

    sql: str
    """Its rows, with the view's columns but `seq`."""
    place: Callable[[int], str] = lambda row: ""
    """What more can be told of a row, counted from 1: its line or row group."""


@dataclass(frozen=True)
class Relation:
    """Rows of several files of one kind."""

    types: dict[str, str]
    """DuckDB type of each column."""
    sql: str
    """The rows, one file after another."""
    scans: dict[str, Scan]
    """Each file by itself."""
    num_rows: dict[str, int]
    """Rows of each file."""
    is_csv: bool = False
    """Whether a string may be a mistyped number."""

    def select(self, selected: str) -> "Relation":
        """The rows with other columns; `types` and the rest stay those of the files."""
        scans = {file: replace(scan, sql=f"SELECT {selected} FROM ({scan.sql})") for file, scan in self.scans.items()}
        return replace(self, sql=f"SELECT {selected} FROM ({self.sql})", scans=scans)


@dataclass(frozen=True)
class Source:
    """What there is to tell of a source whose views are in the connection."""

    notes: list[str] = field(default_factory=list)
    """A line for everything that is not as one would think."""
    scans: dict[str, dict[str, Scan]] = field(default_factory=dict)
    """By view and file, how to read this file alone: to find the row that is wrong."""
    setting: str | None = None
    """What names the files, where it is not data.events, data.items and data.users."""

    def named_by(self, view: str) -> str:
        """The setting that names the files of a view."""
        return self.setting or f"data.{view.removeprefix('source_')}"

    def damaged(self, connection: Connection, view: str, selected: str = "*") -> str:
        """The first file of a view that cannot be read to the end, or the view's name where that is unknown."""
        for file, scan in self.scans.get(view, {}).items():
            try:
                connection.execute(
                    f"SELECT max(hash(COLUMNS(*))) FROM (SELECT {selected} FROM ({scan.sql}))"
                ).fetchall()
            except duckdb.Error:
                return file
        return view

    def first(self, connection: Connection, view: str, selected: str, condition: str, count: int = 1) -> str:
        """Where in the files of a view the first rows that meet a condition are; see `first_rows`."""
        return first_rows(connection, self.scans.get(view, {}), selected, condition, count)


def first_rows(
    connection: Connection, scans: dict[str, Scan], selected: str, condition: str, count: int = 1, show: str = ""
) -> str:
    """Where the first rows that meet a condition are, in order of the files, as the end of a message.

    Args:
        connection: What can run the scans.
        scans: The files in order.
        selected: SQL of the columns that the condition is about.
        condition: SQL of what is wrong.
        count: Rows to tell of.
        show: SQL of what to tell of them besides.

    Returns:
        " (first: FILE row 5, line 6)", or nothing where there are no files.
    """
    found: list[str] = []
    for file, scan in scans.items():
        numbered = f"SELECT {selected}, row_number() OVER () AS row_in_file FROM ({scan.sql})"
        wrong = f"SELECT row_in_file, {show or 'NULL'} FROM ({numbered}) WHERE {condition}"
        for row, value in connection.execute(f"{wrong} ORDER BY row_in_file LIMIT {count}").fetchall():
            told = [f"{file} row {row}", scan.place(row), shortened(repr(value)) if show else ""]
            found.append(", ".join(part for part in told if part))
        if len(found) >= count:
            break
    return f" (first: {' and '.join(found[:count])})" if found else ""


@contextmanager
def reading(name: str, value: object | Callable[[], object]) -> Iterator[None]:
    """Around queries of the user's files: what DuckDB finds wrong with them becomes a UserError.

    Args:
        name: The setting that names the files.
        value: The file, or what finds it once something is wrong.
    """
    try:
        yield
    except (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException, duckdb.OutOfMemoryException):
        raise  # no fault of the files'
    except duckdb.Error as error:
        if is_disk_full(error):
            raise
        # Damage surfaces as any kind of error.
        damaged = value() if callable(value) else value
        expected, remedy = f"readable files ({what_is_wrong(error)})", "write the file anew, or leave it out"
        raise UserError(name, damaged, expected, remedy) from error


def is_disk_full(error: Exception) -> bool:
    """Whether nothing but room to write is missing."""
    return any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


@contextmanager
def within_limits(memory_limit: str, target: Path) -> Iterator[None]:
    """Around work that may need more memory, or more room on the disk of `target`, than there is."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise UserError("memory_limit", memory_limit, "more memory for this data, or room on disk to spill to "
                        f"beside {target}", "raise memory_limit, or free space there") from error  # fmt: skip
    except (OSError, duckdb.Error) as error:
        if not is_disk_full(error):
            raise
        raise UserError("data.dir", target, f"room on its disk ({shortened(' '.join(str(error).split()))})",
                        "free space there, or set another data.dir") from error  # fmt: skip


def what_is_wrong(error: duckdb.Error) -> str:
    """DuckDB's message without its advice, in one line."""
    lines = str(error).strip().splitlines()
    if len(lines) > 1 and "Traceback" in lines[0]:  # raised while reading a file that lies elsewhere
        return next((line for line in lines if re.match(r"[\w.]+: ", line)), lines[-1])
    line = re.search(r"CSV Error on Line: (\d+)", lines[0])
    if line:
        # The line itself comes next, and may have any content and number of lines.
        complaint = next((line for line in lines[1:] if re.match(_CSV_COMPLAINTS, line)), lines[0])
        return shortened(f"line {line[1]}: {complaint}")
    if "parser state machine" in lines[0].lower():
        return "its lines do not all end alike, or its quotes are not as in RFC 4180"
    return shortened(lines[0])


def shortened(text: str) -> str:
    """A text that fits into a message, whatever bytes of a damaged file it has."""
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return text if len(text) <= 300 else text[:300] + "..."


def open_engine(folder: Path, memory_limit: str) -> Connection:
    """A connection whose tables and spilled data live in `folder`.

    Raises:
        UserError: memory_limit is no amount of memory.
    """
    connection = duckdb.connect(str(folder / "engine.duckdb"))
    connection.execute(f"SET temp_directory = {literal(str(folder / 'spilled'))}")
    connection.execute("SET enable_progress_bar = false")
    # Nothing is downloaded while it runs.
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    try:
        connection.execute(f"SET memory_limit = {literal(memory_limit)}")
    except duckdb.Error as error:
        connection.close()
        raise UserError("memory_limit", memory_limit, "an amount like 4GB", "set memory_limit=4GB") from error
    return connection


def columns(connection: Connection, relation: str) -> dict[str, str]:
    """DuckDB type of each column of a table or view, in order; empty where there is no such relation."""
    query = "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index"
    return dict(connection.execute(query, [relation]).fetchall())


def first_row(connection: Connection, query: str) -> tuple:
    """The first row of a query that has one."""
    return connection.execute(query).fetchall()[0]  # all, for a result not read to its end blocks the connection


def stream(connection: Connection, query: str, rows: int) -> pa.RecordBatchReader:
    """The result of a query in batches of about `rows`, computed as they are taken."""
    return connection.sql(query).to_arrow_reader(rows)


def quoted(name: str) -> str:
    """A column name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string as SQL."""
    return "'" + text.replace("'", "''") + "'"


def double(number: float) -> str:
    """SQL of exactly this number; a literal with a point would be a decimal."""
    return f"CAST('{number!r}' AS DOUBLE)"


def place_of(kind: str, id_: str, seed: int) -> str:
    """SQL of a user's or item's place in [0, 1], which says what is held out: of the seed and the id alone.

    It is the lower 64 bits of the MD5 of the text SEED:KIND:ID over 2^64, in Python's terms:

        int.from_bytes(hashlib.md5(f"{seed}:user:{user_id}".encode()).digest()[8:], "little") / 2**64
    """
    return f"CAST(md5_number_lower('{seed}:{kind}:' || {id_}) AS DOUBLE) / {double(2.0**64)}"


def shuffled(seed: int, value: str) -> str:
    """SQL to order by for a pseudo-random order that depends on nothing but the seed and the values."""
    return f"md5_number_lower('{seed}:' || {value}), {value}"
