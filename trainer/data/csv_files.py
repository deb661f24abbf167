"""CSV as RFC 4180 has it: UTF-8, a header, quotes of ", and one separator, which the header tells.

Nothing is guessed from a sample: DuckDB is told all of it, and a column's type is what every one of its values is.
"""

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

from trainer.data.engine import Connection, Relation, Scan, first_row, literal, quoted, reading
from trainer.data.source_files import SourceFile, unreadable
from trainer.errors import UserError

SEPARATORS = (",", ";", "\t", "|")  # of equally frequent ones, the first
_MAX_HEADER = 1 << 20  # characters
_CHUNK = 1 << 20  # bytes
_DATE, _TIME, _ZONE = r"\d{4}-\d{2}-\d{2}", r"[ T]\d{2}:\d{2}(:\d{2}(\.\d+)?)?", r" ?(Z|UTC|[+-]\d{2}(:?\d{2})?)"
# A type, how its values are written, and what DuckDB can make of them; the first that suits all values is a column's.
_TYPES = {
    "BIGINT": r"\s*[+-]?\d+\s*",
    "DOUBLE": r"(?i)\s*[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf(inity)?)\s*",
    "BOOLEAN": "(?i)true|false",
    "DATE": _DATE,
    "TIMESTAMP": _DATE + _TIME,
    "TIMESTAMP WITH TIME ZONE": _DATE + _TIME + _ZONE,  # as a TIMESTAMP it would lose its offset
}


def open_csv(where: str, connection: Connection, files: list[SourceFile]) -> Relation:
    """The rows of all files, one file after another.

    Raises:
        UserError: a file cannot be read, or has other columns or another separator than the first.
    """
    headers = {file.name: _read_header(where, file) for file in files}
    separator, names = headers[files[0].name]
    for name, (its_separator, its_names) in headers.items():
        if its_names != names:
            raise UserError(where, f"{name} with columns {', '.join(its_names)}",
                            f"{', '.join(names)}, as in {files[0].name}",
                            "write all files with the same columns")  # fmt: skip
        if its_separator != separator:
            raise UserError(where, f"{name} with separator {its_separator!r}",
                            f"{separator!r}, as in {files[0].name}",
                            "write all files with the same separator")  # fmt: skip
    possible = {name: set(_TYPES) for name in names}
    num_rows = {}
    for file in files:
        _check_compression(where, file)
        num_rows[file.name], kinds = _possible_types(where, connection, file, separator, names)
        possible = {name: possible[name] & kinds[name] for name in names}
    types = {name: _choose(kinds) for name, kinds in possible.items()}

    def rows(listed: list[SourceFile]) -> str:
        cast = ", ".join(f"CAST({quoted(name)} AS {kind}) AS {quoted(name)}" for name, kind in types.items())
        return f"SELECT {cast} FROM {_strings(listed, separator, names)}"

    scans = {file.name: Scan(rows([file]), _Lines(file, separator)) for file in files}
    return Relation(types, rows(files), scans, num_rows, is_csv=True)


def is_of_type(sql: str, kind: str) -> str:
    """SQL of whether a string is a value of a type; null where it is null."""
    matches = f"regexp_full_match({sql}, {literal(_TYPES[kind])}) AND TRY_CAST({sql} AS {kind}) IS NOT NULL"
    return f"CASE WHEN {sql} IS NOT NULL THEN {matches} END"


def _choose(possible: set[str]) -> str:
    """The type of a column; one that is all empty is as good as strings."""
    return "VARCHAR" if len(possible) == len(_TYPES) else next((kind for kind in _TYPES if kind in possible), "VARCHAR")


def _possible_types(
    where: str, connection: Connection, file: SourceFile, separator: str, names: list[str]
) -> tuple[int, dict[str, set[str]]]:
    """The file's rows, and the types that all values of a column are of: every type where it has no values."""
    tests = [f"coalesce(bool_and({is_of_type(quoted(name), kind)}), true)" for name in names for kind in _TYPES]
    with reading(where, file.name):
        query = f"SELECT count(*), {', '.join(tests)} FROM {_strings([file], separator, names)}"
        count, *found = first_row(connection, query)
    suits = iter(found)
    return count, {name: {kind for kind in _TYPES if next(suits)} for name in names}


def _strings(files: list[SourceFile], separator: str, names: list[str]) -> str:
    """SQL of the rows as strings; an empty field is null."""
    listed = ", ".join(literal(file.name) for file in files)
    kinds = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    return (
        f"read_csv([{listed}], header = true, delim = {literal(separator)}, quote = '\"', escape = '\"', "
        f"encoding = 'utf-8', auto_detect = false, strict_mode = true, columns = {{{kinds}}})"
    )


def _read_header(where: str, file: SourceFile) -> tuple[str, list[str]]:
    """Separator and names of the columns."""
    try:
        with _text(file) as text:
            header = text.readline(_MAX_HEADER)
        unquoted = re.sub(r'"[^"]*"', "", header)
        separator = max(SEPARATORS, key=unquoted.count)
        fields = next(csv.reader([header], delimiter=separator, strict=True), [])
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise unreadable(where, file.name, error) from error
    if not header:
        raise UserError(where, file.name, "a file that is not empty", "write the file anew, or leave it out")
    names = [name or f"column{number}" for number, name in enumerate(fields)]
    if not names or len(header) == _MAX_HEADER:
        raise UserError(where, file.name, "a first line with the names of the columns",
                        "write one, or leave the file out")  # fmt: skip
    if len({name.lower() for name in names}) < len(names):
        raise UserError(where, f"{file.name} with columns {', '.join(names)}", "every name once, whatever its case",
                        "rename those that come twice")  # fmt: skip
    return separator, names


def _check_compression(where: str, file: SourceFile) -> None:
    """DuckDB takes a zstd file that is cut off for one that ends there, and does not look at gzip's checksum."""
    if not file.name.endswith((".gz", ".zst")):
        return
    try:
        with file.filesystem.open_input_stream(file.path, compression="detect") as stream:
            while stream.read(_CHUNK):
                pass
    except OSError as error:
        raise unreadable(where, file.name, error) from error


@contextmanager
def _text(file: SourceFile) -> Iterator[io.TextIOWrapper]:
    """The decompressed text from its beginning."""
    with file.filesystem.open_input_stream(file.path, compression="detect") as stream:
        yield io.TextIOWrapper(io.BufferedReader(stream, _CHUNK), "utf-8-sig", newline="")


class _Lines:
    """Tells the line of a row, which quoted line ends and empty lines put elsewhere than one would count."""

    def __init__(self, file: SourceFile, separator: str) -> None:
        self._file, self._separator = file, separator

    def __call__(self, row: int) -> str:
        with _text(self._file) as text:
            reader = csv.reader(text, delimiter=self._separator, strict=True)
            header = next(reader)
            for fields in reader:
                begin = reader.line_num - sum(field.count("\n") for field in fields)
                row -= bool(fields) or len(header) == 1
                if row == 0:
                    return f"line {begin}"
        return ""
