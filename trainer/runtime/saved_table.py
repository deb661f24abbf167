"""An embedding table in a checkpoint's files, of which any stretch of rows is read where it lies.

To give out one row, torch.distributed.checkpoint loads all that a rank saved of the table: of a shard of 2 million
rows, 64 wide, half a gigabyte in 0.4 s, and again for every stretch. But its files are made by torch.save, where a
tensor lies as it does in memory: once its place is known, a stretch of 100,000 rows is 26 MB and 0.005 s (2 cores, page
cache warm). So no model, no plan and no GPU is needed, and any number of processes reads, whatever number wrote.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.utils import _create_file_view

from trainer.errors import UserError

# R rows of a stretch, D embedding dim

_DTYPES: dict[torch.dtype, np.dtype] = {torch.float32: np.dtype(np.float32), torch.float16: np.dtype(np.float16)}
_PREFIX, _SUFFIX = "model.embeddings.embedding_bags.", ".weight"


@dataclass(frozen=True)
class _Piece:
    """What one rank saved: a rectangle of the table, row after row from a place in a file on."""

    row: int
    column: int
    rows: int
    width: int
    dtype: np.dtype
    path: Path
    offset: int

    def read(self, rows: range) -> NDArray[np.floating]:
        """Rows of the table that lie in the piece, as wide as it is."""
        place = self.offset + self.dtype.itemsize * (rows.start - self.row) * self.width
        return np.fromfile(self.path, self.dtype, len(rows) * self.width, offset=place).reshape(-1, self.width)

    def take(self, places: NDArray[np.int64]) -> NDArray[np.floating]:
        """Rows by their numbers within the piece, as wide as it is."""
        return self._mapped.take(places, axis=0).view(self.dtype)

    @cached_property
    def _mapped(self) -> NDArray[np.uint8]:
        """[rows, bytes of a row] as it lies in the file: bytes, since a piece may begin at an odd place."""
        mapped = np.memmap(self.path, np.uint8, "r", self.offset, (self.rows, self.dtype.itemsize * self.width))
        return np.asarray(mapped)  # what is taken of a np.memmap is one too, which costs as much as the rows


class SavedTable:
    """Rows of a table, float32 whatever it is saved as.

    Args:
        checkpoint: folder of a complete checkpoint.
        table: name of the table.

    Raises:
        UserError: the checkpoint has no such table, or its files cannot be read.
    """

    num_rows: int
    dim: int

    def __init__(self, checkpoint: Path, table: str) -> None:
        try:
            metadata = FileSystemReader(checkpoint).read_metadata()
            saved = _find(metadata, table)
            name = f"{_PREFIX}{table}{_SUFFIX}"
            places = [metadata.storage_data[MetadataIndex(name, chunk.offsets)] for chunk in saved.chunks]
            self._pieces = [_piece(*found, checkpoint) for found in zip(saved.chunks, places, strict=True)]
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise UserError("run.checkpoint", checkpoint, f"files that can be read ({error})",
                            "take back the files as they were, or name another checkpoint") from None  # fmt: skip
        self.num_rows, self.dim = saved.size
        assert sum(piece.rows * piece.width for piece in self._pieces) == self.num_rows * self.dim, "a piece is missing"

    def read(self, rows: range) -> Tensor:
        """A stretch, float32 [R, D]."""
        result_RD = np.empty((len(rows), self.dim), np.float32)
        for piece in self._pieces:
            here = range(max(rows.start, piece.row), min(rows.stop, piece.row + piece.rows))
            if here:
                columns = slice(piece.column, piece.column + piece.width)
                result_RD[here.start - rows.start : here.stop - rows.start, columns] = piece.read(here)
        return torch.from_numpy(result_RD)

    def take(self, row_R: Tensor) -> Tensor:
        """Rows in any order, however often, float32 [R, D]; of the files, only pages that hold them are read.

        Args:
            row_R: int64, each below num_rows.
        """
        row = row_R.numpy()
        assert not len(row) or (row.min() >= 0 and row.max() < self.num_rows), "a row that the table lacks"
        result_RD = np.empty((len(row), self.dim), np.float32)
        for piece in self._pieces:
            place = row - piece.row
            here = (place >= 0) & (place < piece.rows)
            if here.all() and piece.width == self.dim:  # as mostly, since items come in the order of their rows
                return torch.from_numpy(piece.take(place)).float()
            result_RD[here, piece.column : piece.column + piece.width] = piece.take(place[here])
        return torch.from_numpy(result_RD)


def _find(metadata: Metadata, table: str) -> TensorStorageMetadata:
    """What the checkpoint says of a table.

    Raises:
        UserError: it has no such table; names those it has.
    """
    saved = metadata.state_dict_metadata
    tables = {name[len(_PREFIX) : -len(_SUFFIX)]: name for name in saved if name.startswith(_PREFIX)}
    if table not in tables:
        expected = f"one of the tables that the model looks up: {', '.join(sorted(tables))}"
        raise UserError("export.table", table, expected, "name one of them")
    return cast(TensorStorageMetadata, saved[tables[table]])


def _piece(chunk: ChunkStorageMetadata, place: Any, folder: Path) -> _Piece:
    """Finds where a chunk's numbers begin, in a file of several archives of torch.save, without reading them.

    Raises:
        OSError, RuntimeError, UnpicklingError: there is no such file, or no such archive in it.
    """
    path = folder / place.relative_path
    with path.open("rb") as file, FakeTensorMode():
        archive = cast(IO[bytes], _create_file_view(file, place.offset, place.length))
        tensor = torch.load(archive, map_location="cpu", weights_only=True)
    assert tensor.shape == chunk.sizes and tensor.is_contiguous()
    dtype = _DTYPES[tensor.dtype]
    offset = place.offset + tensor.untyped_storage()._checkpoint_offset + dtype.itemsize * tensor.storage_offset()
    (row, column), (rows, width) = chunk.offsets, chunk.sizes
    return _Piece(row, column, rows, width, dtype, path, offset)
