"""Parquet shards: the same files whatever the number of ranks, and however often they were stopped.

    RUN/item_embeddings/part-00000.parquet ...    item_id (int64 or string), embedding (fixed-size list)
    RUN/query_embeddings/part-00000.parquet ...   user_id, row (in the split), target_item_ids (list), embedding;
                                                  of several interests, `interest` and a row for each, one below another
    RUN/table_<name>/part-00000.parquet ...       <name> (int64 or string; null in the first row, out of vocabulary),
                                                  embedding; of a hashed table, `bucket` (int64, from 0 for no value)
    .../_manifest.json, .../_SUCCESS              see shard_claim.py and shard_folder.py

Shard k holds items, queries or table rows from k * rows_per_shard on. Those that are missing are dealt out to the ranks
in turn, and each goes through its own without waiting for others. While a thread writes one, the next is computed; a
rank holds no more than these two.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

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
from trainer.runtime.whole_files import place_durably


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
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="shards") as writer:
        before: Future[None] | None = None
        for file, rows in tqdm(mine.items(), desc="export", unit="shard a rank", disable=not progress):
            table = _computed(shards, rows, dtype)
            if before is not None:
                before.result()
            before = writer.submit(_place, folder, file, table)
            del table  # it goes with what writes it
        if before is not None:
            before.result()


def _computed(shards: Shards, rows: range, dtype: str) -> pa.Table:
    stored = StoredRows(len(rows) * shards.interests, shards.dimension, dtype)
    for embedding_RD in shards.embeddings(rows):
        unfit = stored.append(embedding_RD.cpu().numpy())
        if unfit is not None:
            whose = named(shards, rows.start + unfit // shards.interests)
            expected = f"finite embeddings that it can hold; that of {whose} is not"
            raise UserError("export.dtype", dtype, expected, "set export.dtype=float32, or name another checkpoint")
    return stored.table(shards.identity(rows))


def _place(folder: ShardFolder, file: str, table: pa.Table) -> None:
    """Writes a shard beside its place, puts it there and notes it."""
    path, partial = folder.path / file, folder.path / f"{file}.partial"
    try:
        pq.write_table(table, partial, **parquet_settings(table))
        place_durably(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    folder.note(file)
