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

READ_AHEAD = 4 << 20  # bytes; CSV is asked for in small pieces, each of which would be a request


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
        return _RangeReader(native) if file.is_parquet else io.BufferedReader(native, READ_AHEAD)


class _RangeReader(io.RawIOBase):
    """Reads where the same thread last sought.

    DuckDB's threads share a Parquet file and each seeks, then reads: with one position for all, a thread would read
    where another sought.
    """

    def __init__(self, native: NativeFile) -> None:
        self._native = native
        self._local = threading.local()
        self._size = native.size()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._size}[whence]
        self._local.position = start + offset
        return self.tell()

    def tell(self) -> int:
        return getattr(self._local, "position", 0)

    def read(self, size: int = -1) -> bytes:
        position = self.tell()
        wanted = self._size - position if size is None or size < 0 else size
        content = self._native.read_at(wanted, position)
        self._local.position = position + len(content)
        return content

    def close(self) -> None:
        if not self.closed:
            self._native.close()
        super().close()
