"""Checks that need nothing but the config, made before data is opened or a process group exists."""

import importlib.util
import os
import re
import shutil
from collections.abc import Sequence

from trainer.config import (
    EvaluateConfig,
    ExportConfig,
    IndexConfig,
    LossConfig,
    ModelConfig,
    PlanConfig,
    QueryTowerConfig,
    RecommendConfig,
    ReplayConfig,
    StartConfig,
    TrainConfig,
    TrainDataConfig,
)
from trainer.errors import UserError


def require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises a UserError unless value is among the allowed ones."""
    if value not in allowed:
        raise UserError(name, value, "one of " + ", ".join(allowed), f"set {name}={allowed[0]}")


def require_positive(name: str, value: float) -> None:
    """Raises a UserError unless value > 0."""
    if not value > 0:
        raise UserError(name, value, "a number above 0", f"raise {name}")


def require_each_once(name: str, values: Sequence[object] | None) -> None:
    """Raises a UserError if a list has a value twice."""
    twice = [value for place, value in enumerate(values or []) if value in (values or [])[:place]]
    if twice:
        raise UserError(name, values, f"each value once, and {twice[0]} is there twice", f"leave one {twice[0]} out")


def check_train_config(config: TrainConfig) -> None:
    """Checks what can be checked before the data is opened.

    Raises:
        UserError: a value is out of range or contradicts another.
    """
    for name, value in {
        "data.global_batch_size": config.data.global_batch_size,
        "data.streams": config.data.streams,
        "data.memory_gb": config.data.memory_gb,
        "model.loss.temperature": config.model.loss.temperature,
        "model.loss.streaming_rate": config.model.loss.streaming_rate,
        "model.loss.streaming_buckets": config.model.loss.streaming_buckets,
        "model.history.interests": config.model.history.interests,
        "model.history.layers": config.model.history.layers,
        "model.history.heads": config.model.history.heads,
        "optimizer.embedding_learning_rate": config.optimizer.embedding_learning_rate,
        "optimizer.dense_learning_rate": config.optimizer.dense_learning_rate,
        "run.epochs": config.run.epochs,
        "run.validate_every": config.run.validate_every,
        "run.validation_batch_size_per_rank": config.run.validation_batch_size_per_rank,
        "run.patience": config.run.patience,
        "run.log_every": config.run.log_every,
        "run.keep_checkpoints": config.run.keep_checkpoints,
        "run.stall_seconds": config.run.stall_seconds,
    }.items():
        require_positive(name, value)
    for name, value in {
        "run.seed": config.run.seed,
        "optimizer.warmup_steps": config.optimizer.warmup_steps,
        "optimizer.embedding_init_std": config.optimizer.embedding_init_std,
        "optimizer.embedding_weight_decay": config.optimizer.embedding_weight_decay,
        "optimizer.dense_weight_decay": config.optimizer.dense_weight_decay,
        "model.loss.uniform_negatives": config.model.loss.uniform_negatives,
    }.items():
        if value < 0:
            raise UserError(name, value, "0 or more", f"set {name}=0")
    require_one_of("data.layout", config.data.layout, ("event", "sequence"))
    require_one_of("optimizer.schedule", config.optimizer.schedule, ("constant", "cosine"))
    if config.optimizer.dense_gradient_clip is not None:
        require_positive("optimizer.dense_gradient_clip", config.optimizer.dense_gradient_clip)
    _check_model(config.model)
    _check_history(config)
    _check_loss(config.model.loss)
    _check_start(config.start)
    check_threads(config.run.threads)
    if config.run.validate_every > config.run.epochs:
        expected = f"at most run.epochs={config.run.epochs}: with each a checkpoint is saved"
        raise UserError("run.validate_every", config.run.validate_every, expected, "lower run.validate_every")
    for name, share in {
        "model.id_dropout": config.model.id_dropout,
        "model.list_dropout": config.model.list_dropout,
        "model.history.dropout": config.model.history.dropout,
        "model.query.dropout": config.model.query.dropout,
        "model.candidate.dropout": config.model.candidate.dropout,
    }.items():
        if not 0 <= share < 1:
            raise UserError(name, share, "a share in [0, 1)", f"set {name}=0.1")
    require_one_of("optimizer.embedding", config.optimizer.embedding, ("rowwise_adagrad", "sgd"))
    if config.optimizer.embedding == "sgd" and config.model.table_dtype == "float16":
        raise UserError(
            "model.table_dtype", "float16",
            "float32 with optimizer.embedding=sgd, whose kernel would round a row as often as a step looks it up",
            "set model.table_dtype=float32 or optimizer.embedding=rowwise_adagrad",
        )  # fmt: skip
    require_one_of("run.accelerator", config.run.accelerator, ("auto", "cpu", "gpu"))
    require_one_of("sharding.exchange", config.sharding.exchange, ("float32", "float16"))
    require_one_of("run.matrix_products", config.run.matrix_products, ("float32", "bfloat16"))
    _check_compiler(config.run.compile)
    require_one_of("run.on_non_finite", config.run.on_non_finite, ("stop", "leave_out"))
    require_one_of("run.on_failed_checkpoint", config.run.on_failed_checkpoint, ("stop", "go_on"))
    if config.run.checkpoint_every_steps is not None:
        require_positive("run.checkpoint_every_steps", config.run.checkpoint_every_steps)
    monitor = config.run.monitor
    of_lists = r"val/((cold|warm)/)?(recall|ndcg|mrr|hit_rate|map)@0*[1-9]\d*"
    if monitor is not None and not re.fullmatch(of_lists, monitor):
        expected = (
            "one of val/recall@k, val/ndcg@k, val/mrr@k, val/hit_rate@k, val/map@k, or the same of val/cold/ or "
            "val/warm/"
        )
        raise UserError("run.monitor", monitor, expected, "set run.monitor=val/recall@100")
    sharding = config.sharding
    chosen = {"ids": sharding.ids, "categoricals": sharding.categoricals}
    chosen |= {f"tables.{table}": kind for table, kind in sharding.tables.items()}
    for name, kind in chosen.items():
        if kind is not None:
            require_one_of(f"sharding.{name}", kind, ("row_wise", "table_wise"))


def _check_compiler(wanted: bool) -> None:
    compiler = os.environ.get("CXX", "g++")  # as torch.compile looks for it
    if wanted and shutil.which(compiler) is None:
        raise UserError("run.compile", True, f"a C++ compiler, {compiler}, on the PATH",
                        "install one, name another in CXX, or set run.compile=false")  # fmt: skip


def check_threads(threads: int | None) -> None:
    """Raises a UserError for a number of threads below 1."""
    if threads is not None and threads < 1:
        raise UserError("run.threads", threads, "1 or more, or null for an even share", "set run.threads=null")


def _check_model(config: ModelConfig) -> None:
    dims = {"model.embedding_dim": config.embedding_dim, "model.categorical_dim": config.categorical_dim}
    dims |= {f"model.table_dims.{table}": dim for table, dim in config.table_dims.items()}
    for name, dim in dims.items():
        if dim < 1 or dim % 4:
            expected = "a multiple of 4, which the kernels ask for"
            raise UserError(name, dim, expected, f"set {name}={max(4, dim // 4 * 4)}")
    require_one_of("model.table_dtype", config.table_dtype, ("float32", "float16"))
    for side, tower in (("query", config.query), ("candidate", config.candidate)):
        require_one_of(f"model.{side}.combine", tower.combine, ("concatenate", "sum"))
        if tower.cross_layers < 0:
            raise UserError(f"model.{side}.cross_layers", tower.cross_layers, "0 or more", "set it to 0")
        require_each_once(f"model.{side}.features", tower.features)
        if any(width < 1 for width in tower.hidden or []):
            raise UserError(f"model.{side}.hidden", tower.hidden, "widths from 1", f"set model.{side}.hidden=[256]")


def _check_history(config: TrainConfig) -> None:
    history, dim = config.model.history, config.model.embedding_dim
    require_one_of("model.history.encoder", history.encoder, ("mean", "item_mean", "attention", "transformer"))
    require_one_of("model.history.sees", history.sees, ("before", "others", "all"))
    if history.encoder == "transformer" and dim % (2 * history.heads):
        raise UserError("model.history.heads", history.heads, f"a number twice which divides model.embedding_dim={dim}",
                        "set model.history.heads=1")  # fmt: skip
    if history.encoder != "attention" and history.interests > 1:
        raise UserError("model.history.interests", history.interests, f"1 for the encoder {history.encoder}",
                        "set model.history.encoder=attention")  # fmt: skip
    if config.data.layout == "sequence" and history.encoder == "mean":
        raise UserError("model.history.encoder", "mean", "item_mean, attention or transformer for data.layout=sequence",
                        "choose one, as model=sequence does, or set data.layout=event")  # fmt: skip
    if history.sees != "before" and (config.data.layout, history.encoder) != ("sequence", "item_mean"):
        raise UserError("model.history.sees", history.sees, "data.layout=sequence and model.history.encoder=item_mean",
                        "set them, or model.history.sees=before")  # fmt: skip
    if history.sees == "all" and config.model.loss.remove_known_positives == "none":
        expected = "history or user where a query has several positives: none of them is another's negative"
        raise UserError("model.loss.remove_known_positives", "none", expected,
                        "set model.loss.remove_known_positives=history")  # fmt: skip


def _check_loss(config: LossConfig) -> None:
    require_one_of("model.loss.log_q", config.log_q, ("counts", "streaming", "none"))
    require_one_of("model.loss.remove_known_positives", config.remove_known_positives, ("none", "history", "user"))
    if not config.in_batch_negatives and not config.uniform_negatives:
        raise UserError("model.loss.uniform_negatives", 0, "some where in_batch_negatives=false",
                        "set model.loss.uniform_negatives=4096, or in_batch_negatives=true")  # fmt: skip
    if config.log_q == "streaming" and not config.in_batch_negatives:
        raise UserError("model.loss.log_q", config.log_q, "none where in_batch_negatives=false: draws are uniform",
                        "set model.loss.log_q=none")  # fmt: skip
    if config.remove_known_positives != "none" and not config.remove_accidental_hits:
        raise UserError("model.loss.remove_accidental_hits", False,
                        "true where known positives are removed, of which the query's own item is one",
                        "set model.loss.remove_accidental_hits=true")  # fmt: skip
    if config.streaming_rate > 1:
        raise UserError("model.loss.streaming_rate", config.streaming_rate, "a rate in (0, 1]",
                        "set model.loss.streaming_rate=0.01")  # fmt: skip


def _check_start(config: StartConfig) -> None:
    require_one_of("start.state", config.state, ("all", "weights"))
    for change in config.changes:
        require_one_of("start.changes", change, ("vocabulary", "features", "optimizer", "settings"))
    if config.checkpoint is None and (config.changes or config.state != "all"):
        raise UserError("start.checkpoint", None, "the checkpoint that start.changes and start.state speak of",
                        "set start.checkpoint=RUN/checkpoints/step-N, or leave them out")  # fmt: skip


def check_negatives(config: LossConfig, num_items: int) -> None:
    """Raises a UserError for more uniform negatives than there are items."""
    if config.uniform_negatives > num_items:
        raise UserError("model.loss.uniform_negatives", config.uniform_negatives,
                        f"at most the {num_items} items of the catalogue",
                        f"set model.loss.uniform_negatives={num_items}, which stands for all of them")  # fmt: skip


def check_batch_size(config: TrainDataConfig, world_size: int) -> int:
    """The queries each rank takes of a global batch.

    Raises:
        UserError: the batch, the streams and the ranks do not divide one another.
    """
    streams, batch = config.streams, config.global_batch_size
    if streams % world_size or batch % streams:
        fitting = world_size * max(1, round(streams / world_size))
        remedy = f"set data.streams={fitting} data.global_batch_size={-(-batch // fitting) * fitting}"
        if streams % world_size:
            raise UserError("data.streams", streams, f"a multiple of the {world_size} ranks", remedy)
        raise UserError("data.global_batch_size", batch, f"a multiple of data.streams={streams}", remedy)
    return config.global_batch_size // world_size


def check_evaluate_config(config: EvaluateConfig) -> None:
    """Checks what can be checked before the run is opened.

    Raises:
        UserError: a value is out of range.
    """
    check_threads(config.run.threads)
    require_one_of("evaluate.split", config.evaluate.split, ("test", "validation"))
    require_one_of("run.accelerator", config.run.accelerator, ("auto", "cpu", "gpu"))
    require_positive("evaluate.batch_size_per_rank", config.evaluate.batch_size_per_rank)
    if not config.evaluate.k or min(config.evaluate.k) < 1:
        raise UserError("evaluate.k", config.evaluate.k, "cut-offs from 1", "set evaluate.k=[10,100]")
    for name in ("k", "baselines", "slices"):
        require_each_once(f"evaluate.{name}", getattr(config.evaluate, name))
    for baseline in config.evaluate.baselines:
        require_one_of("evaluate.baselines", baseline, ("popularity", "markov", "ials"))
    if config.evaluate.bootstrap < 0:
        raise UserError("evaluate.bootstrap", config.evaluate.bootstrap, "0 or more", "set evaluate.bootstrap=1000")


def check_export_config(config: ExportConfig) -> None:
    """Checks what can be checked before the run is opened.

    Raises:
        UserError: a value is out of range.
    """
    check_threads(config.run.threads)
    side, table = config.export.side, config.export.table
    require_one_of("export.side", side, ("item", "query", "table"))
    require_one_of("export.split", config.export.split, ("test", "validation"))
    if side == "table" and table is None:
        raise UserError("export.table", None, "the name of a table for export.side=table", "set export.table=item_id")
    if side != "table" and table is not None:
        raise UserError("export.table", table, f"null for export.side={side}", "set export.side=table")
    if config.export.since is not None and side != "item":
        raise UserError("export.since", config.export.since, f"null for export.side={side}", "set export.side=item")
    # a table is read from files: a GPU would do nothing
    devices = ("auto", "cpu") if side == "table" else ("auto", "cpu", "gpu")
    require_one_of("run.accelerator", config.run.accelerator, devices)
    require_positive("export.batch_size_per_rank", config.export.batch_size_per_rank)
    require_positive("export.rows_per_shard", config.export.rows_per_shard)
    require_positive("export.verify_rows", config.export.verify_rows)
    require_one_of("export.dtype", config.export.dtype, ("float32", "float16", "int8"))


def check_replay_config(config: ReplayConfig) -> None:
    """Raises a UserError for a value that is out of range."""
    check_threads(config.run.threads)
    require_one_of("run.accelerator", config.run.accelerator, ("auto", "cpu", "gpu"))


def check_plan_config(config: PlanConfig) -> None:
    """Raises a UserError for a value of the training or of the cluster that is out of range."""
    check_train_config(config)
    plan = config.plan
    require_one_of("plan.device", plan.device, ("cuda", "cpu"))
    for name in ("nodes", "ranks_per_node", "hbm_gib", "host_gib", "intra_gb_s", "inter_gb_s", "memory_gb_s",
                 "host_gb_s", "tflops"):  # fmt: skip
        require_positive(f"plan.{name}", getattr(plan, name))
    for name in ("collective_us", "fixed_ms"):
        if getattr(plan, name) < 0:
            raise UserError(f"plan.{name}", getattr(plan, name), "0 or more", f"set plan.{name}=0")
    if not 0 < plan.efficiency <= 1:
        raise UserError("plan.efficiency", plan.efficiency, "a share in (0, 1]", "set plan.efficiency=0.5")
    for table, rows in plan.rows.items():
        require_positive(f"plan.rows.{table}", rows)


def check_query_tower_config(config: QueryTowerConfig) -> None:
    """Raises a UserError for a value that is out of range."""
    check_threads(config.run.threads)
    require_one_of("run.accelerator", config.run.accelerator, ("auto", "cpu", "gpu"))
    require_one_of("tower.dtype", config.tower.dtype, ("float32", "int8"))
    require_one_of("tower.split", config.tower.split, ("test", "validation"))
    require_positive("tower.max_gb", config.tower.max_gb)
    require_each_once("tower.without", config.tower.without)


def check_index_config(config: IndexConfig) -> None:
    """Raises a UserError for a value that is out of range, or where faiss is not installed."""
    index = config.index
    check_threads(config.run.threads)
    require_one_of("index.kind", index.kind, ("flat", "hnsw", "ivf_pq"))
    require_one_of("index.split", index.split, ("test", "validation"))
    for name in ("ef_construction", "code_size", "training_rows", "queries", "k"):
        require_positive(f"index.{name}", getattr(index, name))
    if index.links < 2:
        raise UserError("index.links", index.links, "2 or more", "set index.links=32")
    if index.lists is not None:
        require_positive("index.lists", index.lists)
    for name in ("ef_search", "nprobe"):
        values = getattr(index, name)
        if not values or min(values) < 1:
            raise UserError(f"index.{name}", values, "numbers from 1", f"set index.{name}=[16,64]")
        require_each_once(f"index.{name}", values)
    if index.seed < 0:
        raise UserError("index.seed", index.seed, "0 or more", "set index.seed=0")
    _check_faiss("trainer.index")


def check_recommend_config(config: RecommendConfig) -> None:
    """Raises a UserError for a value that is out of range, where nobody is named, or where faiss is not installed."""
    asked = config.recommend
    check_threads(config.run.threads)
    require_one_of("recommend.split", asked.split, ("test", "validation"))
    require_positive("recommend.k", asked.k)
    if asked.user is None and asked.query is None:
        raise UserError("recommend.user", None, "a user of the data, or recommend.query, or both",
                        "set recommend.user=ID, or recommend.query=FILE with a query as JSON")  # fmt: skip
    _check_faiss("trainer.recommend")


def _check_faiss(command: str) -> None:
    if importlib.util.find_spec("faiss") is None:
        raise UserError(command, "without faiss", "the package faiss, which is not installed",
                        "pip install '.[index]'")  # fmt: skip
