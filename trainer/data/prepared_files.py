"""Writing the prepared folder's files: row groups of exactly the size asked for, parts of at most a million rows."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.contract import string_parts
from trainer.data.engine import Connection, stream
from trainer.data.parts import part_files
from trainer.data.schema import RAW_ITEM_ID
from trainer.data.vocabulary import vocabulary_table

PART_ROWS = 1 << 20
VOCABULARY_ROW_GROUP = 1 << 17
HASHED_ROWS = 1 << 16


def regroup(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly `rows`, the last one perhaps shorter."""
    pending: list[pa.RecordBatch] = []
    held = 0
    for batch in batches:
        pending.append(batch)
        held += len(batch)
        if held < rows:
            continue
        whole = pa.concat_batches(pending)
        for start in range(0, held - held % rows, rows):
            yield whole.slice(start, rows)
        pending, held = [whole.slice(held - held % rows)], held % rows
    if held:
        yield pa.concat_batches(pending)


def write_parts(folder: Path, batches: Iterable[pa.RecordBatch], part_rows: int = PART_ROWS) -> int:
    """Writes each batch as a row group of part-00000.parquet, part-00001.parquet, ...

    Returns:
        The rows written.
    """
    folder.mkdir(parents=True)
    writer: pq.ParquetWriter | None = None
    parts = total = in_part = 0
    try:
        for batch in batches:
            if writer is not None and in_part + len(batch) > part_rows:
                writer.close()
                writer = None
            if writer is None:
                # A dictionary costs time and helps nobody who reads every row; statistics let row numbers be checked
                # against their tables without reading them.
                path = folder / f"part-{parts:05d}.parquet"
                writer = pq.ParquetWriter(path, batch.schema, compression="zstd", compression_level=1,
                                          use_dictionary=False, write_page_checksum=True)  # fmt: skip
                parts, in_part = parts + 1, 0
            writer.write_batch(batch, row_group_size=len(batch))
            total, in_part = total + len(batch), in_part + len(batch)
    finally:
        if writer is not None:
            writer.close()
    return total


def write_vocabularies(connection: Connection, folder: Path, features: list[str]) -> None:
    """Writes <feature>.parquet with id, index and count, by index."""
    folder.mkdir()
    for feature in features:
        query = f"SELECT id, index, count FROM {vocabulary_table(feature)} ORDER BY index"
        reader = stream(connection, query, VOCABULARY_ROW_GROUP)
        types = {"id": reader.schema.field("id").type, "index": pa.int32(), "count": pa.int64()}
        schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])
        with pq.ParquetWriter(folder / f"{feature}.parquet", schema, compression="zstd") as writer:
            # The engine's own cuts depend on its threads, and would show in the file's pages.
            for batch in regroup(reader, VOCABULARY_ROW_GROUP):
                writer.write_batch(batch.cast(schema))


def fingerprint(folder: Path) -> str:
    """SHA-256 over the ids of the catalogue and of every vocabulary, in order of their rows."""
    digest = hashlib.sha256()
    with pa.memory_map(str(folder / "catalog.arrow")) as file:
        (catalog,) = pa.ipc.open_file(file).read_all().to_batches()
        ids = catalog.column(RAW_ITEM_ID)
        _update(digest, RAW_ITEM_ID, (ids.slice(start, HASHED_ROWS) for start in range(0, len(ids), HASHED_ROWS)))
    for path in sorted((folder / "vocabulary").glob("*.parquet")):
        files = map(pq.ParquetFile, part_files(path))
        batches = (batch for file in files for batch in file.iter_batches(HASHED_ROWS, columns=["id"]))
        _update(digest, path.stem, (batch.column(0) for batch in batches))
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", name: str, ids: Iterable[pa.Array]) -> None:
    """The same digest however the ids are cut: of their lengths and of their bytes, each on its own."""
    lengths, contents = hashlib.sha256(), hashlib.sha256()
    kind, count = "", 0
    for some in ids:
        kind, count = "int64" if pa.types.is_int64(some.type) else "string", count + len(some)
        if kind == "int64":
            contents.update(some.to_numpy().data)
        else:
            values, offsets = string_parts(some)
            lengths.update(np.diff(offsets).data)
            contents.update(values.data)
    digest.update(f"{name} {kind} {count} {lengths.hexdigest()} {contents.hexdigest()}\n".encode())
