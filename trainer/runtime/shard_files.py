"""Parquet shards: the same files whatever the number of ranks.

    RUN/item_embeddings/part-00000.parquet ...    item_id (int64 or string), embedding (fixed-size list of float32)
    RUN/query_embeddings/part-00000.parquet ...   user_id, row (in the split), target_item_ids (list), embedding;
                                                  of several interests, `interest` and a row for each, one below another
    RUN/table_<name>/part-00000.parquet ...       <name> (int64 or string; null in the first row, out of vocabulary),
                                                  embedding; of a hashed table, `bucket` (int64, from 0 for no value)
    .../manifest.json                             checkpoint, columns, dimension, shards with their row counts

Shard k holds items, queries or table rows from k * rows_per_shard on and is written by rank k modulo the number of
ranks, which holds no more than that at a time. Ranks step through their shards together, since every lookup is an
exchange. The folder is written beside its place and renamed when whole.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm.auto import tqdm

from trainer.config import ExportConfig
from trainer.data.shares import steps_of_all
from trainer.runtime.loading import SavedRun
from trainer.runtime.processes import Processes
from trainer.runtime.shards import Shards


def write_shards(shards: Shards, run: SavedRun, config: ExportConfig, processes: Processes) -> Path:
    """Writes the embeddings of every row, and the folder's manifest.

    Args:
        shards: with what they need loaded.
        run: whose they are.
        config: of the export.
        processes: this process's place.

    Returns:
        The folder.
    """
    export = config.export
    folder = Path(config.run.dir) / shards.folder
    partial = folder.with_name(folder.name + ".partial")
    if processes.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    dist.barrier()
    stretches = [
        range(start, min(start + export.rows_per_shard, shards.num_rows))
        for start in range(0, shards.num_rows, export.rows_per_shard)
    ]
    steps = steps_of_all(len(stretches[0]), export.batch_size_per_rank)
    turns = range(0, len(stretches), processes.world_size)
    for turn in tqdm(turns, desc="export", unit="shard a rank", disable=not processes.is_first):
        shard = turn + processes.rank
        rows = stretches[shard] if shard < len(stretches) else range(0)
        embedding_RD = torch.cat([*shards.embeddings(rows, steps)]).cpu()
        if rows:
            _write_shard(partial / _file_name(shard), shards.identity(rows), embedding_RD)
    dist.barrier()
    if processes.is_first:
        (partial / "manifest.json").write_text(json.dumps(_manifest(shards, stretches, run, config), indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    dist.barrier()
    return folder


def _file_name(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def _write_shard(path: Path, identity: dict[str, pa.Array], embedding_RD: Tensor) -> None:
    values = pa.array(embedding_RD.reshape(-1).numpy())
    table = pa.table({**identity, "embedding": pa.FixedSizeListArray.from_arrays(values, embedding_RD.shape[1])})
    # neither dictionary nor compression finds anything in embeddings
    pq.write_table(table, path, use_dictionary=False, compression="none", write_statistics=list(identity))


def _manifest(shards: Shards, stretches: list[range], run: SavedRun, config: ExportConfig) -> dict[str, Any]:
    num_rows = [len(rows) * shards.interests for rows in stretches]
    return {
        "checkpoint": run.checkpoint.name,
        "side": config.export.side,
        **shards.facts,
        "columns": [*shards.columns, "embedding"],
        "num_rows": sum(num_rows),
        "shards": [{"file": _file_name(k), "num_rows": number} for k, number in enumerate(num_rows)],
    }
