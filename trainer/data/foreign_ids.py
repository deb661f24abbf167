"""The ids of a folder that another engine wrote: each once, in order of its row, and the same everywhere."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.engine import Connection, columns, first_row, open_engine, reading
from trainer.data.parts import part_files, scan_parts
from trainer.data.schema import RAW_ITEM_ID, RAW_USER_ID, Schema
from trainer.errors import UserError

_REMEDY = "write it after docs/prepared_folder.md"
_TYPES = {"int64": "BIGINT", "string": "VARCHAR"}


def check_ids(folder: Path, schema: Schema, train_count: NDArray[np.int64] | None, memory_limit: str) -> None:
    """Checks vocabularies and ids, in DuckDB, whose memory is bounded.

    Args:
        folder: that the engine wrote.
        schema: as far as it is known.
        train_count: [items] training events of each, where the vocabulary's counts are those.
        memory_limit: of DuckDB.

    Raises:
        UserError: a vocabulary is missing or has other columns, an index is not that of its row, an id comes twice or
            is null, the catalogue's item ids have other rows or counts than in the vocabulary, or held-out users
            other rows.
    """
    engine = folder / "engine.partial"
    shutil.rmtree(engine, ignore_errors=True)
    engine.mkdir()
    try:
        with open_engine(engine, memory_limit) as connection, reading("data.dir", folder):
            tables = {feature.table: feature for feature in schema.features if feature.is_sparse and not feature.hashed}
            for table, feature in tables.items():
                _check_vocabulary(connection, folder / "vocabulary" / f"{table}.parquet", feature.num_embeddings)
            _check_items(connection, folder, schema, train_count)
            _check_users(connection, folder, schema)
    finally:
        shutil.rmtree(engine)


def _check_vocabulary(connection: Connection, path: Path, num_embeddings: int) -> None:
    if not path.exists() or not part_files(path):
        raise UserError(str(path), "missing", "a vocabulary with id, index and count", _REMEDY)
    with reading(str(path), "damaged"):
        connection.execute(f"CREATE OR REPLACE TEMP VIEW vocabulary AS SELECT * FROM {scan_parts(path)}")
        types = columns(connection, "vocabulary")
        integers = ("INTEGER", "BIGINT")
        if types.get("id") not in _TYPES.values() or {types.get("index"), types.get("count")} - set(integers):
            found = ", ".join(f"{name} {kind}" for name, kind in types.items())
            raise UserError(str(path), found, "id (int64 or string), index (int32) and count (int64)", _REMEDY)
        (rows,) = first_row(connection, "SELECT count(*) FROM vocabulary")
        if rows != num_embeddings - 1:
            expected = f"{num_embeddings - 1} ids for num_embeddings={num_embeddings}, as row 0 is for the unknown"
            raise UserError(str(path), f"{rows} ids", expected, _REMEDY)
        numbered = "SELECT id, index, row_number() OVER () AS row FROM vocabulary"
        wrong = connection.execute(f"SELECT * FROM ({numbered}) WHERE index IS DISTINCT FROM row LIMIT 1").fetchall()
        if wrong:
            id_, index, row = wrong[0]
            raise UserError(f"{path} row {row - 1}", f"id {id_} with index {index}", f"index {row}", _REMEDY)
        _check_once(connection, str(path), "vocabulary", "id")


def _check_once(connection: Connection, where: str, relation: str, column: str) -> None:
    """Whether no id is null or comes twice."""
    query = f"SELECT {column}, count(*) FROM {relation} GROUP BY {column} HAVING count(*) > 1 OR {column} IS NULL"
    found = connection.execute(f"{query} ORDER BY {column} LIMIT 1").fetchall()
    if found:
        value, times = found[0]
        raise UserError(f"{where} column {column}", f"{value} in {times} rows", "every id once, and none null", _REMEDY)


def _check_items(connection: Connection, folder: Path, schema: Schema, train_count: NDArray[np.int64] | None) -> None:
    connection.execute(f"CREATE TEMP VIEW items AS SELECT * FROM {scan_parts(folder / 'catalog')}")
    _check_once(connection, str(folder / "catalog"), "items", RAW_ITEM_ID)
    item_id = schema.item_id
    if item_id.hashed:
        return
    path = folder / "vocabulary" / f"{item_id.table}.parquet"
    connection.execute(f"CREATE OR REPLACE TEMP VIEW vocabulary AS SELECT * FROM {scan_parts(path)}")
    if columns(connection, "vocabulary")["id"] != _TYPES[schema.item_id_type]:
        found = columns(connection, "vocabulary")["id"]
        raise UserError(f"{path} column id", found, f"{schema.item_id_type}, as item_id_type has it", _REMEDY)
    other = connection.execute(f"""
        SELECT {RAW_ITEM_ID}, items.{item_id.name}, coalesce(vocabulary.index, 0)
        FROM items LEFT JOIN vocabulary ON vocabulary.id = {RAW_ITEM_ID}
        WHERE items.{item_id.name} <> coalesce(vocabulary.index, 0) ORDER BY ALL LIMIT 1""").fetchall()
    if other:
        raw, row, expected = other[0]
        raise UserError(f"{folder / 'catalog'} column {item_id.name}", f"{row} for {RAW_ITEM_ID} {raw}",
                        f"{expected}, its index in the vocabulary (0 where it has none)", _REMEDY)  # fmt: skip
    if train_count is not None:
        _check_counts(connection, schema, path, train_count)


def _check_counts(connection: Connection, schema: Schema, vocabulary: Path, train_count: NDArray[np.int64]) -> None:
    """Events name items by their place in the catalogue: parts in another order would give them to other items."""
    counted = pa.table({"place": np.arange(len(train_count)), "times": train_count})
    connection.register("counted", counted)
    name = schema.item_id.name
    found = connection.execute(f"""
        SELECT id, vocabulary.count, times
        FROM (SELECT {name}, row_number() OVER () - 1 AS place FROM items)
        JOIN counted USING (place) JOIN vocabulary ON index = {name}
        WHERE times IS DISTINCT FROM vocabulary.count ORDER BY place LIMIT 1""").fetchall()
    connection.unregister("counted")
    if found:
        id_, stated, times = found[0]
        raise UserError(f"{vocabulary} column count", f"{stated} for id {id_}",
                        f"the {times} training events that name its row of the catalogue", _REMEDY)  # fmt: skip


def _check_users(connection: Connection, folder: Path, schema: Schema) -> None:
    """Whether the user ids of held-out rows have the rows of the feature user_id."""
    path = folder / "vocabulary" / "user_id.parquet"
    feature = next((one for one in schema.side("query") if (one.name, one.kind) == ("user_id", "id")), None)
    if feature is None or feature.hashed or feature.table != "user_id":
        return
    for split in ("validation", "test") if schema.num_events["validation"] else ("test",):
        wrong = connection.execute(f"""
            SELECT {RAW_USER_ID}, user_id, coalesce(vocabulary.index, 0)
            FROM {scan_parts(folder / "events" / split)} AS rows
            LEFT JOIN {scan_parts(path)} AS vocabulary ON vocabulary.id::VARCHAR = {RAW_USER_ID}::VARCHAR
            WHERE user_id <> coalesce(vocabulary.index, 0) ORDER BY ALL LIMIT 1""").fetchall()
        if wrong:
            raw, row, expected = wrong[0]
            raise UserError(f"{folder / 'events' / split} column user_id", f"{row} for {RAW_USER_ID} {raw}",
                            f"{expected}, its index in the vocabulary (0 where it has none)", _REMEDY)  # fmt: skip
