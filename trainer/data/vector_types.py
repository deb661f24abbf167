"""How embeddings are stored: float32, float16, or int8 with a scale for each row.

float32    as they are
float16    rounded to 11 bits: an element is off by at most 2^-11 of itself, or 2^-25 where it is below 2^-14
int8       embedding ~ int8 * scale, scale = the row's largest absolute element / 127; an element is off by at most
           half a scale, which is 1/254 of that largest one
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# R rows, D embedding dim

VECTOR_TYPES = ("float32", "float16", "int8")
TOLERANCE = {"float32": 1e-4, "float16": 2**-11 + 1e-4, "int8": 0.5 / 127 + 1e-4}
"""How far an element may be from what the model gives anew, as a share of its row's largest absolute element. What is
beyond the rounding allows for sums in another order: other ranks, other batches, a GPU."""
_SMALLEST = {"float32": 2.0**-126, "float16": 2.0**-14, "int8": 2.0**-100}
"""Rows without anything larger are less exact, and in int8 zeros: their scale would be too small for a float32."""


class StoredRows:
    """Rows that are filled piece by piece, in the type in which they are stored.

    Args:
        num_rows: of all.
        dim: of each.
        dtype: one of VECTOR_TYPES.
    """

    def __init__(self, num_rows: int, dim: int, dtype: str) -> None:
        self._values_RD = np.empty((num_rows, dim), dtype)
        self._scale_R = np.empty(num_rows, np.float32) if dtype == "int8" else None
        self._filled = 0

    def append(self, embedding_RD: NDArray[np.float32]) -> int | None:
        """Takes the next rows; returns the number of the first that the type cannot hold, such as one with a NaN."""
        here = slice(self._filled, self._filled + len(embedding_RD))
        if self._scale_R is None:
            with np.errstate(over="ignore", invalid="ignore"):
                self._values_RD[here] = embedding_RD
                # what is not finite makes the sum so; a sum that overflows costs a closer look
                all_fit = np.isfinite(self._values_RD[here].sum(dtype=np.float32))
            fits_R = np.ones(1, bool) if all_fit else np.isfinite(self._values_RD[here]).all(axis=1)
        else:
            largest_R = np.abs(embedding_RD).max(axis=1, initial=0)
            fits_R = np.isfinite(largest_R)
            largest_R = np.where(fits_R & (largest_R > _SMALLEST["int8"]), largest_R, np.float32(np.inf))
            self._scale_R[here] = np.where(np.isinf(largest_R), 0, largest_R / np.float32(127))
            per_scale_R = np.float32(127) / largest_R
            with np.errstate(invalid="ignore"):
                self._values_RD[here] = np.rint(embedding_RD * per_scale_R[:, None]).astype(np.int8)
        self._filled = here.stop
        return None if fits_R.all() else here.start + int(np.argmin(fits_R))

    def table(self, beside: Mapping[str, pa.Array]) -> pa.Table:
        """Columns that say whose embeddings they are, `embedding`, a fixed-size list, and of int8 `scale`, float32.

        None of the latter is ever null, and they say so: Parquet then notes nothing for each element, which is a third
        of the time that writing takes.
        """
        assert self._filled == len(self._values_RD)
        values, dim = pa.array(self._values_RD.reshape(-1)), self._values_RD.shape[1]
        kind = pa.list_(pa.field("element", values.type, nullable=False), dim)
        stored = {"embedding": pa.FixedSizeListArray.from_arrays(values, type=kind)}
        if self._scale_R is not None:
            stored["scale"] = pa.array(self._scale_R)
        fields = [pa.field(name, column.type) for name, column in beside.items()]
        fields += [pa.field(name, column.type, nullable=False) for name, column in stored.items()]
        return pa.table([*beside.values(), *stored.values()], schema=pa.schema(fields))


def embeddings_of(table: pa.Table) -> NDArray[np.float32]:
    """float32 [R, D] of what `StoredRows.table` gave."""
    embedding = table["embedding"].combine_chunks()
    stored_RD = embedding.flatten().to_numpy(zero_copy_only=False).reshape(len(table), embedding.type.list_size)
    if "scale" in table.column_names:
        return stored_RD.astype(np.float32) * table["scale"].to_numpy()[:, None]
    return stored_RD.astype(np.float32)


def shares_off(stored: pa.Table, embedding_RD: NDArray[np.float32], dtype: str) -> NDArray[np.float64]:
    """[R] how far the farthest element of each row is from what it should be, to be compared with TOLERANCE."""
    largest_R = np.abs(embedding_RD).max(axis=1).astype(np.float64)
    return np.abs(embeddings_of(stored) - embedding_RD).max(axis=1) / np.maximum(largest_R, _SMALLEST[dtype])


def parquet_settings(table: pa.Table) -> dict[str, Any]:
    """How to write such a table: neither dictionary nor compression finds anything in floats.

    But Parquet has no integers below 32 bits: a dictionary of the 255 values makes a byte of each.
    """
    return {
        "use_dictionary": ["embedding.list.element"] if "scale" in table.column_names else False,
        "compression": "none",
        "write_statistics": [name for name in table.column_names if name not in ("embedding", "scale")],
    }
