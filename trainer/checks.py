"""Checks that need nothing but the config, made before data is opened or a process group exists."""

from trainer.config import EvaluateConfig, ExportConfig, TrainConfig, TrainDataConfig
from trainer.errors import UserError


def require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises a UserError unless value is among the allowed ones."""
    if value not in allowed:
        raise UserError(name, value, "one of " + ", ".join(allowed), f"set {name}={allowed[0]}")


def require_positive(name: str, value: float) -> None:
    """Raises a UserError unless value > 0."""
    if not value > 0:
        raise UserError(name, value, "a number above 0", f"raise {name}")


def check_train_config(config: TrainConfig) -> None:
    """Checks what can be checked before the data is opened.

    Raises:
        UserError: a value is out of range or contradicts another.
    """
    for name, value in {
        "data.global_batch_size": config.data.global_batch_size,
        "data.streams": config.data.streams,
        "model.embedding_dim": config.model.embedding_dim,
        "model.temperature": config.model.temperature,
        "optimizer.embedding_learning_rate": config.optimizer.embedding_learning_rate,
        "optimizer.dense_learning_rate": config.optimizer.dense_learning_rate,
        "run.epochs": config.run.epochs,
        "run.validate_every": config.run.validate_every,
        "run.validation_batch_size": config.run.validation_batch_size,
        "run.patience": config.run.patience,
        "run.log_every": config.run.log_every,
    }.items():
        require_positive(name, value)
    if config.run.validate_every > config.run.epochs:
        expected = f"at most run.epochs={config.run.epochs}: the best checkpoint is chosen by validation"
        raise UserError("run.validate_every", config.run.validate_every, expected, "lower run.validate_every")
    if not 0 <= config.model.id_dropout < 1:
        raise UserError("model.id_dropout", config.model.id_dropout, "a share in [0, 1)", "set model.id_dropout=0.1")
    require_one_of("optimizer.embedding", config.optimizer.embedding, ("rowwise_adagrad", "sgd"))
    require_one_of("run.accelerator", config.run.accelerator, ("auto", "cpu", "gpu"))
    metric, _, k = config.run.monitor.partition("@")
    if metric not in ("val/recall", "val/ndcg", "val/mrr") or not k.isdigit() or int(k) < 1:
        expected = "one of val/recall@k, val/ndcg@k, val/mrr@k"
        raise UserError("run.monitor", config.run.monitor, expected, "set run.monitor=val/recall@100")
    sharding = config.sharding
    chosen = {"ids": sharding.ids, "categoricals": sharding.categoricals}
    chosen |= {f"tables.{table}": kind for table, kind in sharding.tables.items()}
    for name, kind in chosen.items():
        if kind is not None:
            require_one_of(f"sharding.{name}", kind, ("row_wise", "table_wise", "column_wise"))


def check_batch_size(config: TrainDataConfig, world_size: int) -> int:
    """The queries each rank takes of a global batch.

    Raises:
        UserError: the batch, the streams and the ranks do not divide one another.
    """
    streams, batch = config.streams, config.global_batch_size
    if streams % world_size:
        fitting = world_size * max(1, round(streams / world_size))
        raise UserError("data.streams", streams, f"a multiple of the {world_size} ranks", f"set data.streams={fitting}")
    if batch % streams:
        fitting = -(-batch // streams) * streams
        expected = f"a multiple of data.streams={streams}"
        raise UserError("data.global_batch_size", batch, expected, f"set data.global_batch_size={fitting}")
    return config.global_batch_size // world_size


def check_evaluate_config(config: EvaluateConfig) -> None:
    """Checks what can be checked before the run is opened.

    Raises:
        UserError: a value is out of range.
    """
    require_one_of("evaluate.split", config.evaluate.split, ("test", "validation"))
    require_one_of("run.accelerator", config.run.accelerator, ("auto", "cpu", "gpu"))
    require_positive("evaluate.batch_size", config.evaluate.batch_size)
    if not config.evaluate.k or min(config.evaluate.k) < 1:
        raise UserError("evaluate.k", config.evaluate.k, "cut-offs from 1", "set evaluate.k=[10,100]")


def check_export_config(config: ExportConfig) -> None:
    """Checks what can be checked before the run is opened.

    Raises:
        UserError: a value is out of range.
    """
    require_one_of("export.side", config.export.side, ("item", "query"))
    require_one_of("export.split", config.export.split, ("test", "validation"))
    require_one_of("run.accelerator", config.run.accelerator, ("auto", "cpu", "gpu"))
    require_positive("export.batch_size", config.export.batch_size)
    require_positive("export.rows_per_shard", config.export.rows_per_shard)
