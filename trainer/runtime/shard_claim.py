"""What an export says of itself before its first shard is written: of which model and data, of what, in which form.

Two exports with the same claim have the same shards, whoever writes them, so what one has left the other goes on with.
"""

from typing import Any

from trainer.config import EmbeddingExportConfig
from trainer.runtime import checkpoint
from trainer.runtime.fingerprint import model_fingerprint
from trainer.runtime.loading import SavedRun
from trainer.runtime.shards import Shards

_FORMAT = 2
"""Of the shards: of what they hold, digests too."""


def claim(shards: Shards, run: SavedRun, export: EmbeddingExportConfig) -> dict[str, Any]:
    """What can be said of all shards together, as `_manifest.json` has it."""
    stored = {"embedding": f"fixed_size_list<{export.dtype}>[{shards.dimension}]"}
    if export.dtype == "int8":
        stored["scale"] = "float32"
    return {
        "format": _FORMAT,
        "checkpoint": run.checkpoint.name,
        "step": checkpoint.step(run.checkpoint),
        "model": model_fingerprint(run),
        "data": shards.data_fingerprint,
        "side": export.side,
        **shards.facts,
        "dimension": shards.dimension,
        "dtype": export.dtype,
        "schema": {**shards.columns, **stored},
        "num_rows": shards.num_rows * shards.interests,
        "rows_per_shard": export.rows_per_shard,
    }


def stretches(shards: Shards, rows_per_shard: int) -> dict[str, range]:
    """Which rows each shard has, by the name of its file."""
    starts = range(0, max(shards.num_rows, 1), rows_per_shard)  # of no rows, one that is empty
    return {
        f"part-{k:05d}.parquet": range(start, min(start + rows_per_shard, shards.num_rows))
        for k, start in enumerate(starts)
    }
