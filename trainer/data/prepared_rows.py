"""The rows of the prepared files, batch by batch: one query of the engine each, then columns encoded with Arrow."""

from collections.abc import Iterator

import pyarrow as pa

from trainer.config import PreparedConfig
from trainer.data.audiences import Audiences
from trainer.data.encoding import ColumnEncoder
from trainer.data.engine import SAMPLE_WEIGHT, Connection, columns, shuffled, stream
from trainer.data.histories import Histories
from trainer.data.prepared_files import regroup
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
)

CATALOG_BATCH = 1 << 16


def catalog_batches(
    connection: Connection, encoders: list[ColumnEncoder], audiences: Audiences | None
) -> Iterator[pa.RecordBatch]:
    """Rows of catalog.arrow, in order of item_row."""
    query = f"""
        SELECT catalog.item_id, coalesce(train_count, 0) AS train_count,
               coalesce(validation_count, 0) AS validation_count, {_selected(encoders)}
        FROM catalog
        LEFT JOIN (SELECT item_row, count(*) FILTER (split = 'train') AS train_count,
                          count(*) FILTER (split = 'validation') AS validation_count
                   FROM events GROUP BY item_row) USING (item_row)
        {" ".join(encoder.join for encoder in encoders)}
        ORDER BY item_row"""
    first_item = 0
    for batch in regroup(stream(connection, query, CATALOG_BATCH), CATALOG_BATCH):
        stored = {RAW_ITEM_ID: batch["item_id"]}
        stored |= {name: batch[name].cast(pa.int64()) for name in (TRAIN_COUNT, VALIDATION_COUNT)}
        stored |= _encoded(batch, encoders)
        for encoder in encoders:
            if encoder.input.kind == "audience" and audiences is not None:
                stored[encoder.input.name] = audiences.of(first_item, len(batch))
        first_item += len(batch)
        yield record_batch(stored)


def event_batches(
    connection: Connection, split: str, encoders: list[ColumnEncoder], histories: Histories, config: PreparedConfig
) -> Iterator[pa.RecordBatch]:
    """Rows of a split's files in batches of a row group.

    Training rows are in pseudo-random order, so that every row group is a random sample; the others in order of time. A
    held-out row's targets are the events from its own on, as many as `num_targets` says.
    """
    event_columns = columns(connection, "events")
    has_time, has_weight = TIMESTAMP in event_columns, SAMPLE_WEIGHT in event_columns and split == "train"
    order = shuffled(config.seed, "seq") if split == "train" else "timestamp, seq" if has_time else "seq"
    query = f"""
        SELECT item_row, start + position AS place, position, num_targets, {"timestamp," if has_time else ""}
               {f"{SAMPLE_WEIGHT}," if has_weight else ""}
               {_selected(encoders)} {"" if split == "train" else "events.user_id"}
        FROM events {joined(connection, encoders)}
        WHERE split = '{split}' {"" if split == "train" else "AND num_targets > 0"}
        ORDER BY {order}"""
    reader = stream(connection, query, config.row_group_size)
    for batch in regroup(reader, config.row_group_size):
        place, position = batch["place"].to_numpy(), batch["position"].to_numpy()
        if split == "train":
            stored = {ITEM_ROW: batch["item_row"]}
        else:
            stored = {TARGETS: histories.stretches(place, batch["num_targets"].to_numpy())}
        stored |= _encoded(batch, encoders)
        for encoder in encoders:
            if encoder.input.kind == "history":
                length = encoder.input.config.length
                stored[encoder.input.name] = histories.before(place, position, length)
                if has_time:
                    stored[HISTORY_AGE] = histories.ages(place, position, length)
        if has_time:
            stored[TIMESTAMP] = batch[TIMESTAMP].cast(pa.int64())
        if has_weight:
            stored[WEIGHT] = batch[SAMPLE_WEIGHT].cast(pa.float32())
        if split != "train":
            stored |= {RAW_USER_ID: batch["user_id"], SEEN: histories.before(place, position)}
        yield record_batch(stored)


def _selected(encoders: list[ColumnEncoder]) -> str:
    return "".join(f"{sql} AS {name}, " for encoder in encoders for name, sql in encoder.selected.items())


def joined(connection: Connection, encoders: list[ColumnEncoder]) -> str:
    """SQL that joins the tables which the values of query features need to the events."""
    users = "LEFT JOIN read_users USING (user_id)" if columns(connection, "read_users") else ""
    return " ".join([users, *(encoder.join for encoder in encoders)])


def _encoded(batch: pa.RecordBatch, encoders: list[ColumnEncoder]) -> dict[str, pa.Array]:
    return {name: column for encoder in encoders for name, column in encoder.encode(batch).items()}


def record_batch(stored: dict[str, pa.Array]) -> pa.RecordBatch:
    """The columns as a batch whose schema says that none has nulls."""
    fields = [pa.field(name, column.type, nullable=False) for name, column in stored.items()]
    return pa.record_batch(list(stored.values()), schema=pa.schema(fields))
