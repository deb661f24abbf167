"""What each column of a prepared folder must look like (docs/prepared_folder.md), and which row of it does not."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.schema import ITEM_ROW, RAW_ITEM_ID, RAW_USER_ID, SEEN, TRAIN_COUNT, Feature, Schema

UNKNOWN_ITEM = -1
"""In histories and seen items, instead of a catalogue row: an item that the catalogue lacks."""

_ROWS = (pa.int32(), pa.int64())
_IDS = {"int64": (pa.int64(),), "string": (pa.string(), pa.large_string())}
_FLOATS = {"float32": pa.float32(), "float16": pa.float16()}


@dataclass(frozen=True)
class Column:
    """A column of plain values, or of lists of them; it has no nulls.

    Attributes:
        name: of the column.
        types: those that a value, or an element of a list, may have.
        bounds: what an integer must be in.
        lengths: what the length of a list must be in; None for plain values.
        nan: whether a float may be NaN, for a missing one. None is ever infinite.
    """

    name: str
    types: tuple[pa.DataType, ...]
    bounds: range | None = None
    lengths: range | None = None
    nan: bool = False

    @property
    def expected(self) -> str:
        """Its type in words."""
        words = " or ".join(str(kind) for kind in self.types)
        return words if self.lengths is None else f"lists of {words}"

    def accepts(self, kind: pa.DataType) -> bool:
        """Whether a column of this Arrow type will do."""
        if self.lengths is None:
            return kind in self.types
        if pa.types.is_fixed_size_list(kind):
            return kind.value_type in self.types and kind.list_size in self.lengths
        return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and kind.value_type in self.types

    def first_wrong(self, column: pa.Array) -> tuple[int, object, str] | None:
        """Looks at every value.

        Args:
            column: of an accepted type.

        Returns:
            The first row (from 0) with something wrong, what it is and what is expected; None where all is right.
        """
        if column.null_count:
            return _first(column.is_null()), None, "no null"
        if self.lengths is None:
            found = self._first_wrong_value(column)
            return found
        values, offsets = list_parts(column)
        lengths = np.diff(offsets)
        if len(lengths) and not (lengths.min() in self.lengths and lengths.max() in self.lengths):
            row = int(np.argmax((lengths < self.lengths.start) | (lengths >= self.lengths.stop)))
            few, most = self.lengths.start, self.lengths.stop - 1
            return row, f"a list of {lengths[row]}", f"{few} values" if few == most else f"{few} to {most} values"
        if values.null_count:
            element = _first(values.is_null())
            return int(np.searchsorted(offsets, element, side="right")) - 1, "a null in a list", "no null"
        found = self._first_wrong_value(values)
        return found and (int(np.searchsorted(offsets, found[0], side="right")) - 1, found[1], found[2])

    def _first_wrong_value(self, values: pa.Array) -> tuple[int, object, str] | None:
        if self.bounds is not None and len(values):
            limits = pc.min_max(values)
            if not (limits["min"].as_py() in self.bounds and limits["max"].as_py() in self.bounds):
                numbers = values.to_numpy()
                row = int(np.argmax((numbers < self.bounds.start) | (numbers >= self.bounds.stop)))
                return row, numbers[row], f"{self.bounds.start} to {self.bounds.stop - 1}"
        elif pa.types.is_floating(values.type):
            numbers = values.to_numpy(zero_copy_only=False)
            wrong = np.isinf(numbers) if self.nan else ~np.isfinite(numbers)
            if wrong.any():
                row = int(np.argmax(wrong))
                return row, numbers[row], "finite numbers" + (", or NaN where missing" if self.nan else "")
        return None


def list_parts(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Values of all lists end to end, and the integer [rows + 1] offsets at which each begins, from 0."""
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten(), np.arange(len(column) + 1) * column.type.list_size
    # values with offsets cost nothing; flatten() on a list column gathers list by list
    offsets = column.offsets.to_numpy()
    return column.values.slice(offsets[0], offsets[-1] - offsets[0]), offsets - offsets[0]


def string_parts(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of all strings end to end, uint8, and the int64 [rows + 1] offsets at which each begins, from 0."""
    binary = column.cast(pa.large_binary())
    _, begins, contents = binary.buffers()
    offsets = np.frombuffer(begins or bytes(8), np.int64)[binary.offset : binary.offset + len(binary) + 1]
    return np.frombuffer(contents or b"", np.uint8)[offsets[0] : offsets[-1]], offsets - offsets[0]


def event_columns(schema: Schema, split: str) -> dict[str, Column]:
    """Columns of a split's files, by name."""
    columns = [Column(ITEM_ROW, _ROWS, range(schema.num_items))]
    columns += [_feature_column(feature, schema) for feature in schema.side("query")]
    if split != "train":
        columns.append(Column(RAW_USER_ID, _IDS[schema.user_id_type]))
        columns.append(Column(SEEN, _ROWS, range(UNKNOWN_ITEM, schema.num_items), _ANY_LENGTH))
    return {column.name: column for column in columns}


def catalog_columns(schema: Schema) -> dict[str, Column]:
    """Columns of the catalogue, by name."""
    columns = [Column(RAW_ITEM_ID, _IDS[schema.item_id_type]), Column(TRAIN_COUNT, (pa.int64(),), range(1 << 62))]
    columns += [_feature_column(feature, schema) for feature in schema.side("candidate")]
    return {column.name: column for column in columns}


_ANY_LENGTH = range(1 << 31)


def _feature_column(feature: Feature, schema: Schema) -> Column:
    lengths = range(feature.length + 1)
    match feature.kind:
        case "numeric":
            return Column(feature.name, (pa.float32(),), nan=True)
        case "vector":
            return Column(feature.name, (_FLOATS[feature.dtype],), lengths=range(feature.dim, feature.dim + 1))
        case "history":
            return Column(feature.name, _ROWS, range(UNKNOWN_ITEM, schema.num_items), lengths)
        case _:
            rows = range(feature.num_embeddings)
            return Column(feature.name, _ROWS, rows, lengths if feature.multi_valued else None)


def _first(marked: pa.Array) -> int:
    return int(np.argmax(marked.to_numpy(zero_copy_only=False)))
