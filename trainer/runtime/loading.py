"""A trained model, sharded over the processes at hand, with the data it reads."""

from dataclasses import dataclass
from pathlib import Path

from torchrec.distributed import DistributedModelParallel

from trainer.config import CheckpointConfig, TrainConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.schema import Schema, read_schema
from trainer.errors import UserError
from trainer.model.two_tower import make_model
from trainer.runtime import checkpoint, run_directory
from trainer.runtime.processes import Processes
from trainer.runtime.sharding import shard


@dataclass(frozen=True)
class SavedRun:
    """A run directory that can be loaded, found and checked before any process group exists."""

    config: TrainConfig
    schema: Schema
    data_dir: str
    checkpoint: Path
    catalog: Catalog
    assembler: BatchAssembler


def open_run(config: CheckpointConfig) -> SavedRun:
    """Finds a run's checkpoint and data.

    Raises:
        UserError: either is missing, or the data is not what the run was trained on.
    """
    trained = run_directory.read_config(config.dir)
    data_dir = config.data_dir or trained.data.dir
    schema = read_schema(data_dir)
    run_directory.check_same_data(data_dir, schema, run_directory.read_schema_of(config.dir))
    catalog = Catalog(data_dir, schema)
    features = schema.select(trained.model.query.features, trained.model.candidate.features)
    found = checkpoint.find(config.dir, config.checkpoint)
    assembler = BatchAssembler(schema, features, catalog, trained.model)
    return SavedRun(trained, schema, data_dir, found, catalog, assembler)


def load_model(run: SavedRun, batch_size_per_rank: int, processes: Processes) -> DistributedModelParallel:
    """The run's model in evaluation mode, its tables spread over the processes of the group.

    Args:
        run: from `open_run`.
        batch_size_per_rank: rows a rank will embed at a time.
        processes: this process's place; the group is up.

    Raises:
        UserError: files of the checkpoint are damaged.
    """
    refuse_damaged(run.checkpoint)
    model = make_model(run.schema, run.assembler.features, run.config)
    trained = run.config
    sharded = shard(model, trained.sharding, trained.optimizer, batch_size_per_rank, trained.run.seed, processes)
    checkpoint.load(sharded, run.checkpoint)
    return sharded.eval()


def refuse_damaged(path: Path) -> None:
    """Reads every file of a checkpoint, each rank its share, and compares it with what was written.

    Raises:
        UserError: on every rank, if any is damaged.
    """
    if damaged := checkpoint.damaged_files(path):
        others = [name for name in checkpoint.names(path.parent) if name != path.name]
        raise UserError(
            "run.checkpoint", path.name, f"its files as written, which these are not: {', '.join(damaged)}",
            f"bring the files back, or name another: {', '.join(others) or 'there is none'}",
        )  # fmt: skip
