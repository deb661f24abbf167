"""What each column of a prepared folder must look like (docs/prepared_folder.md), and which row of it does not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.schema import (
    HISTORY_AGE,
    ITEM_ROW,
    RAW_ITEM_ID,
    RAW_USER_ID,
    SEEN,
    TARGETS,
    TIMESTAMP,
    TRAIN_COUNT,
    VALIDATION_COUNT,
    WEIGHT,
    Feature,
    Schema,
    Side,
)

UNKNOWN_ITEM = -1
"""In histories and seen items, instead of a catalogue row: an item that the catalogue lacks."""

Wrong = tuple[int, object, str]
"""The first row (from 0) with something wrong, what it is, and what is expected."""


@dataclass(frozen=True)
class Values:
    """Plain values, none of them null.

    Attributes:
        types: those that the column may have.
        bounds: what an integer must be in.
        nan: whether a float may be NaN, for a missing one. None is ever infinite.
        negative: whether a float may be below 0.
    """

    types: tuple[pa.DataType, ...]
    bounds: range | None = None
    nan: bool = False
    negative: bool = True

    @property
    def expected(self) -> str:
        """The types in words."""
        return " or ".join(str(kind) for kind in self.types)

    def accepts(self, kind: pa.DataType) -> bool:
        """Whether a column of this Arrow type will do."""
        return kind in self.types

    def first_wrong(self, column: pa.Array) -> Wrong | None:
        """Looks at every value of a column of an accepted type."""
        if column.null_count:
            return int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))), "null", "no null"
        if self.bounds is not None and len(column):
            limits = pc.min_max(column)
            if limits["min"].as_py() in self.bounds and limits["max"].as_py() in self.bounds:
                return None
            numbers = column.to_numpy()
            row = int(np.argmax((numbers < self.bounds.start) | (numbers >= self.bounds.stop)))
            return row, numbers[row], f"{self.bounds.start} to {self.bounds.stop - 1}"
        if pa.types.is_floating(column.type):
            numbers = column.to_numpy(zero_copy_only=False)
            wrong = np.isinf(numbers) if self.nan else ~np.isfinite(numbers)
            if not self.negative:
                wrong |= numbers < 0
            if wrong.any():
                row = int(np.argmax(wrong))
                least, missing = "" if self.negative else " from 0", ", or NaN where missing" if self.nan else ""
                return row, numbers[row], f"finite numbers{least}{missing}"
        return None


@dataclass(frozen=True)
class Lists:
    """Lists of values or of lists, none of them null.

    Attributes:
        elements: what they hold.
        lengths: what their lengths must be in.
        like: the column whose lists are as long, one by one, at every level that both have.
        distinct: whether a list of integers has each once.
    """

    elements: "Values | Lists"
    lengths: range
    like: str = ""
    distinct: bool = False

    @property
    def expected(self) -> str:
        """The types in words."""
        return f"lists of {self.elements.expected}"

    def accepts(self, kind: pa.DataType) -> bool:
        """Whether a column of this Arrow type will do."""
        if pa.types.is_fixed_size_list(kind) and kind.list_size not in self.lengths:
            return False
        return is_list(kind) and self.elements.accepts(kind.value_type)

    def first_wrong(self, column: pa.Array) -> Wrong | None:
        """Looks at every value of a column of an accepted type."""
        if column.null_count:
            return int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))), "null", "no null"
        elements, offsets = list_parts(column)
        lengths = np.diff(offsets)
        # as ints of Python: a range looks for others one by one
        if len(lengths) and not (int(lengths.min()) in self.lengths and int(lengths.max()) in self.lengths):
            row = int(np.argmax((lengths < self.lengths.start) | (lengths >= self.lengths.stop)))
            few, most = self.lengths.start, self.lengths.stop - 1
            return row, f"a list of {lengths[row]}", f"{few} values" if few == most else f"{few} to {most} values"
        found = self.elements.first_wrong(elements)
        if found is None:
            return _first_repeated(elements.to_numpy(), lengths) if self.distinct else None
        element, value, expected = found
        return int(np.searchsorted(offsets, element, side="right")) - 1, f"{value} in a list", expected

    def first_unlike(self, column: pa.Array, other: pa.Array) -> Wrong | None:
        """Compares lengths with those of the column that `like` names; both are as they should be by themselves."""
        (elements, offsets), (others, expected) = list_parts(column), list_parts(other)
        if not np.array_equal(offsets, expected):
            row = int(np.argmax(np.diff(offsets) != np.diff(expected)))
            return row, f"a list of {np.diff(offsets)[row]}", f"the {np.diff(expected)[row]} of {self.like}"
        if not (isinstance(self.elements, Lists) and is_list(others.type)):
            return None
        found = replace(self.elements, like=self.like).first_unlike(elements, others)
        return found and (int(np.searchsorted(offsets, found[0], side="right")) - 1, f"{found[1]} in a list", found[2])


def _first_repeated(values: np.ndarray, lengths: np.ndarray) -> Wrong | None:
    list_of = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((values, list_of))
    again = (np.diff(values[order]) == 0) & (np.diff(list_of[order]) == 0)
    if not again.any():
        return None
    place = order[np.argmax(again)]
    return int(list_of[place]), f"{values[place]} twice in a list", "every value once"


Column = Values | Lists


def check_alike(columns: Mapping[str, Column], array: Callable[[str], pa.Array]) -> tuple[str, Wrong] | None:
    """Looks at every two columns of which one has lists as long as the other's.

    Args:
        columns: those that were read.
        array: gives a column by its name.

    Returns:
        The first that is not as it should be, and where.
    """
    for name, column in columns.items():
        if isinstance(column, Lists) and column.like in columns:
            found = column.first_unlike(array(name), array(column.like))
            if found is not None:
                return name, found
    return None


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is that of lists, of whatever sort."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


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


_ROWS = (pa.int32(), pa.int64())
_IDS = {"int64": (pa.int64(),), "string": (pa.string(), pa.large_string())}
_FLOATS = {"float32": pa.float32(), "float16": pa.float16()}
_ANY_LENGTH = range(1 << 31)
_WEIGHTS = Values((pa.float32(),), negative=False)
_TIMES = Values((pa.int64(),))
_AGES = Values((pa.int64(),), range(1 << 63))


def event_columns(schema: Schema, split: str) -> dict[str, Column]:
    """Columns of a split's files, by name."""
    item = Values(_ROWS, range(schema.num_items))
    columns: dict[str, Column] = {}
    if split == "train":
        columns[ITEM_ROW] = item
    else:
        columns[TARGETS] = Lists(item, range(1, _ANY_LENGTH.stop), distinct=True)
    columns |= _feature_columns(schema, "query")
    if schema.timestamps:
        columns[TIMESTAMP] = _TIMES
    if schema.timestamps and schema.history:
        columns[HISTORY_AGE] = Lists(_AGES, range(schema.history.length + 1), like=schema.history.name)
    if schema.sample_weights and split == "train":
        columns[WEIGHT] = _WEIGHTS
    if split != "train":
        columns[RAW_USER_ID] = Values(_IDS[schema.user_id_type])
        columns[SEEN] = Lists(Values(_ROWS, range(UNKNOWN_ITEM, schema.num_items)), _ANY_LENGTH)
    return columns


def sequence_columns(schema: Schema) -> dict[str, Column]:
    """Columns of the sequences' files, by name."""
    lengths = range(2, schema.sequence_length + 1)
    columns: dict[str, Column] = {ITEM_ROW: Lists(Values(_ROWS, range(UNKNOWN_ITEM, schema.num_items)), lengths)}
    for feature in schema.side("query"):
        if feature.kind != "history":  # what comes before in the sequence
            for name, column in _columns_of(feature, schema).items():
                columns[name] = _per_event(column, lengths) if feature.per_event else column
    if schema.timestamps:
        columns[TIMESTAMP] = _per_event(_TIMES, lengths)
    if schema.sample_weights:
        columns[WEIGHT] = _per_event(_WEIGHTS, lengths)
    return columns


def _per_event(column: Column, lengths: range) -> Lists:
    """Lists of one value for each event; where that has to be like another column's, so have they."""
    return Lists(column, lengths, like=(isinstance(column, Lists) and column.like) or ITEM_ROW)


def catalog_columns(schema: Schema) -> dict[str, Column]:
    """Columns of the catalogue, by name."""
    columns: dict[str, Column] = {RAW_ITEM_ID: Values(_IDS[schema.item_id_type])}
    columns |= {name: Values((pa.int64(),), range(1 << 62)) for name in (TRAIN_COUNT, VALIDATION_COUNT)}
    return columns | _feature_columns(schema, "candidate")


def vocabulary_columns(feature: Feature) -> dict[str, Column]:
    """Columns of the vocabulary of a feature's table, by name."""
    return {"id": Values((*_IDS["int64"], *_IDS["string"])), "index": Values(_ROWS, range(1, feature.num_embeddings))}


def _feature_columns(schema: Schema, side: Side) -> dict[str, Column]:
    features = schema.side(side)
    return {name: column for feature in features for name, column in _columns_of(feature, schema).items()}


def _columns_of(feature: Feature, schema: Schema) -> dict[str, Column]:
    """The feature's own column, and that of its weights."""
    columns = {feature.name: _feature_column(feature, schema)}
    if feature.weighted:
        columns[feature.weight_column] = Lists(_WEIGHTS, range(feature.length + 1), like=feature.name)
    return columns


def _feature_column(feature: Feature, schema: Schema) -> Column:
    match feature.kind:
        case "numeric":
            return Values((pa.float32(),), nan=True)
        case "vector":
            return Lists(Values((_FLOATS[feature.dtype],)), range(feature.dim, feature.dim + 1))
        case "history":
            return Lists(Values(_ROWS, range(UNKNOWN_ITEM, schema.num_items)), range(feature.length + 1))
        case _:
            rows = Values(_ROWS, range(feature.num_embeddings))
            return Lists(rows, range(feature.length + 1)) if feature.is_list else rows
