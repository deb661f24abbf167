"""Checksums of files' footers: a file that is missing or another is noticed before anything in it is believed."""

import os
import zlib
from pathlib import Path

from trainer.data.schema import Schema
from trainer.errors import UserError

_REMEDY = "prepare the data anew, or take back the files as they were"
_TAIL = {".parquet": 8, ".arrow": 10}
"""Bytes behind a footer: its length, and the letters that end such a file."""


def footer_checksum(path: Path) -> int:
    """CRC-32 of the end of a Parquet or Arrow file, which says what is in it and where; of the file if it says nothing.

    Raises:
        OSError: the file cannot be read.
    """
    tail = _TAIL[path.suffix]
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - tail))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, size - tail - length))
        return zlib.crc32(file.read())


def footer_checksums(data_dir: Path) -> dict[str, int]:
    """Of the catalogue, the vocabularies, and every part of events and sequences, by path in the folder."""
    vocabularies = ["vocabulary/*.parquet", "vocabulary/*.parquet/part-*.parquet"]  # a file, or a folder of parts
    patterns = ["catalog.arrow", *vocabularies, "events/*/part-*.parquet", "sequences/part-*.parquet"]
    paths = sorted(path for pattern in patterns for path in data_dir.glob(pattern) if path.is_file())
    return {str(path.relative_to(data_dir)): footer_checksum(path) for path in paths}


def check_parts(data_dir: Path, schema: Schema, folder: str) -> None:
    """Compares the parts of a folder in the data with those that the schema knows, where it knows any.

    Raises:
        UserError: a part is missing, is there besides, or is not the one that was written.
    """
    expected = {path for path in schema.footers if path.startswith(f"{folder}/")}
    there = {str(path.relative_to(data_dir)) for path in (data_dir / folder).glob("part-*.parquet")}
    for path in sorted(expected ^ there if schema.footers else ()):
        found, wanted = ("missing", "the file that was written") if path in expected else ("there", "no other file")
        raise UserError(str(data_dir / path), found, wanted, _REMEDY)
    check_known(data_dir, schema, folder)


def check_known(data_dir: Path, schema: Schema, place: str) -> None:
    """Compares a file in the data, or those below a folder, with what the schema knows of them, if it does.

    Raises:
        UserError: one is not that which was written, or cannot be read.
    """
    for path in sorted(path for path in schema.footers if f"{path}/".startswith(f"{place}/")):
        try:
            same = footer_checksum(data_dir / path) == schema.footers[path]
        except OSError as error:
            raise UserError(str(data_dir / path), error.strerror, "a file that can be read", _REMEDY) from None
        if not same:
            raise UserError(str(data_dir / path), "damaged or another", "the file that was written", _REMEDY)
