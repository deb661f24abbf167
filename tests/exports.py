"""Exports of a small model, trained for three steps, on the ranks at hand."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tests.prepared import FEATURES, SCHEMA
from tests.training import config, trained, write_checkpoint
from trainer.config import CheckpointConfig, EmbeddingExportConfig, ExportConfig, to_yaml
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.errors import UserError
from trainer.runtime import checkpoint, run_directory
from trainer.runtime.loading import SavedRun
from trainer.runtime.processes import Processes
from trainer.runtime.shard_files import write_shards
from trainer.runtime.shard_proof import prove
from trainer.runtime.shards import ItemShards, QueryShards, TableShards

SIDES = {"item": ItemShards, "query": QueryShards, "table": TableShards}


def train(processes: Processes, data: Path, run_dir: Path) -> None:
    """Leaves what trainer.train leaves and trainer.export reads."""
    settings = config()
    settings.data.dir, settings.run.dir = str(data), str(run_dir)
    if processes.is_first:
        run_dir.mkdir(parents=True)
        run_directory.write(run_dir, run_directory.CONFIG, to_yaml(settings))
        run_directory.write(run_dir, run_directory.SCHEMA, SCHEMA.to_json())
    for steps in (3, 4):
        model, _ = trained(processes, settings, data, steps)
        write_checkpoint(model, run_dir / "checkpoints" / checkpoint.name(steps))


def open_run(data: Path, run_dir: Path, step: int = 3) -> SavedRun:
    settings = run_directory.read_config(run_dir)
    catalog = Catalog(data, SCHEMA)
    assembler = BatchAssembler(SCHEMA, FEATURES, catalog, settings.model)
    path = run_dir / "checkpoints" / checkpoint.name(step)
    return SavedRun(settings, SCHEMA, SCHEMA, str(data), path, catalog, assembler)


def asked(out: Path, settings: dict[str, Any]) -> ExportConfig:
    """Into a folder that need not be the run's."""
    chosen = {"rows_per_shard": 7, "batch_size_per_rank": 5} | settings
    return ExportConfig(CheckpointConfig(dir=str(out)), EmbeddingExportConfig(**chosen))


def export(
    processes: Processes, data: Path, run_dir: Path, out: Path, settings: dict[str, Any] | None = None, step: int = 3,
    after: int | None = None,
) -> list[str]:  # fmt: skip
    """Files that were written; with `after`, it is interrupted when about to write as many shards on this rank."""
    chosen, run = asked(out, settings or {}), open_run(data, run_dir, step)
    shards = SIDES[chosen.export.side](run, chosen)
    if after is not None:
        embeddings, turns = shards.embeddings, iter(range(after))

        def until(rows: range) -> Iterator[Tensor]:
            if next(turns, None) is None:
                raise InterruptedError
            return embeddings(rows)

        shards.embeddings = until
    try:
        return write_shards(shards, run, chosen, processes).files
    except InterruptedError:
        return []


def proof(
    processes: Processes, data: Path, run_dir: Path, out: Path, settings: dict[str, Any] | None = None, step: int = 3
) -> str:
    """What is told of a folder, or what is wrong with it."""
    chosen, run = asked(out, settings or {}), open_run(data, run_dir, step)
    try:
        return str(prove(SIDES[chosen.export.side](run, chosen), run, chosen, processes))
    except UserError as error:
        return str(error)


@dataclass
class Given:
    """Rows that are there already, numbered, in place of a model's."""

    row_ND: np.ndarray
    folder: str = "item_embeddings"
    told: str = "rows"
    interests: int = 1
    columns: dict[str, str] = field(default_factory=lambda: {"item_id": "int64"})
    facts: dict[str, Any] = field(default_factory=dict)
    data_fingerprint: str = "given"

    def __post_init__(self) -> None:
        self.num_rows, self.dimension = self.row_ND.shape

    def load(self, processes: Processes) -> None:
        pass

    def identity(self, rows: range) -> dict[str, pa.Array]:
        return {"item_id": pa.array(np.arange(rows.start, rows.stop))}

    def embeddings(self, rows: range) -> Iterator[Tensor]:
        for start in range(rows.start, rows.stop, 512):
            yield torch.from_numpy(self.row_ND[start : min(start + 512, rows.stop)])


def export_given(
    processes: Processes, row_ND: np.ndarray, data: Path, run_dir: Path, out: Path, settings: dict[str, Any]
) -> str | tuple[int, str]:
    """What is told, or the number and the file of what the system refuses."""
    try:
        return str(write_shards(Given(row_ND), open_run(data, run_dir), asked(out, settings), processes))
    except UserError as error:
        return str(error)
    except OSError as error:
        return error.errno or 0, str(error.filename)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
