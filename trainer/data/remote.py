"""Files that lie elsewhere, as DuckDB reads them: through pyarrow.fs, a range at a time.

DuckDB's own httpfs would be downloaded at run time, which clusters without internet cannot.
"""

import io
import threading
from datetime import datetime
from typing import Any

from fsspec import AbstractFileSystem
from pyarrow import NativeFile

from trainer.data.engine import Connection
from trainer.data.source_files import SourceFile
from trainer.errors import UserError

READ_AHEAD = 1 << 20  # bytes; what is compressed is asked for in small pieces, each of which would be a request


def serve(connection: Connection, files: list[SourceFile]) -> None:
    """Lets the engine open those of the files that lie elsewhere, under their names.

    Raises:
        UserError: two files go by one name.
    """
    remote: dict[str, SourceFile] = {}
    for file in files:
        if not file.is_remote:
            continue
        known = remote.setdefault(file.name, file)
        if known is not file and not known.filesystem.equals(file.filesystem):
            raise UserError("data.source", file.name, "one server for all files of a bucket",
                            "give every URI of it the same query")  # fmt: skip
    if remote:
        connection.register_filesystem(_RemoteFiles(remote))


class _RemoteFiles(AbstractFileSystem):
    """A read-only file system of files known beforehand."""

    cachable = False

    def __init__(self, files: dict[str, SourceFile]) -> None:
        super().__init__()
        self.protocol = sorted({name.split("://")[0] for name in files})
        self._files = files

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> list[str]:
        """The path itself: patterns were resolved when the files were found."""
        return [path]

    def exists(self, path: str, **kwargs: Any) -> bool:
        return path in self._files

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        file = self._files[path]
        return {"name": path, "size": file.filesystem.get_file_info(file.path).size, "type": "file"}

    def modified(self, path: str) -> datetime:
        file = self._files[path]
        return file.filesystem.get_file_info(file.path).mtime

    def open(self, path: str, mode: str = "rb", *_: Any, **kwargs: Any) -> io.IOBase:
        file = self._files[path]
        native = file.filesystem.open_input_file(file.path)
        return _RangeReader(native, READ_AHEAD if path.endswith((".gz", ".zst")) else 0)


class _RangeReader(io.RawIOBase):
    """A file whose position is each thread's own from a seek to the read that follows.

    DuckDB's threads share a file, and each seeks, then reads: with one position for all, a thread would read where
    another sought. A read without a seek of its own goes on where the last read or seek of all threads ended.
    """

    def __init__(self, native: NativeFile, read_ahead: int) -> None:
        self._native, self._size, self._read_ahead = native, native.size(), read_ahead
        self._ahead = (0, b"")  # where it begins, and the bytes from there
        self._lock, self._local = threading.Lock(), threading.local()
        self._position = 0
        self._shared_reads = 0  # a seek counts no more once somebody has gone on from the common position

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._lock:
            start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
            self._position = start + offset
            self._local.sought = (self._shared_reads, self._position)
            return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        with self._lock:
            shared_reads, position = getattr(self._local, "sought", (-1, 0))
            self._local.sought = (-1, 0)
            if shared_reads != self._shared_reads:
                self._shared_reads += 1
                position = self._position
            wanted = self._size - position if size is None or size < 0 else min(size, self._size - position)
            self._position = position + wanted
        return self._read_at(position, wanted) if wanted > 0 else b""

    def _read_at(self, position: int, size: int) -> bytes:
        if size >= self._read_ahead:
            return self._native.read_at(size, position)
        begin, content = self._ahead
        if not begin <= position <= position + size <= begin + len(content):
            begin, content = position, self._native.read_at(min(self._read_ahead, self._size - position), position)
            self._ahead = (begin, content)
        return content[position - begin : position - begin + size]

    def close(self) -> None:
        if not self.closed:
            self._native.close()
        super().close()
