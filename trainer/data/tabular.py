"""One's own events, items and users, as CSV or Parquet."""

import glob
from pathlib import Path

from trainer.checks import require_one_of
from trainer.config import TabularConfig
from trainer.data.engine import EVENTS, ITEMS, USERS, Connection, Source, columns, first_row, literal, quoted, reading
from trainer.data.inputs import INTEGERS
from trainer.errors import UserError

PARQUET = (".parquet", ".pq")
CSV = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".csv.zst")
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def read_tabular(config: TabularConfig, connection: Connection) -> Source:
    """Leaves the source's views in the connection.

    Raises:
        UserError: a path holds no CSV or Parquet, a file cannot be read or differs in its columns from the others, or a
            column that config.columns names is not there.
    """
    require_one_of("data.timestamp_unit", config.timestamp_unit, tuple(UNITS))
    user = ("user_id", config.columns.user_id)
    item = ("item_id", config.columns.item_id)
    scans = {EVENTS: _view(connection, config, "raw_events", "events", config.events, [user, item])}
    if config.items is not None:
        scans[ITEMS] = _view(connection, config, ITEMS, "items", config.items, [item])
    if config.users is not None:
        scans[USERS] = _view(connection, config, USERS, "users", config.users, [user])
    _view_events(connection, config)
    return Source(scans=scans)


def _view(
    connection: Connection, config: TabularConfig, view: str, field: str, path: str, ids: list[tuple[str, str]]
) -> dict[str, str]:
    """Makes a view of the files with all their columns, and the ids under the names that the pipeline knows.

    Returns:
        The SQL that scans each file alone.
    """
    where = f"data.{field}"
    files = find_files(where, Path(config.source), path)
    there = _describe(where, connection, files)
    renamed = []
    for name, column in ids:
        if column not in there:
            raise UserError(f"data.columns.{name}", column, f"a column of the {field}: " + ", ".join(there),
                            f"set data.columns.{name}=...")  # fmt: skip
        if column != name:
            if name in there:
                raise UserError(f"data.columns.{name}", column, f"{name}, for the {field} have a column of that name",
                                f"rename one of the two in the {field}")  # fmt: skip
            renamed.append(f"{quoted(column)} AS {name}")
    types = "types = {" + ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in there.items()) + "}"
    connection.execute(f"CREATE VIEW {view} AS SELECT {', '.join(['*', *renamed])} FROM {_scan(files, types)}")
    return {file: _scan([file], types) for file in files}


def find_files(where: str, folder: Path, path: str) -> list[str]:
    """The files that a path relative to `folder` names, by name: a file, a folder's CSV and Parquet, or a glob.

    Raises:
        UserError: there is none, or CSV is mixed with Parquet.
    """
    named = folder / path
    if named.is_dir():
        found = sorted(str(file) for file in named.rglob("*") if file.name.endswith(PARQUET + CSV))
    elif named.is_file():
        found = [str(named)]
    else:
        found = sorted(file for file in glob.glob(str(named), recursive=True) if Path(file).is_file())
    # What engines leave beside their output (_SUCCESS, .crc) is hidden by its name.
    found = [file for file in found if not Path(file).name.startswith(("_", "."))]
    if not found:
        raise UserError(where, named, "a CSV or Parquet file, a folder of them or a glob", f"set {where}=...")
    if len({file.endswith(PARQUET) for file in found}) > 1:
        raise UserError(where, named, "either CSV or Parquet", f"set {where} to a glob such as '*.parquet'")
    if not found[0].endswith(PARQUET + CSV):
        raise UserError(where, found[0], "a name that ends in " + ", ".join(PARQUET + CSV), "rename the file")
    return found


def _describe(where: str, connection: Connection, files: list[str]) -> dict[str, str]:
    """The columns, which all files must share, and their types.

    Raises:
        UserError: a file cannot be read, or has other columns or types than the first.
    """
    described = {file: _describe_one(where, connection, file) for file in files}
    first = described[files[0]]
    for file, these in described.items():
        if list(these) != list(first):
            raise UserError(where, f"{file} with columns {', '.join(these)}", f"{', '.join(first)}, as in {files[0]}",
                            "write all files with the same columns")  # fmt: skip
        for name, kind in these.items():
            if kind != first[name] and file.endswith(PARQUET):
                raise UserError(where, f"{file}, where {name} is {kind}", f"{first[name]}, as in {files[0]}",
                                "write all files with the same types")  # fmt: skip
    return {name: _common_type(connection, name, described) for name in first}


def _describe_one(where: str, connection: Connection, file: str) -> dict[str, str]:
    if not Path(file).stat().st_size:
        raise UserError(where, file, "a file that is not empty", "write the file anew, or leave it out")
    with reading(where, file):
        # All rows decide on a CSV column's type: ids that turn to strings after a million integers are strings.
        rows = connection.execute(f"DESCRIBE SELECT * FROM {_scan([file], 'sample_size = -1')}").fetchall()
    described = {row[0]: row[1] for row in rows}
    (header, *others) = described
    if not others and any(mark in header for mark in ",;\t|"):
        # One uneven row is enough for DuckDB to take lines for undivided.
        raise UserError(where, file, f"as many fields in every row as in the header {header}",
                        "repair the rows that have more or fewer")  # fmt: skip
    return described


def _common_type(connection: Connection, name: str, described: dict[str, dict[str, str]]) -> str:
    """The type that a column has in every CSV file, or one that takes the values of all."""
    kinds = {these[name] for these in described.values()}
    if len(kinds) == 1:
        return kinds.pop()
    # A column that is empty in one of the files passes for strings there.
    kinds = {
        these[name]
        for file, these in described.items()
        if these[name] != "VARCHAR"
        or first_row(connection, f"SELECT count({quoted(name)}) FROM {_scan([file])}") != (0,)
    }
    if len(kinds) == 1:
        return kinds.pop()
    return "DOUBLE" if kinds == {"BIGINT", "DOUBLE"} else "VARCHAR"


def _scan(files: list[str], csv_option: str = "all_varchar = true") -> str:
    """SQL of the rows of all files, one file after another."""
    listed = "[" + ", ".join(literal(file) for file in files) + "]"
    if files[0].endswith(PARQUET):
        return f"read_parquet({listed})"
    return f"read_csv({listed}, header = true, {csv_option})"


def _view_events(connection: Connection, config: TabularConfig) -> None:
    """The events with `timestamp` in seconds and `seq`."""
    types = columns(connection, "raw_events")
    column = config.columns.timestamp
    if column is None:
        kept = "* EXCLUDE (timestamp)" if "timestamp" in types else "*"
        connection.execute(f"CREATE VIEW {EVENTS} AS SELECT {kept}, row_number() OVER () - 1 AS seq FROM raw_events")
        return
    if column not in types:
        raise UserError("data.columns.timestamp", column, "a column of the events: " + ", ".join(types),
                        "set data.columns.timestamp=..., or null where the events are listed in order")  # fmt: skip
    raw, kind, unit = quoted(column), types[column], UNITS[config.timestamp_unit]
    if kind in (*INTEGERS, "UBIGINT"):
        # Rounds down, also before 1970.
        seconds = raw if unit == 1 else f"({raw} - ({raw} % {unit} + {unit}) % {unit}) // {unit}"
    elif kind in ("FLOAT", "DOUBLE"):
        seconds = f"floor({raw} / {unit})"
    elif kind.startswith("TIMESTAMP") or kind == "DATE":
        seconds, unit = f"floor(epoch({raw}))", 10**6
    else:
        raise UserError("data.columns.timestamp", f"{column} ({kind})", "a column of integers, timestamps or dates",
                        "write it as one, such as seconds since 1970")  # fmt: skip
    # Whole seconds would tie what a finer clock tells apart, so there seq follows the clock.
    finer = unit > 1 or kind in ("FLOAT", "DOUBLE")
    seq = f"row_number() OVER (ORDER BY {raw}, input_row) - 1" if finer else "input_row"
    connection.execute(f"""
        CREATE VIEW {EVENTS} AS
        SELECT * EXCLUDE ({", ".join(["input_row", *(["timestamp"] if "timestamp" in types else [])])}),
               CAST({seconds} AS BIGINT) AS timestamp, {seq} AS seq
        FROM (SELECT *, row_number() OVER () - 1 AS input_row FROM raw_events)""")
