"""Parquet shards: the same files whatever the number of ranks, and however often they were stopped.

    RUN/item_embeddings/part-00000.parquet ...    item_id (int64 or string), embedding (fixed-size list)
    RUN/query_embeddings/part-00000.parquet ...   user_id, row (in the split), target_item_ids (list), embedding;
                                                  of several interests, `interest` and a row for each, one below another
    RUN/table_<name>/part-00000.parquet ...       <name> (int64 or string; null in the first row, out of vocabulary),
                                                  embedding; of a hashed table, `bucket` (int64, from 0 for no value)
    .../_manifest.json, .../_SUCCESS              see shard_claim.py and shard_folder.py

Shard k holds items, queries or table rows from k * rows_per_shard on. Those that are missing are dealt out to the ranks
in turn, and each goes through its own without waiting for others. While a thread writes one row group, the next is
computed; a rank holds no more than these two, however large its shards are.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from trainer.config import ExportConfig
from trainer.data.vector_types import StoredRows, parquet_settings
from trainer.errors import UserError
from trainer.runtime.loading import SavedRun
from trainer.runtime.processes import Processes
from trainer.runtime.shard_claim import claim, stretches
from trainer.runtime.shard_folder import ShardFolder
from trainer.runtime.shards import Shards, named
from trainer.runtime.whole_files import SummedFile, place_durably, removed_unless_whole

ROW_GROUP = 32_768
"""Rows; of 64 floats 8 MB, which are still in the processor's cache when they are written."""


@dataclass(frozen=True)
class Written:
    """What became of an export.

    Attributes:
        folder: with the shards.
        files: of them, those that this export wrote.
        num_files: of all.
    """

    folder: Path
    files: list[str]
    num_files: int

    def __str__(self) -> str:
        if not self.files:
            return f"are in {self.folder} already"
        kept = self.num_files - len(self.files)
        return f"written to {self.folder}" + (f"; {kept} of {self.num_files} shards were there" if kept else "")


def write_shards(shards: Shards, run: SavedRun, config: ExportConfig, processes: Processes) -> Written:
    """Writes the embeddings of every row, as far as they are not there from an earlier start, and the manifest.

    Args:
        shards: of the rows; they load what they need if any is missing.
        run: whose they are.
        config: of the export.
        processes: this process's place.

    Raises:
        UserError: an embedding is not finite, or too large for its type.
        OSError: there is no room, or no permission to write; a later export goes on from there.
    """
    export, path = config.export, Path(config.run.dir) / shards.folder
    rows_of = stretches(shards, export.rows_per_shard)
    num_rows = {file: len(rows) * shards.interests for file, rows in rows_of.items()}
    folder = ShardFolder(path, claim(shards, run, export), num_rows)
    missing = folder.missing()
    if missing:
        shards.load(processes)
        _write({file: rows_of[file] for file in missing[processes.rank :: processes.world_size]},
               folder, shards, export.dtype, progress=processes.is_first)  # fmt: skip
    folder.complete()
    return Written(path, missing, len(rows_of))


def _write(mine: dict[str, range], folder: ShardFolder, shards: Shards, dtype: str, progress: bool) -> None:
    with _behind() as behind:
        for file, rows in tqdm(mine.items(), desc="export", unit="shard a rank", disable=not progress):
            shard = _Shard(folder, file)
            for group in _row_groups(rows, shards.interests):
                behind(shard.append, _computed(shards, group, dtype))
            behind(shard.place)


@contextmanager
def _behind() -> Iterator[Callable[..., None]]:
    """Calls in a thread, in turn; each begins once the one before is done, and raises here what that raised."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="shards") as thread:
        before: list[Future[None]] = []

        def call(function: Callable[..., None], *arguments: Any) -> None:
            if before:
                before.pop().result()
            before.append(thread.submit(function, *arguments))

        yield call
        if before:
            before.pop().result()


def _row_groups(rows: range, interests: int) -> Iterator[range]:
    """Stretches of a shard's rows; of a shard without any, one that is empty too."""
    size = max(1, ROW_GROUP // interests)
    return (rows[start : start + size] for start in range(0, max(1, len(rows)), size))


def _computed(shards: Shards, rows: range, dtype: str) -> pa.Table:
    stored = StoredRows(len(rows) * shards.interests, shards.dimension, dtype)
    for embedding_RD in shards.embeddings(rows):
        unfit = stored.append(embedding_RD.cpu().numpy())
        if unfit is not None:
            whose = named(shards, rows.start + unfit // shards.interests)
            expected = f"finite embeddings that it can hold; that of {whose} is not"
            raise UserError("export.dtype", dtype, expected, "set export.dtype=float32, or name another checkpoint")
    return stored.table(shards.identity(rows))


class _Shard:
    """A file that is written beside its place, row group by row group, then put there and noted."""

    def __init__(self, folder: ShardFolder, file: str) -> None:
        self._folder, self._file = folder, file
        self._path, self._partial = folder.path / file, folder.path / f"{file}.partial"
        self._stream: SummedFile | None = None
        self._writer: pq.ParquetWriter | None = None

    def append(self, table: pa.Table) -> None:
        with removed_unless_whole(self._partial, self._path):
            if self._writer is None:
                self._stream = SummedFile(self._partial)
                self._writer = pq.ParquetWriter(self._stream, table.schema, **parquet_settings(table))
            self._writer.write_table(table)

    def place(self) -> None:
        assert self._writer is not None and self._stream is not None, "something was appended"
        with removed_unless_whole(self._partial, self._path):
            self._writer.close()
            self._stream.close()
            place_durably(self._partial, self._path)
        self._folder.note(self._file, self._stream.checksum())
