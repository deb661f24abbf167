"""A trained model, sharded over the processes at hand, with the data it reads."""

from dataclasses import dataclass, replace
from pathlib import Path

from torchrec.distributed import DistributedModelParallel

from trainer.config import CheckpointConfig, TrainConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.schema import Feature, Schema, read_schema
from trainer.errors import UserError
from trainer.model.two_tower import make_model
from trainer.runtime import checkpoint, run_directory, saved_model
from trainer.runtime.differences import MEANING, continues
from trainer.runtime.processes import Processes
from trainer.runtime.sharding import shard


@dataclass(frozen=True)
class SavedRun:
    """A run directory that can be loaded, found and checked before any process group exists."""

    config: TrainConfig
    schema: Schema
    """Of the data."""
    trained: Schema
    """Of the data that it was trained on: the same, or one which this extends."""
    data_dir: str
    checkpoint: Path
    catalog: Catalog
    assembler: BatchAssembler


def open_run(config: CheckpointConfig, may_extend: bool = False) -> SavedRun:
    """Finds a run's checkpoint and data.

    Args:
        config: which run.
        may_extend: whether the data may extend that of the run: what its tables have no rows for is out of vocabulary.

    Raises:
        UserError: either is missing, or the data is not what the run was trained on.
    """
    settings, trained = run_directory.read_config(config.dir), run_directory.read_schema_of(config.dir)
    data_dir = config.data_dir or settings.data.dir
    schema = read_schema(data_dir, "run.data_dir")
    features = trained.select(settings.model.query.features, settings.model.candidate.features)
    if may_extend and trained.fingerprint in schema.extends:
        _check_extending(data_dir, schema, trained, [f for f in features if f.side == "candidate"])
    else:
        run_directory.check_same_data(data_dir, schema, trained)
    catalog = Catalog(data_dir, schema)
    found = checkpoint.find(config.dir, config.checkpoint)
    assembler = BatchAssembler(schema, features, catalog, settings.model)
    return SavedRun(settings, schema, trained, data_dir, found, catalog, assembler)


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
    model = make_model(run.trained, run.assembler.features, run.config)
    config = run.config
    exact = replace(config.sharding, exchange="float32")
    sharded = shard(model, exact, config.optimizer, batch_size_per_rank, config.run.seed, processes)
    saved_model.load(sharded, run.checkpoint)
    return sharded.eval()


def refuse_damaged(path: Path) -> None:
    """Reads every file of a checkpoint, each rank its share, and compares it with what was written.

    Raises:
        UserError: on every rank, if any is damaged.
    """
    if damaged := saved_model.damaged_files(path):
        others = [name for name in checkpoint.names(path.parent) if name != path.name]
        raise UserError(
            "run.checkpoint", path.name, f"its files as written, which these are not: {', '.join(damaged)}",
            f"bring the files back, or name another: {', '.join(others) or 'there is none'}",
        )  # fmt: skip


def _check_extending(data_dir: str, schema: Schema, trained: Schema, features: list[Feature]) -> None:
    """Refuses data that gives another meaning to what the item tower takes."""
    now = {feature.name: feature for feature in schema.features}
    changed = [
        f"feature {feature.name}: {setting} was {getattr(feature, setting)}, is {getattr(now[feature.name], setting)}"
        for feature in features if feature.name in now
        for setting in (*MEANING, *(["num_embeddings"] if feature.hashed else []))
        if getattr(feature, setting) != getattr(now[feature.name], setting)
    ]  # fmt: skip
    changed += [f"feature {feature.name} is gone" for feature in features if feature.name not in now]
    changed += [
        f"table {feature.table} does not continue its vocabulary"
        for feature in features if feature.is_sparse and not feature.hashed and feature.name in now
        if not continues(trained, schema, feature.table)
    ]  # fmt: skip
    if changed:
        raise UserError("run.data_dir", data_dir, "data that extends that of the run; " + ", ".join(changed),
                        "prepare it with the features of that run")  # fmt: skip
