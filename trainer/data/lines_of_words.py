"""Text files whose lines are words separated by blanks, as data sets of research often come."""

from pathlib import Path

from trainer.data.engine import Connection, literal, reading
from trainer.errors import UserError

INTEGER = r"-?\d{1,18}"
"""Regular expression of a word that is an int64."""


def read_lines(connection: Connection, table: str, path: Path) -> None:
    """Makes a table with `line`, from 1, its `text`, null where it is empty, and the list of its `words`.

    Raises:
        UserError: the file cannot be read, or is no UTF-8.
    """
    with reading("data.source", path):
        connection.execute(f"""
            CREATE TABLE {table} AS
            SELECT line, text, list_filter(string_split_regex(trim(text), '\\s+'), lambda word: word <> '') AS words
            FROM (SELECT text, row_number() OVER () AS line
                  FROM read_csv({literal(str(path))}, header = false, auto_detect = false, delim = '\x01', quote = '',
                                escape = '', max_line_size = 100_000_000, columns = {{'text': 'VARCHAR'}}))""")


def refuse(connection: Connection, table: str, path: Path, wrong: str, shown: str, expected: str) -> None:
    """Looks for lines that are not as they should be.

    Args:
        connection: The engine.
        table: Of `read_lines`.
        path: Of its file.
        wrong: SQL of what a line must not be.
        shown: SQL of what to tell of the first such line.
        expected: What a line should be.

    Raises:
        UserError: there is one; its file and line are named.
    """
    query = f"SELECT line, {shown}, count(*) OVER () FROM {table} WHERE {wrong} ORDER BY line LIMIT 1"
    for line, value, count in connection.execute(query).fetchall():
        more = f" and {count - 1:,} lines more" if count > 1 else ""
        raise UserError("data.source", f"{path} line {line}: {value}{more}", expected, "correct the file")


def first_unlike(pattern: str, words: str = "words") -> str:
    """SQL of the first word that a regular expression does not match; null where it matches all."""
    return f"list_filter({words}, lambda word: NOT regexp_full_match(word, {literal(pattern)}))[1]"
