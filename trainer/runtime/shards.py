"""Embeddings as Parquet shards: the same files whatever the number of ranks.

    RUN/item_embeddings/part-00000.parquet ...    item_id (int64 or string), embedding (fixed-size list of float32)
    RUN/query_embeddings/part-00000.parquet ...   user_id, row (in the split), target_item_ids (list), embedding;
                                                  of several interests, `interest` and a row for each, one below another
    .../manifest.json                             checkpoint, columns, dimension, shards with their row counts

Shard k holds items, or queries, from k * rows_per_shard on and is written by rank k modulo the number of ranks. Ranks
step through their shards together, since every lookup is an exchange. The folder is written beside its place and
renamed when whole.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

from trainer.config import ExportConfig
from trainer.data.contract import list_parts
from trainer.data.events import HeldOutReader
from trainer.data.lists import lists_of
from trainer.data.row_groups import one_array, open_events
from trainer.data.schema import RAW_USER_ID, TARGETS
from trainer.data.shares import steps_of_all
from trainer.runtime.embedding import embed_items
from trainer.runtime.loading import SavedRun
from trainer.runtime.lockstep import in_lockstep
from trainer.runtime.processes import Processes


class Shards(Protocol):
    """Rows that can be embedded stretch by stretch.

    Attributes:
        num_rows: of all.
        interests: embeddings of each row.
        columns: what says whose embeddings they are.
    """

    num_rows: int
    interests: int
    columns: list[str]

    def identity(self, rows: range) -> dict[str, pa.Array]:
        """`columns`, with a value for each embedding."""
        ...

    def embeddings(self, model: nn.Module, rows: range, steps: int, device: torch.device) -> Iterator[Tensor]:
        """float32 [up to batch_size_per_rank * interests, D] a step; every rank takes equally many steps."""
        ...


class ItemShards:
    """The whole catalogue, in its order."""

    def __init__(self, run: SavedRun, config: ExportConfig) -> None:
        self._run, self._batch_size = run, config.export.batch_size_per_rank
        self.num_rows, self.interests, self.columns = run.schema.num_items, 1, ["item_id"]

    def identity(self, rows: range) -> dict[str, pa.Array]:
        """The user's own ids."""
        return {"item_id": self._run.catalog.raw_ids(np.arange(rows.start, rows.stop))}

    def embeddings(self, model: nn.Module, rows: range, steps: int, device: torch.device) -> Iterator[Tensor]:
        """Through the item tower."""
        return embed_items(model, self._run.assembler, rows, steps, self._batch_size, device)


class QueryShards:
    """The queries of a held-out split, in its order."""

    def __init__(self, run: SavedRun, config: ExportConfig) -> None:
        self._run, self._batch_size = run, config.export.batch_size_per_rank
        self._files = open_events(run.data_dir, run.schema, config.export.split)
        self._identities = open_events(run.data_dir, run.schema, config.export.split, [RAW_USER_ID, TARGETS])
        self.num_rows, self.interests = self._files.num_rows, run.config.model.history.interests
        self.columns = ["user_id", "row", *(["interest"] if self.interests > 1 else []), "target_item_ids"]

    def identity(self, rows: range) -> dict[str, pa.Array]:
        """Of each query in turn, its interests."""
        events = pa.concat_tables(self._identities.batches(rows.start, rows.stop, len(rows)))
        targets, offsets = list_parts(one_array(events, TARGETS))
        query = pa.array(np.repeat(np.arange(len(rows)), self.interests))
        columns = {
            "user_id": one_array(events, RAW_USER_ID).take(query),
            "row": pa.array(np.arange(rows.start, rows.stop)).take(query),
            "interest": pa.array(np.tile(np.arange(self.interests), len(rows))),
            "target_item_ids": lists_of(offsets, self._run.catalog.raw_ids(targets.to_numpy())).take(query),
        }
        return {name: columns[name] for name in self.columns}

    @torch.no_grad()
    def embeddings(self, model: nn.Module, rows: range, steps: int, device: torch.device) -> Iterator[Tensor]:
        """Through the query tower."""
        for batch in HeldOutReader(self._files, self._run.assembler, self._batch_size, rows, steps):
            query_BD, _ = model(in_lockstep(batch.batch.to(device)))
            yield query_BD[: int((batch.row >= 0).sum())].reshape(-1, query_BD.shape[-1])


def write_shards(shards: Shards, model: nn.Module, run: SavedRun, config: ExportConfig, processes: Processes) -> Path:
    """Embeds every row and writes the folder.

    Returns:
        The folder.
    """
    export = config.export
    folder = Path(config.run.dir) / f"{export.side}_embeddings"
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
        embedding_RD = torch.cat([*shards.embeddings(model, rows, steps, processes.device)]).cpu()
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
    model, side = run.config.model, config.export.side
    num_rows = [len(rows) * shards.interests for rows in stretches]
    return {
        "checkpoint": run.checkpoint.name,
        "side": side,
        "split": config.export.split if side == "query" else None,
        "dimension": model.embedding_dim,
        "metric": "inner_product",
        "normalized": model.normalize,
        "interests": shards.interests,
        "columns": [*shards.columns, "embedding"],
        "num_rows": sum(num_rows),
        "shards": [{"file": _file_name(k), "num_rows": number} for k, number in enumerate(num_rows)],
    }
