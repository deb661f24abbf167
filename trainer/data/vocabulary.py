"""Vocabularies: which values have an embedding row, and which row."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.engine import EVENTS, ITEMS, USERS, Connection, first_row, shuffled
from trainer.data.inputs import TIME_VALUES, Input

# What a vocabulary counts: training events of queries and of item ids; for other features of items, items.
_COUNTED = {
    EVENTS: "SELECT {value} AS value FROM events WHERE split = 'train'",
    USERS: "SELECT {value} AS value FROM events JOIN read_users USING (user_id) WHERE split = 'train'",
    ITEMS: "SELECT {value} AS value FROM catalog",
}
_ITEM_IDS = "SELECT item_id AS value FROM events JOIN catalog USING (item_row) WHERE split = 'train'"


def vocabulary_table(feature: str) -> str:
    """Name of the engine's table with the vocabulary of a feature."""
    return f"vocabulary_{feature}"


def build_vocabulary(connection: Connection, feature: Input, seed: int) -> tuple[int, int]:
    """Makes the table vocabulary_<feature>(id, index from 1, count).

    Values are in pseudo-random order: the popular ones are then spread evenly over row-wise shards.

    Returns:
        How many values are in, and how many are out for having fewer than min_count occurrences.
    """
    table = vocabulary_table(feature.name)
    if feature.kind in TIME_VALUES:
        connection.execute(f"""
            CREATE TABLE {table} AS
            SELECT id, CAST(id + 1 AS INTEGER) AS index, count(events.seq) AS count
            FROM range({TIME_VALUES[feature.kind]}) AS hours(id)
            LEFT JOIN events ON {feature.column} = id AND split = 'train'
            GROUP BY id ORDER BY id""")
        return TIME_VALUES[feature.kind], 0
    if feature.kind == "id" and feature.side == "candidate":
        values = _ITEM_IDS
    else:
        value = f"unnest({feature.column})" if feature.multi_valued else feature.column
        values = _COUNTED[feature.relation].format(value=value)
    connection.execute(f"""
        CREATE TABLE {table}_all AS
        SELECT value AS id, count(*) AS count FROM ({values}) WHERE value IS NOT NULL GROUP BY value""")
    connection.execute(f"""
        CREATE TABLE {table} AS
        SELECT id, CAST(row_number() OVER (ORDER BY {shuffled(seed, "id")}) AS INTEGER) AS index, count
        FROM {table}_all WHERE count >= {feature.config.min_count}
        ORDER BY index""")
    (kept,) = first_row(connection, f"SELECT count(*) FROM {table}")
    # An item never seen in training is as unknown as one seen too rarely.
    every_value = "catalog" if values == _ITEM_IDS else f"{table}_all"
    (every,) = first_row(connection, f"SELECT count(*) FROM {every_value}")
    connection.execute(f"DROP TABLE {table}_all")
    return kept, every - kept


def encode_lists(lists: pa.ListArray, vocabulary: pa.Array) -> pa.ListArray:
    """Lists of values as lists of their indices: 1 + position in `vocabulary`, 0 for others; a null list is empty."""
    # flatten() leaves out what null lists may hide, so offsets are counted anew from the lengths.
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    positions = pc.index_in(lists.flatten(), value_set=vocabulary)
    indices = pc.fill_null(positions, -1).to_numpy(zero_copy_only=False).astype(np.int32) + 1
    return int32_lists(np.concatenate([[0], np.cumsum(lengths)]), indices)


def int32_lists(offsets: np.ndarray, values: np.ndarray) -> pa.ListArray:
    """A list<int32> array without nulls from offsets [rows + 1] and values [offsets[-1]]."""
    kind = pa.list_(pa.field("element", pa.int32(), nullable=False))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32()), type=kind)
