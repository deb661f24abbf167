"""Arrow's list columns from flat arrays, none of them with nulls."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def list_offsets(lists: pa.ListArray) -> NDArray[np.int64]:
    """Where each list begins in `lists.flatten()`, and its end: int64 [rows + 1]; a null list is empty."""
    # flatten() leaves out what null lists may hide, so offsets are counted anew from the lengths.
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def lists_of(offsets: NDArray[np.int64], values: pa.Array) -> pa.ListArray:
    """A list array from offsets [rows + 1] and values [offsets[-1]]."""
    kind = pa.list_(pa.field("element", values.type, nullable=False))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, type=kind)


def fixed_size_lists(vectors: NDArray[np.floating]) -> pa.FixedSizeListArray:
    """Vectors [rows, dim] as lists of their element type."""
    values = pa.array(vectors.reshape(-1))
    kind = pa.list_(pa.field("element", values.type, nullable=False), vectors.shape[1])
    return pa.FixedSizeListArray.from_arrays(values, type=kind)
