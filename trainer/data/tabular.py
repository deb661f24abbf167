"""One's own events, items and users, as CSV or Parquet."""

from trainer.checks import require_one_of
from trainer.config import TabularConfig
from trainer.data.csv_files import is_of_type, open_csv
from trainer.data.engine import (
    EVENTS,
    INTEGERS,
    ITEMS,
    NUMBERS,
    SAMPLE_WEIGHT,
    USERS,
    Connection,
    Relation,
    Source,
    first_row,
    first_rows,
    quoted,
)
from trainer.data.parquet_files import open_parquet
from trainer.data.remote import serve
from trainer.data.source_files import find_files
from trainer.errors import UserError

# Types of a timestamp in CSV.
_TIMES = ("BIGINT", "DOUBLE", "DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE")
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def read_tabular(config: TabularConfig, connection: Connection) -> Source:
    """Leaves the source's views in the connection.

    Raises:
        UserError: a path holds no CSV or Parquet, a file cannot be read or differs in its columns from the others, or a
            column that config.columns names is not there.
    """
    require_one_of("data.timestamp_unit", config.timestamp_unit, tuple(UNITS))
    if (config.columns.split is None) == (config.split.by == "given"):
        raise UserError("data.columns.split", config.columns.split, "the events' column of splits for split.by=given, "
                        f"and null for split.by={'the others' if config.split.by == 'given' else config.split.by}",
                        "set both or neither")  # fmt: skip
    paths = {EVENTS: config.events, ITEMS: config.items, USERS: config.users}
    found = {view: find_files(_setting(view), config.source, path) for view, path in paths.items() if path is not None}
    serve(connection, [file for files in found.values() for file in files])
    source = Source()
    for view, files in found.items():
        relation = (open_parquet if files[0].is_parquet else open_csv)(_setting(view), connection, files)
        source.notes.extend(_tell_empty(view, relation))
        _check_numbers(connection, config, view, relation)
        relation = _name_ids(config, view, relation)
        if view == EVENTS:
            relation = _view_events(connection, config, relation)
        else:
            connection.execute(f"CREATE VIEW {view} AS {relation.sql}")
        source.scans[view] = relation.scans
    return source


def _setting(view: str) -> str:
    return f"data.{_rows(view)}"


def _rows(view: str) -> str:
    return view.removeprefix("source_")


def _tell_empty(view: str, relation: Relation) -> list[str]:
    """A line for files that have a header and no rows, as the output of a job that had nothing to write.

    Raises:
        UserError: all are such.
    """
    empty = [file for file, rows in relation.num_rows.items() if rows == 0]
    if len(empty) == len(relation.num_rows):
        raise UserError(_setting(view), "no rows", f"at least one in {', '.join(empty[:5])}",
                        "check the source's files")  # fmt: skip
    return [f"{len(empty)} of {len(relation.num_rows)} files of {_rows(view)} have no rows"] if empty else []


def _check_numbers(connection: Connection, config: TabularConfig, view: str, relation: Relation) -> None:
    """Finds what keeps a column of CSV from being numeric: it would pass for a column of strings."""
    side = "candidate" if view == ITEMS else "query"
    for name, feature in config.features.items():
        if (feature.side, feature.kind) == (side, "numeric"):
            where = f"data.features.{name}.column"
            remedy = "correct them in the source, to nothing where unknown"
            _check_strings(connection, relation, where, feature.column or name, ("DOUBLE",), "numbers", remedy)


def _check_strings(
    connection: Connection,
    relation: Relation,
    where: str,
    column: str,
    kinds: tuple[str, ...],
    expected: str,
    remedy: str,
) -> None:
    """Looks for what makes strings of a column of CSV.

    Raises:
        UserError: it does not hold values of one of the types; the first that is not of the most frequent is told.
    """
    if not relation.is_csv or relation.types.get(column) != "VARCHAR":
        return
    counts = ", ".join(f"count(*) FILTER ({is_of_type(quoted(column), kind)})" for kind in kinds)
    values, *matching = first_row(connection, f"SELECT count({quoted(column)}), {counts} FROM ({relation.sql})")
    if not any(matching):
        return  # not mistyped here and there, but another column altogether
    meant = kinds[matching.index(max(matching))]
    bad = f"NOT ({is_of_type(quoted(column), meant)})"
    first = first_rows(connection, relation.scans, quoted(column), bad, show=quoted(column))
    raise UserError(where, f"{column}, where {values - max(matching)} of {values} values are something else{first}",
                    f"a column of {expected}", remedy)  # fmt: skip


def _name_ids(config: TabularConfig, view: str, relation: Relation) -> Relation:
    """The relation with the ids under the names that the pipeline knows, beside their own.

    Raises:
        UserError: an id's column is not there, or its new name is taken.
    """
    names = config.columns
    settings = {
        EVENTS: {"user_id": ("user_id", names.user_id), "item_id": ("item_id", names.item_id)},
        ITEMS: {"item_id": ("items_item_id", names.items_item_id or names.item_id)},
        USERS: {"user_id": ("users_user_id", names.users_user_id or names.user_id)},
    }
    rows, there, renamed = _rows(view), relation.types, []
    for name, (setting, column) in settings[view].items():
        others = {other.lower() for other in there if other != column}  # to DuckDB case tells no names apart
        if column not in there:
            raise UserError(f"data.columns.{setting}", column, f"a column of the {rows}: " + ", ".join(there),
                            f"set data.columns.{setting}=...")  # fmt: skip
        if column != name:
            if name in others:
                raise UserError(f"data.columns.{setting}", column, f"{name}, for the {rows} have a column of that name",
                                f"rename one of the two in the {rows}")  # fmt: skip
            renamed.append((column, name))
    same = [column for column, name in renamed if column.lower() == name]
    selected = ", ".join([_all_but(same), *(f"{quoted(column)} AS {name}" for column, name in renamed)])
    return relation.select(selected) if renamed else relation


def _view_events(connection: Connection, config: TabularConfig, relation: Relation) -> Relation:
    """Makes the view of the events, with `timestamp` in seconds, `sample_weight` and `seq`.

    Returns:
        The relation with the view's timestamp and weight.
    """
    relation = _name_split(config, relation)
    hidden = [name for name in relation.types if name.lower() in ("timestamp", SAMPLE_WEIGHT)]
    column, weight = config.columns.timestamp, _weight(connection, config, relation)
    if column is None:
        relation = relation.select(f"{_all_but(hidden)}{weight}")
        connection.execute(f"CREATE VIEW {EVENTS} AS SELECT *, row_number() OVER () - 1 AS seq FROM ({relation.sql})")
        return relation
    if column not in relation.types:
        raise UserError("data.columns.timestamp", column, "a column of the events: " + ", ".join(relation.types),
                        "set data.columns.timestamp=..., or null where the events are listed in order")  # fmt: skip
    expected, remedy = "integers, timestamps or dates", "correct or remove those rows in the source"
    _check_strings(connection, relation, "data.columns.timestamp", column, _TIMES, expected, remedy)
    seconds, finer = _seconds(config, relation.types[column])
    numbered = f"SELECT *, row_number() OVER () - 1 AS input_row FROM ({relation.sql})"
    # Whole seconds would tie what a finer clock tells apart, so there seq follows the clock.
    seq = f"row_number() OVER (ORDER BY {quoted(column)}, input_row) - 1 AS seq" if finer else "input_row AS seq"
    kept = _all_but(hidden if finer else [*hidden, "input_row"])
    times = f"{seconds} AS timestamp{weight}"
    connection.execute(f"CREATE VIEW {EVENTS} AS SELECT {kept}, {times}, {seq} FROM ({numbered})")
    return relation.select(f"{_all_but(hidden)}, {times}")


def _weight(connection: Connection, config: TabularConfig, relation: Relation) -> str:
    """SQL that adds the weight of an event to what is selected, where there are weights."""
    where, column, remedy = "data.columns.weight", config.columns.weight, "name a column of numbers, or null"
    if column is None:
        return ""
    if column not in relation.types:
        raise UserError(where, column, "a column of the events: " + ", ".join(relation.types), remedy)
    _check_strings(connection, relation, where, column, ("DOUBLE",), "numbers", "correct them in the source")
    kind = relation.types[column]
    if kind.split("(")[0] not in NUMBERS or kind.endswith("]"):
        raise UserError(where, f"{column} ({kind})", "a column of numbers", remedy)
    return f", CAST({quoted(column)} AS DOUBLE) AS {SAMPLE_WEIGHT}"


def _name_split(config: TabularConfig, relation: Relation) -> Relation:
    """The relation with the column of splits, where one is named, as `split`."""
    column = config.columns.split
    if column is None:
        return relation
    if column not in relation.types:
        raise UserError("data.columns.split", column, "a column of the events: " + ", ".join(relation.types),
                        "set data.columns.split=...")  # fmt: skip
    hidden = [name for name in relation.types if name.lower() == "split"]
    return relation.select(f"{_all_but(hidden)}, {quoted(column)} AS split")


def _all_but(hidden: list[str]) -> str:
    return f"* EXCLUDE ({', '.join(quoted(name) for name in hidden)})" if hidden else "*"


def _seconds(config: TabularConfig, kind: str) -> tuple[str, bool]:
    """SQL of a timestamp in whole seconds, null where there is no such number, and whether it was finer."""
    raw, unit = quoted(config.columns.timestamp or ""), UNITS[config.timestamp_unit]
    if kind in (*INTEGERS, "UBIGINT"):
        # Rounds down, also before 1970.
        seconds = raw if unit == 1 else f"({raw} - ({raw} % {unit} + {unit}) % {unit}) // {unit}"
        finer = unit > 1
    elif kind in ("FLOAT", "DOUBLE"):
        seconds, finer = f"floor({raw} / {unit})", True
    elif kind.startswith("TIMESTAMP") or kind == "DATE":
        seconds, finer = f"floor(epoch({raw}))", True
    else:
        raise UserError("data.columns.timestamp", f"{config.columns.timestamp} ({kind})",
                        "a column of integers, timestamps or dates",
                        "write it as one, such as seconds since 1970")  # fmt: skip
    return f"TRY_CAST({seconds} AS BIGINT)", finer
