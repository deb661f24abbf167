"""The ids of a folder that another engine wrote: each once, in order of its row, and the same everywhere."""

import shutil
from pathlib import Path

import duckdb

from trainer.data.engine import Connection, columns, first_row, open_engine
from trainer.data.schema import RAW_ITEM_ID, Schema
from trainer.data.vocabulary_files import scan_vocabulary, vocabulary_files
from trainer.errors import UserError

_REMEDY = "write it after docs/prepared_folder.md"
_TYPES = {"int64": "BIGINT", "string": "VARCHAR"}


def check_ids(folder: Path, schema: Schema, memory_limit: str) -> None:
    """Checks vocabularies and item ids, in DuckDB, whose memory is bounded.

    Raises:
        UserError: a vocabulary is missing or has other columns, an index is not that of its row, an id comes twice or
            is null, or the catalogue's item ids have other rows than the vocabulary gives them.
    """
    engine = folder / "engine.partial"
    shutil.rmtree(engine, ignore_errors=True)
    engine.mkdir()
    try:
        with open_engine(engine, memory_limit) as connection:
            tables = {feature.table: feature for feature in schema.features if feature.is_sparse and not feature.hashed}
            for table, feature in tables.items():
                _check_vocabulary(connection, folder / "vocabulary" / f"{table}.parquet", feature.num_embeddings)
            _check_items(connection, folder, schema)
    finally:
        shutil.rmtree(engine)


def _check_vocabulary(connection: Connection, path: Path, num_embeddings: int) -> None:
    if not path.exists() or not vocabulary_files(path):
        raise UserError(str(path), "missing", "a vocabulary with id, index and count", _REMEDY)
    try:
        connection.execute(f"CREATE OR REPLACE TEMP VIEW vocabulary AS SELECT * FROM {scan_vocabulary(path)}")
        types = columns(connection, "vocabulary")
        if types.get("id") not in _TYPES.values() or types.get("index") not in ("INTEGER", "BIGINT"):
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
    except duckdb.Error as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(str(path), "damaged", f"readable Parquet ({first_line})", _REMEDY) from None


def _check_once(connection: Connection, where: str, relation: str, column: str) -> None:
    """Whether no id is null or comes twice."""
    query = f"SELECT {column}, count(*) FROM {relation} GROUP BY {column} HAVING count(*) > 1 OR {column} IS NULL"
    found = connection.execute(f"{query} ORDER BY {column} LIMIT 1").fetchall()
    if found:
        value, times = found[0]
        raise UserError(f"{where} column {column}", f"{value} in {times} rows", "every id once, and none null", _REMEDY)


def _check_items(connection: Connection, folder: Path, schema: Schema) -> None:
    connection.execute(f"CREATE TEMP VIEW items AS SELECT * FROM {scan_vocabulary(folder / 'catalog')}")
    _check_once(connection, str(folder / "catalog"), "items", RAW_ITEM_ID)
    item_id = schema.item_id
    if item_id.hashed:
        return
    path = folder / "vocabulary" / f"{item_id.table}.parquet"
    connection.execute(f"CREATE OR REPLACE TEMP VIEW vocabulary AS SELECT * FROM {scan_vocabulary(path)}")
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
