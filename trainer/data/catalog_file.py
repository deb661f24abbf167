"""Writing catalog.arrow in bounded memory: one record batch, so that each column is one piece of memory once mapped."""

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.contract import list_parts, string_parts

CHECKSUM = b"crc32"
"""Key of a field's metadata."""


def write_catalog(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes uncompressed Arrow IPC with one record batch.

    The columns' buffers are first laid down in files of their own, beside the path, from which they are mapped: however
    many rows there are, no more than a batch of them is held in memory.

    Args:
        path: of the file.
        batches: without nulls, and at least one.

    Returns:
        The rows written.
    """
    spools: dict[str, _Spool] = {}
    try:
        for batch in batches:
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if name not in spools:
                    spools[name] = _Spool(path.with_name(f"{path.name}.{len(spools)}"), column.type)
                spools[name].append(column)
        columns = {name: spool.column() for name, spool in spools.items()}
        fields = [
            pa.field(name, column.type, nullable=False, metadata={CHECKSUM: str(checksum(column))})
            for name, column in columns.items()
        ]
        whole = pa.record_batch(list(columns.values()), schema=pa.schema(fields))
        with pa.ipc.new_file(path, whole.schema) as writer:
            writer.write_batch(whole)
        return len(whole)
    finally:
        for spool in spools.values():
            spool.remove()


def checksum(column: pa.Array) -> int:
    """CRC-32 of all that a column's buffers hold."""
    result = 0
    for buffer in column.buffers():
        if buffer is not None:
            result = zlib.crc32(buffer, result)
    return result


class _Spool:
    """One column's values, and the offsets of its lists or strings, in files that grow batch by batch."""

    def __init__(self, path: Path, kind: pa.DataType) -> None:
        self._kind = kind
        self._rows = self._length = 0
        self._paths = {part: path.with_name(f"{path.name}.{part}") for part in ("values", "offsets")}
        self._files: dict[str, BinaryIO] = {part: file.open("wb") for part, file in self._paths.items()}
        self._files["offsets"].write(np.zeros(1, np.int64).tobytes())

    def append(self, column: pa.Array) -> None:
        self._rows += len(column)
        if pa.types.is_fixed_size_list(column.type):
            _values(column.flatten()).tofile(self._files["values"])
        elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            values, offsets = list_parts(column)
            self._append_ragged(_values(values), offsets)
        elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            self._append_ragged(*string_parts(column))
        else:
            _values(column).tofile(self._files["values"])

    def _append_ragged(self, values: NDArray, offsets: NDArray) -> None:
        values.tofile(self._files["values"])
        (offsets[1:].astype(np.int64) + self._length).tofile(self._files["offsets"])
        self._length += int(offsets[-1])

    def column(self) -> pa.Array:
        """All of it, mapped. Offsets are of 64 bits, so that lists and strings may be of any length together."""
        for file in self._files.values():
            file.close()
        values, offsets = (_mapped(path) for path in self._paths.values())
        kind, rows = self._kind, self._rows
        if pa.types.is_fixed_size_list(kind):
            child = pa.Array.from_buffers(kind.value_type, rows * kind.list_size, [None, values])
            return pa.FixedSizeListArray.from_arrays(child, type=kind)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            child = pa.Array.from_buffers(kind.value_type, self._length, [None, values])
            large = pa.large_list(kind.value_field)
            return pa.Array.from_buffers(large, rows, [None, offsets], children=[child])
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return pa.Array.from_buffers(pa.large_string(), rows, [None, offsets, values])
        return pa.Array.from_buffers(kind, rows, [None, values])

    def remove(self) -> None:
        for file, path in zip(self._files.values(), self._paths.values(), strict=True):
            file.close()
            path.unlink()


def _values(column: pa.Array) -> NDArray:
    return column.to_numpy(zero_copy_only=False)


def _mapped(path: Path) -> pa.Buffer:
    return pa.py_buffer(np.memmap(path, np.uint8, "r")) if path.stat().st_size else pa.py_buffer(b"")
