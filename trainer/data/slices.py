"""Ways to divide a held-out split, whose parts may fare differently."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.contract import list_parts
from trainer.data.row_groups import one_array, open_events
from trainer.data.schema import RAW_USER_ID, SEEN, TARGETS, Feature, Schema
from trainer.data.table_ids import TableIds
from trainer.errors import UserError

# Q queries, T targets of them, N items

HISTORY_LENGTHS = {"0": 0, "1-5": 5, "6-20": 20}
"""Most events of each bucket; those with more are in the last."""
DECILES = 10


@dataclass(frozen=True)
class Slicing:
    """One way to divide.

    Attributes:
        labels: names of the parts.
        label_T: int64, which of them each target of the split is in.
    """

    labels: Sequence[str]
    label_T: np.ndarray


@dataclass(frozen=True)
class HeldOutLabels:
    """What tells the queries and targets of a split apart.

    Attributes:
        user_Q: int64 from 0, the user of each query.
        slicings: by name; ours are of two words, as no column's is.
    """

    user_Q: np.ndarray
    slicings: dict[str, Slicing]


def check_slices(schema: Schema, columns: Sequence[str]) -> None:
    """Refuses columns by which queries cannot be divided.

    Raises:
        UserError: one is no categorical feature of the query with one value a row, or stands there twice.
    """
    known = [f.name for f in schema.side("query") if f.kind == "categorical" and not f.multi_valued]
    for column in columns:
        if column not in known:
            expected = f"categorical features of the query, one value a row: {', '.join(known) or 'there are none'}"
            raise UserError("evaluate.slices", column, expected, "leave it out, or prepare the data with it")
        if list(columns).count(column) > 1:
            raise UserError("evaluate.slices", list(columns), "every name once", f"name {column} once")


def read_labels(
    data_dir: str | Path, schema: Schema, split: str, columns: Sequence[str], percentile_N: np.ndarray
) -> HeldOutLabels:
    """Reads the columns by which a split is divided.

    `user id` is known where the vocabulary of users has it, else cold. `history length` is the number of events before.
    `popularity decile` is the target's, 1 the least popular tenth of the items and 10 the most popular.

    Args:
        data_dir: prepared folder.
        schema: of that folder.
        split: validation or test.
        columns: for further slicings; see `check_slices`.
        percentile_N: float64, how popular each item is, from 0 to 1.

    Raises:
        UserError: they cannot be read.
    """
    by_name = {feature.name: feature for feature in schema.side("query")}
    user = next((f.name for f in by_name.values() if f.kind == "id" and not f.per_event and not f.hashed), None)
    named = [*([user] if user else []), *columns]
    files = open_events(data_dir, schema, split, [RAW_USER_ID, TARGETS, SEEN, *named])
    groups = [_without_lists(files.read(group)) for group in range(len(files.sizes))]
    read = {name: pa.chunked_array([group[name] for group in groups]) for name in groups[0]}

    of_query: dict[str, tuple[Sequence[str], np.ndarray]] = {}
    if user:
        of_query["user id"] = (("cold", "known"), (read[user].to_numpy() > 0).astype(np.int64))
    bucket_Q = np.searchsorted([*HISTORY_LENGTHS.values()], read[SEEN].to_numpy(), side="left")
    of_query["history length"] = ((*HISTORY_LENGTHS, f">{max(HISTORY_LENGTHS.values())}"), bucket_Q)
    for column in columns:
        of_query[column] = _by_value(data_dir, schema, by_name[column], read[column].to_numpy())
    targets_Q = read[_NUM_TARGETS].to_numpy()
    slicings = {name: Slicing(labels, np.repeat(label_Q, targets_Q)) for name, (labels, label_Q) in of_query.items()}
    decile_T = (percentile_N[read[TARGETS].to_numpy()] * DECILES).astype(np.int64).clip(max=DECILES - 1)
    slicings["popularity decile"] = Slicing([str(decile) for decile in range(1, DECILES + 1)], decile_T)
    return HeldOutLabels(_codes(read[RAW_USER_ID]), slicings)


_NUM_TARGETS = "number of targets"


def _without_lists(table: pa.Table) -> dict[str, pa.Array]:
    """Columns of a row group: of what users had seen how much, and targets end to end, with how many they are."""
    columns = {name: one_array(table, name) for name in table.column_names}
    columns |= {_NUM_TARGETS: pc.list_value_length(columns[TARGETS]), SEEN: pc.list_value_length(columns[SEEN])}
    return columns | {TARGETS: list_parts(columns[TARGETS])[0]}


def _codes(values: pa.ChunkedArray) -> np.ndarray:
    """Numbers from 0, equal for equal values."""
    return np.asarray(pc.index_in(values, pc.unique(values)).to_numpy()).astype(np.int64)


def _by_value(
    data_dir: str | Path, schema: Schema, feature: Feature, row_Q: np.ndarray
) -> tuple[Sequence[str], np.ndarray]:
    """Labels by the user's own values where a vocabulary tells them, else by row of the table."""
    present, label_Q = np.unique(row_Q, return_inverse=True)
    if feature.hashed or not (Path(data_dir) / "vocabulary" / f"{feature.table}.parquet").exists():
        return [f"row {row}" for row in present], label_Q
    values = TableIds(data_dir, schema, feature.table).of(range(int(present[-1]) + 1)).take(pa.array(present))
    return ["(unknown)" if value is None else str(value) for value in values.to_pylist()], label_Q
