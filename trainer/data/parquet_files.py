"""Parquet of one's own."""

from collections.abc import Callable
from itertools import accumulate

import pyarrow.parquet as pq

from trainer.data.engine import Connection, Relation, Scan, first_row, literal, reading
from trainer.data.source_files import SourceFile
from trainer.errors import UserError


def open_parquet(where: str, connection: Connection, files: list[SourceFile]) -> Relation:
    """The rows of all files, one file after another.

    Raises:
        UserError: a file cannot be read, or has other columns or types than the first.
    """
    described = {file.name: _describe(where, connection, file) for file in files}
    types = described[files[0].name]
    for name, these in described.items():
        if list(these) != list(types):
            raise UserError(where, f"{name} with columns {', '.join(these)}",
                            f"{', '.join(types)}, as in {files[0].name}",
                            "write all files with the same columns")  # fmt: skip
        for column, kind in these.items():
            if kind != types[column]:
                raise UserError(where, f"{name}, where {column} is {kind}", f"{types[column]}, as in {files[0].name}",
                                "write all files with the same types")  # fmt: skip
    scans = {file.name: Scan(_rows([file]), _row_group(file)) for file in files}
    return Relation(types, _rows(files), scans, {file.name: _count(where, connection, file) for file in files})


def _describe(where: str, connection: Connection, file: SourceFile) -> dict[str, str]:
    with reading(where, file.name):
        return {row[0]: row[1] for row in connection.execute(f"DESCRIBE {_rows([file])}").fetchall()}


def _count(where: str, connection: Connection, file: SourceFile) -> int:
    with reading(where, file.name):
        (count,) = first_row(connection, f"SELECT count(*) FROM ({_rows([file])})")
    return count


def _rows(files: list[SourceFile]) -> str:
    listed = ", ".join(literal(file.name) for file in files)
    return f"SELECT * FROM read_parquet([{listed}])"


def _row_group(file: SourceFile) -> Callable[[int], str]:
    """Tells the row group of a row: from 0, as tools for Parquet count."""

    def place(row: int) -> str:
        with file.filesystem.open_input_file(file.path) as content:
            metadata = pq.read_metadata(content)
        ends = accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        return f"in row group {sum(end < row for end in ends)}"

    return place
