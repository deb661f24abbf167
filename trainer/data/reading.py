"""From a source's views to the engine's tables, and the checks of what lies in them.

    read_events(user_id, item_id, timestamp, seq, sample_weight, feature_..., weights_...)
    read_users(user_id, feature_..., weights_...)     catalog(item_row, item_id, feature_..., weights_...)

All ids are BIGINT or VARCHAR here, and features go by `Input.column`, their values' weights by `Input.weights_column`.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from trainer.config import PreparedConfig
from trainer.data.engine import (
    EVENTS,
    INTEGERS,
    ITEMS,
    SAMPLE_WEIGHT,
    USERS,
    Connection,
    Source,
    columns,
    first_row,
    reading,
    shuffled,
)
from trainer.data.inputs import Input
from trainer.data.values import check_values
from trainer.errors import UserError

_YEAR_1, _YEAR_2200 = -62_135_596_800, 7_258_118_400  # in seconds after 1970


@dataclass(frozen=True)
class RowCount:
    """What became of the rows of the events, the items or the users."""

    read: int
    dropped: int
    why: str = ""
    """What the dropped have in common, as in "name unknown items"."""

    @property
    def kept(self) -> int:
        """The rows that are in the prepared folder."""
        return self.read - self.dropped


def read_tables(
    connection: Connection, config: PreparedConfig, source: Source, inputs: list[Input]
) -> tuple[dict[str, RowCount], list[str]]:
    """Fills the tables.

    Returns:
        What became of the rows of "users" and "items", where the source has those, and of "events"; and a line for
        everything dropped or missing.

    Raises:
        UserError: an id is null or of another type, an item or user comes twice, an event's item is unknown and
            `unknown_items` is error, its weight is no number from 0, a feature's value is not as `check_values` has it.
    """
    counts = {}
    others = ["timestamp", "seq", "input_row", SAMPLE_WEIGHT]
    if config.split.by == "given":
        _check_given(connection, source)
        others.append("split")
    events = _read(connection, source, EVENTS, "read_events", ["user_id", "item_id"], others, inputs)
    _check_sample_weights(connection, source)
    notes = _check_times(connection) + _count_unordered(connection)
    if columns(connection, USERS):
        users = _read(connection, source, USERS, "read_users", ["user_id"], [], inputs)
        _check_unique(connection, source, USERS, "read_users", "user_id")
    has_items = bool(columns(connection, ITEMS))
    items = _read_catalog(connection, config, source, inputs)
    notes += _check_unknown_items(connection, config, source) + _count_unknown_users(connection)
    for feature in inputs:
        notes += check_values(connection, source, feature)
    if columns(connection, USERS):
        idle = "SELECT count(*) FROM read_users ANTI JOIN read_events USING (user_id)"
        counts["users"] = RowCount(users, first_row(connection, idle)[0], "have no events")
    if has_items:
        counts["items"] = RowCount(items, 0)
    (left,) = first_row(connection, "SELECT count(*) FROM read_events")
    counts["events"] = RowCount(events, events - left, "name unknown items")
    return counts, notes


def id_type(connection: Connection, table: str, column: str) -> Literal["int64", "string"]:
    """Type of a table's ids, in the contract's words."""
    return "int64" if columns(connection, table)[column] == "BIGINT" else "string"


def _read(
    connection: Connection,
    source: Source,
    view: str,
    table: str,
    ids: list[str],
    others: list[str],
    inputs: list[Input],
) -> int:
    """Fills a table from a view, and sees to it that neither the ids nor the others are null.

    Returns:
        Its rows.
    """
    types = columns(connection, view)
    select = [f"{_cast_id(view, column, types)} AS {column}" for column in ids]
    select += [column for column in others if column in types]
    select += [feature.selected for feature in inputs if feature.relation == view and feature.value]
    where = view.removeprefix("source_")
    selected = ", ".join(part for part in select if part not in ("seq", "input_row"))
    with reading(source.named_by(view), lambda: source.damaged(connection, view, selected)):
        connection.execute(f"CREATE TABLE {table} AS SELECT {', '.join(select)} FROM {view}")
    (rows,) = first_row(connection, f"SELECT count(*) FROM {table}")
    if rows == 0:
        raise UserError(source.named_by(view), "no rows", "at least one", "check the source's files")
    required = [*ids, *(column for column in others if column in types and column != SAMPLE_WEIGHT)]
    counted = ", ".join(f"count(*) - count({column})" for column in required)
    nulls = first_row(connection, f"SELECT {counted} FROM {table}")
    for column, count in zip(required, nulls, strict=True):
        if count:
            first = source.first(connection, view, selected, f"{column} IS NULL")
            # What int64 cannot hold is null by now.
            expected = "a time in every row" if column == "timestamp" else "an int64 or a string in every row"
            raise UserError(f"{where}.{column}", f"null in {count} of {rows} rows{first}", expected,
                            "remove those rows or fill them in")  # fmt: skip
    return rows


def _cast_id(view: str, column: str, types: dict[str, str]) -> str:
    """SQL of an id as BIGINT or VARCHAR, the same in every table."""
    kind = types[column]
    if kind not in (*INTEGERS, "UBIGINT", "VARCHAR"):
        raise UserError(f"{view.removeprefix('source_')}.{column}", kind, "integers or strings",
                        f"cast {column} to one of them in the source")  # fmt: skip
    return column if kind == "VARCHAR" else f"TRY_CAST({column} AS BIGINT)"


def _check_sample_weights(connection: Connection, source: Source) -> None:
    if SAMPLE_WEIGHT not in columns(connection, "read_events"):
        return
    bad = f"({SAMPLE_WEIGHT} BETWEEN 0 AND 3.4e38) IS NOT TRUE"
    (count,) = first_row(connection, f"SELECT count(*) FROM read_events WHERE {bad}")
    if count:
        first = source.first(connection, EVENTS, SAMPLE_WEIGHT, bad)
        raise UserError("data.columns.weight", f"something else in {count} events{first}",
                        "finite float32 numbers from 0 in every row", "correct those rows in the source")  # fmt: skip


def _check_given(connection: Connection, source: Source) -> None:
    """Looks at the split that the source gives every event."""
    if "split" not in columns(connection, EVENTS):
        raise UserError("data.split.by", "given", "events with a column that says train, validation or test",
                        "name it by data.columns.split, or set data.split.by=random")  # fmt: skip
    other = "CAST(split AS VARCHAR) NOT IN ('train', 'validation', 'test') OR split IS NULL"
    with reading(source.named_by(EVENTS), lambda: source.damaged(connection, EVENTS, "split")):
        count, example = first_row(
            connection, f"SELECT count(*), min(CAST(split AS VARCHAR)) FROM {EVENTS} WHERE {other}"
        )
    if count:
        first = source.first(connection, EVENTS, "split", other)
        raise UserError("events.split", f"{'null' if example is None else example} in {count} rows{first}",
                        "train, validation or test in every row", "correct it in the source")  # fmt: skip


def _check_times(connection: Connection) -> list[str]:
    """A line that tells the first and the last time.

    Raises:
        UserError: the last is so late that the unit must be another, or the first before there were years.
    """
    if "timestamp" not in columns(connection, "read_events"):
        return []
    first, last = first_row(connection, "SELECT min(timestamp), max(timestamp) FROM read_events")
    if last >= _YEAR_2200:
        raise UserError("data.timestamp_unit", f"times up to {last:,} s after 1970", "times before the year 2200",
                        "set data.timestamp_unit to the unit of the column: ms, us or ns")  # fmt: skip
    if first < _YEAR_1:
        raise UserError("events.timestamp", f"times down to {first:,} s after 1970", "times from the year 1 on",
                        "correct or remove those rows in the source")  # fmt: skip
    begin, end = (datetime(1970, 1, 1) + timedelta(seconds=seconds) for seconds in (first, last))
    return [f"events from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"]


def _count_unordered(connection: Connection) -> list[str]:
    """A note where events are not listed in order of time."""
    types = columns(connection, "read_events")
    if "timestamp" not in types:
        return []
    listed = "input_row" if "input_row" in types else "seq"
    before = f"lag((timestamp, seq)) OVER (PARTITION BY user_id ORDER BY {listed})"
    late = f"SELECT count(*) FROM (SELECT (timestamp, seq) < {before} AS late FROM read_events) WHERE late"
    (count,) = first_row(connection, late)
    if "input_row" in types:
        connection.execute("ALTER TABLE read_events DROP COLUMN input_row")
    return [f"{count} events are earlier than the one listed before of the same user: sorted by time"] if count else []


def _check_unique(connection: Connection, source: Source, view: str, table: str, column: str) -> None:
    repeated = f"SELECT {column} FROM {table} GROUP BY {column} HAVING count(*) > 1"
    count, such = _count_and_show(connection, repeated, column)
    if count:
        where = view.removeprefix("source_")
        first = source.first(connection, view, column, f"{column} = (SELECT min({column}) FROM ({repeated}))", 2)
        raise UserError(f"{where}.{column}", f"{such}{first}", f"one row an id ({count} ids have more)",
                        f"keep one row of each in the {where}")  # fmt: skip


def _count_and_show(connection: Connection, query: str, column: str) -> tuple[int, str]:
    """How many values a query has, and the first five."""
    (count,) = first_row(connection, f"SELECT count(*) FROM ({query})")
    shown = connection.execute(f"SELECT {column} FROM ({query}) ORDER BY {column} LIMIT 5").fetchall() if count else []
    return count, ", ".join(str(value) for (value,) in shown)


def _read_catalog(connection: Connection, config: PreparedConfig, source: Source, inputs: list[Input]) -> int:
    """Fills the catalogue; returns the rows of the items, or the items of the events where the source has none."""
    if not columns(connection, ITEMS):
        connection.execute(f"CREATE VIEW {ITEMS} AS SELECT DISTINCT item_id FROM read_events")
    rows = _read(connection, source, ITEMS, "read_items", ["item_id"], [], inputs)
    _check_unique(connection, source, ITEMS, "read_items", "item_id")
    for table, column, view in (("read_items", "item_id", ITEMS), ("read_users", "user_id", USERS)):
        types = columns(connection, table)
        if types and types[column] != columns(connection, "read_events")[column]:
            ours, theirs = id_type(connection, "read_events", column), id_type(connection, table, column)
            no_integer = f"TRY_CAST({column} AS BIGINT) IS NULL"
            first = source.first(connection, view if theirs == "string" else EVENTS, column, no_integer)
            raise UserError(f"{view.removeprefix('source_')}.{column}", theirs,
                            f"{ours}, as in the events" + (f"; one is no integer{first}" if first else ""),
                            f"cast {column} in one of them")  # fmt: skip
    connection.execute(f"""
        CREATE TABLE catalog AS
        SELECT CAST(row_number() OVER (ORDER BY {shuffled(config.seed, "item_id")}) - 1 AS INTEGER) AS item_row, *
        FROM read_items ORDER BY item_row""")
    connection.execute("DROP TABLE read_items")
    return rows


def _check_unknown_items(connection: Connection, config: PreparedConfig, source: Source) -> list[str]:
    unknown = "FROM read_events ANTI JOIN catalog USING (item_id)"
    items, such = _count_and_show(connection, f"SELECT DISTINCT item_id {unknown}", "item_id")
    if not items:
        return []
    (events,) = first_row(connection, f"SELECT count(*) {unknown}")
    told = f"{events} events that name {items} unknown items, such as {such}"
    if config.unknown_items == "error":
        missing = "item_id NOT IN (SELECT item_id FROM catalog)"
        told += source.first(connection, EVENTS, "item_id", missing)
        raise UserError("events.item_id", told, "only ids of the items",
                        "add the items or set data.unknown_items=drop, or out_of_vocabulary")  # fmt: skip
    (every,) = first_row(connection, "SELECT count(*) FROM read_events")
    if events == every:
        raise UserError("events.item_id", told, "some events of known items", "check that both name items the same way")
    if config.unknown_items == "out_of_vocabulary":
        return [f"kept in histories alone, as out of vocabulary: {told}"]
    connection.execute("DELETE FROM read_events WHERE item_id NOT IN (SELECT item_id FROM catalog)")
    return [f"dropped {told}"]


def _count_unknown_users(connection: Connection) -> list[str]:
    if not columns(connection, "read_users"):
        return []
    query = "SELECT count(*), count(DISTINCT user_id) FROM read_events ANTI JOIN read_users USING (user_id)"
    events, users = first_row(connection, query)
    return [f"{events} events of {users} users that the users lack: their features are missing"] if events else []
