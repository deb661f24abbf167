"""Files that a reader sees whole or not at all, and that a power cut leaves so."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class SummedFile(io.BufferedWriter):
    """A new file that adds up what it is given, so that damage on the way to the disk shows too.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w"))
        self._sha256, self._bytes = hashlib.sha256(), 0

    def write(self, content: Any) -> int:
        """Takes the next bytes."""
        written = super().write(content)
        self._sha256.update(content)
        self._bytes += written
        return written

    def checksum(self) -> dict[str, Any]:
        """Size and SHA-256 of what was written, as `checkpoint.checksum` says of a file."""
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}


@contextmanager
def removed_unless_whole(partial: Path, path: Path) -> Iterator[None]:
    """Around the writing of a file beside its place: where there is no room for it, what was written is removed.

    Raises:
        OSError: from within, and it names the file.
    """
    try:
        yield
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def write(folder: str | Path, name: str, content: str | bytes) -> Path:
    """Writes a small file, text or bytes, beside its place and renames it."""
    path = Path(folder) / name
    partial = path.with_name(name + ".partial")
    with removed_unless_whole(partial, path):
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.rename(path)
    return path


def write_durably(file: Path, content: bytes | memoryview) -> None:
    """Writes a file, and returns when it is on the disk."""
    file.write_bytes(content)
    synchronise(file)


def synchronise(path: Path) -> None:
    """Returns when a file, or what a folder says is in it, is on the disk."""
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def place_durably(partial: Path, path: Path) -> None:
    """Renames a file once it is on the disk."""
    synchronise(partial)
    partial.rename(path)
