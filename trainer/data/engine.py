"""DuckDB as `prepare` uses it: bounded memory, spilling into a folder of ours, and SQL helpers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa

from trainer.errors import UserError

Connection = duckdb.DuckDBPyConnection

EVENTS, ITEMS, USERS = "source_events", "source_items", "source_users"
"""Views that a source leaves in the connection; the last two may be absent.

    source_events(user_id, item_id, timestamp BIGINT in seconds or absent, seq BIGINT: input order, ...)
    source_items(item_id, ...)    source_users(user_id, ...)
"""


@dataclass(frozen=True)
class Source:
    """What there is to tell of a source whose views are in the connection."""

    notes: list[str] = field(default_factory=list)
    """A line for everything that is not as one would think."""
    scans: dict[str, dict[str, str]] = field(default_factory=dict)
    """By view and file, the SQL that scans this file alone: to find the one that is damaged."""

    def damaged(self, connection: Connection, view: str) -> str:
        """The first file of a view that cannot be read to the end, or the view's name where that is unknown."""
        for file, scan in self.scans.get(view, {}).items():
            try:
                connection.execute(f"SELECT max(hash(COLUMNS(*))) FROM {scan}").fetchall()
            except duckdb.Error:
                return file
        return view


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
        # Damage surfaces as any kind of error; the first line says what, the others go into details.
        message = str(error).strip().splitlines()[0]
        damaged = value() if callable(value) else value
        raise UserError(name, damaged, f"readable files ({message})", "write the file anew, or leave it out") from error


def open_engine(folder: Path, memory_limit: str) -> Connection:
    """A connection whose tables and spilled data live in `folder`.

    Raises:
        UserError: memory_limit is no amount of memory.
    """
    connection = duckdb.connect(str(folder / "engine.duckdb"))
    connection.execute(f"SET temp_directory = {literal(str(folder / 'spilled'))}")
    connection.execute("SET enable_progress_bar = false")
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


def shuffled(seed: int, value: str) -> str:
    """SQL to order by for a pseudo-random order that depends on nothing but the seed and the values."""
    return f"md5_number_lower('{seed}:' || {value}), {value}"
