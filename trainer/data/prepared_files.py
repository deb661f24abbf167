"""Writing the prepared folder's files: row groups of exactly the size asked for, parts of at most a million rows."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.engine import Connection
from trainer.data.schema import RAW_ITEM_ID
from trainer.data.vocabulary import vocabulary_table

PART_ROWS = 1 << 20


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
                                          use_dictionary=False)  # fmt: skip
                parts, in_part = parts + 1, 0
            writer.write_batch(batch, row_group_size=len(batch))
            total, in_part = total + len(batch), in_part + len(batch)
    finally:
        if writer is not None:
            writer.close()
    return total


def write_catalog(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes uncompressed Arrow IPC with one record batch, so that every column is one piece of memory once mapped.

    Returns:
        The rows written.
    """
    (whole,) = pa.Table.from_batches(list(batches)).combine_chunks().to_batches()
    with pa.ipc.new_file(path, whole.schema) as writer:
        writer.write_batch(whole)
    return len(whole)


def fingerprint(folder: Path) -> str:
    """SHA-256 over the ids of the catalogue and of every vocabulary, in order of their rows."""
    digest = hashlib.sha256()
    with pa.memory_map(str(folder / "catalog.arrow")) as file:
        _update(digest, RAW_ITEM_ID, pa.ipc.open_file(file).read_all().column(RAW_ITEM_ID))
    for path in sorted((folder / "vocabulary").glob("*.parquet")):
        _update(digest, path.stem, pq.read_table(path, columns=["id"]).column("id"))
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", name: str, ids: pa.ChunkedArray) -> None:
    digest.update(f"{name} {ids.type} {len(ids)}\n".encode())
    for buffer in pa.concat_arrays(ids.chunks).buffers() if ids.num_chunks else []:
        if buffer is not None:
            digest.update(buffer)


def write_vocabularies(connection: Connection, folder: Path, features: list[str]) -> None:
    """Writes <feature>.parquet with id, index and count, by index."""
    folder.mkdir()
    for feature in features:
        query = f"SELECT id, index, count FROM {vocabulary_table(feature)} ORDER BY index"
        # One chunk: the engine's own cuts depend on its threads, and would show in the file's pages.
        table = connection.sql(query).to_arrow_table().combine_chunks()
        kind = table.schema.field("id").type
        types = {"id": kind, "index": pa.int32(), "count": pa.int64()}
        fields = [pa.field(name, kind, nullable=False) for name, kind in types.items()]
        pq.write_table(table.cast(pa.schema(fields)), folder / f"{feature}.parquet")
