"""A training run, from prepared data to its best checkpoint."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torchrec.distributed import DistributedModelParallel

from trainer.checks import check_batch_size, check_negatives
from trainer.config import RunConfig, TrainConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.contract import list_parts
from trainer.data.events import HeldOutReader, TrainingReader
from trainer.data.order import TrainingOrder
from trainer.data.row_groups import RowGroups, one_array, open_events, open_sequences
from trainer.data.schema import TARGETS, Schema, read_schema
from trainer.data.shares import share_of_rank, steps_of_all
from trainer.errors import UserError
from trainer.model.two_tower import TwoTower, make_model
from trainer.runtime import agreement, checkpoint, run_directory
from trainer.runtime.callbacks import StepProgressBar, StopEarly, Throughput
from trainer.runtime.checkpoint_writer import CheckpointWriter
from trainer.runtime.differences import Trained
from trainer.runtime.gather import gather_objects
from trainer.runtime.heartbeat import Heartbeat
from trainer.runtime.module import RetrievalModule
from trainer.runtime.placement import check_tables
from trainer.runtime.processes import Processes, find_processes, joined
from trainer.runtime.quiet import quieten_libraries
from trainer.runtime.resume import checkpoint_to_resume
from trainer.runtime.saving import Saving
from trainer.runtime.sharding import shard, sharded_rows
from trainer.runtime.signals import Signals
from trainer.runtime.start import Start, open_start
from trainer.runtime.strategy import ShardedStrategy
from trainer.runtime.watchdog import Watchdog


def fit(config: TrainConfig) -> dict[str, float]:
    """Trains, validates and checkpoints until the epochs are over or validation stops improving.

    Returns:
        Validation metrics of the best checkpoint; none where nothing is validated.

    Raises:
        UserError: before the process group exists, whatever is wrong with data, model or run directory; after that, if
            ranks differ in their configuration, data or checkpoints, the newest checkpoint is damaged, the planner
            finds no place for the tables, or training meets what is to end it.
        Preempted: a signal asked the run to end.
    """
    quieten_libraries()
    processes = find_processes(config.run.accelerator, config.run.threads)
    batch_size_per_rank = check_batch_size(config.data, processes.world_size)
    module, validation, start, alike = _build(config, processes)

    def shard_model(model: TwoTower) -> DistributedModelParallel:
        sharded = shard(model, config.sharding, config.optimizer, batch_size_per_rank, config.run.seed, processes)
        told = start.load(sharded, module.loss) if start else None
        rows = gather_objects(sharded_rows(sharded))
        if processes.is_first:
            run_directory.record_sharding(config.run.dir, rows)
            if told:
                print(told)
            print(f"reader: row groups of {module.reader.memory / 1e6:,.0f} MB at most on a rank")
            for table, (_, total) in rows[0].items():
                print(f"table {table}: {total:,} rows, at most {max(held[table][0] for held in rows):,} on a rank")
        return sharded

    run, stalls = config.run, Path(config.run.dir) / run_directory.STALLS
    watchdog = Watchdog(stalls, processes.rank, processes.world_size, run.stall_seconds)
    with Signals() as signals, watchdog, joined(processes, 2 * run.stall_seconds), closing(module.reader):
        agreement.check_alike({"the newest checkpoint": checkpoint.newest(run.dir)} | alike)
        resume_from = checkpoint_to_resume(run, processes)
        if processes.is_first and resume_from:
            print(f"goes on from {resume_from}")
        order, writer = module.reader.order, CheckpointWriter(run.save_in_background)
        every, num_steps = order.steps(run.validate_every), steps_of_run(run, order)
        callbacks = [
            Heartbeat(watchdog),
            Throughput(config.data.global_batch_size, run.log_every),
            StepProgressBar(num_steps),
            *([StopEarly(monitor=run.monitor, mode="max", patience=run.patience)] if run.monitor else []),
            *([start] if start else []),
            Saving(run, every, num_steps, writer, signals),
        ]
        trainer = _trainer(config, processes, ShardedStrategy(processes, shard_model, writer), callbacks, every)
        trainer.fit(module, val_dataloaders=validation, ckpt_path=resume_from, weights_only=False)
    return _report(config, trainer)


def _trainer(
    config: TrainConfig, processes: Processes, strategy: ShardedStrategy, callbacks: list[pl.Callback], every: int
) -> pl.Trainer:
    """Lightning's loop, which validates after every so many steps."""
    csv = CSVLogger(config.run.dir, name="logs")
    trainer = pl.Trainer(
        accelerator="gpu" if processes.device.type == "cuda" else "cpu",
        devices=processes.local_world_size,
        num_nodes=processes.num_nodes,
        strategy=strategy,
        max_epochs=-1,  # Saving ends the run
        gradient_clip_val=config.optimizer.dense_gradient_clip,
        val_check_interval=every if config.run.monitor else None,
        check_val_every_n_epoch=None,  # counts steps over epochs: to Lightning the run is one long epoch
        num_sanity_val_steps=0,
        log_every_n_steps=config.run.log_every,
        logger=[csv, TensorBoardLogger(config.run.dir, name="logs", version=csv.version)],
        callbacks=callbacks,
        enable_model_summary=False,
        inference_mode=False,  # as Lightning has it where ranks use gloo
    )
    # Before every step Lightning would have rank 0 tell whether it has received a SIGTERM, which signals.py sees to:
    # for that ranks, and on GPUs the host too, would wait for all that is under way.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


def _build(
    config: TrainConfig, processes: Processes
) -> tuple[RetrievalModule, HeldOutReader | None, Start | None, dict[str, Any]]:
    """Opens the data, makes the plain model and says what it starts from; the first process claims the directory."""
    data_dir, rank, world_size = config.data.dir, processes.rank, processes.world_size
    schema = read_schema(data_dir)
    features = schema.select(config.model.query.features, config.model.candidate.features)
    catalog = Catalog(data_dir, schema)
    check_negatives(config.model.loss, len(catalog))
    assembler = BatchAssembler(schema, features, catalog, config.model, config.run.seed)
    opened = open_sequences if config.data.layout == "sequence" else partial(open_events, split="train")
    files = opened(data_dir, schema, columns=assembler.columns(config.data.layout))
    order = TrainingOrder(files.sizes, config.data.global_batch_size, config.data.streams, config.run.seed)
    on_gpu = processes.device.type == "cuda"
    reader = TrainingReader(files, config.data.layout, assembler, order, rank, world_size, pinned=on_gpu)
    reader.check_memory(config.data.memory_gb)
    validation = _open_validation(config, schema, catalog, assembler, processes) if config.run.monitor else None
    pl.seed_everything(config.run.seed, verbose=False)
    model = make_model(schema, features, config)
    check_tables(config.sharding, model)
    if config.run.compile:
        model.compile_towers()
    resumes = checkpoint.newest(config.run.dir) is not None  # then nothing is left to start from
    start = None if resumes else open_start(Trained(config, schema, features, model), catalog)
    if processes.is_first:
        run_directory.claim(config, schema, order)
    num_steps = steps_of_run(config.run, order)
    module = RetrievalModule(model, config, assembler, catalog, reader, processes, num_steps)
    return module, validation, start, agreement.fields(config, schema, catalog, order)


def _open_validation(
    config: TrainConfig, schema: Schema, catalog: Catalog, assembler: BatchAssembler, processes: Processes
) -> HeldOutReader:
    monitor, at_once = config.run.monitor, config.run.validation_batch_size_per_rank
    assert monitor is not None
    if not schema.num_events["validation"]:
        raise UserError("run.monitor", monitor, f"null, for {config.data.dir} holds nothing out for validation",
                        "set run.monitor=null, or prepare the data with data.split.validation=0.1")  # fmt: skip
    held_out = open_events(config.data.dir, schema, "validation")
    check_monitor(monitor, catalog, held_out)
    share = share_of_rank(held_out.num_rows, processes.rank, processes.world_size)
    steps = steps_of_all(held_out.num_rows, at_once, processes.world_size)
    return HeldOutReader(held_out, assembler, at_once, share, steps)


def steps_of_run(config: RunConfig, order: TrainingOrder) -> int:
    """Steps of all epochs; a validation falls on a whole step, so with the last the run goes some steps further.

    Without validation too: so the run takes the steps of the one that chose its settings.
    """
    validations = int(config.epochs / config.validate_every + 1e-9)
    return max(order.steps(config.epochs), validations * order.steps(config.validate_every))


def check_monitor(monitor: str, catalog: Catalog, held_out: RowGroups) -> None:
    """Refuses to wait for a metric of cold or of warm items that validation will never have.

    Raises:
        UserError: the catalogue has no cold item, or no query of validation has such a target.
    """
    kind = monitor.split("/")[1]
    if kind not in ("cold", "warm"):
        return
    is_cold = catalog.counts_before("validation") == 0
    wanted = is_cold if kind == "cold" else ~is_cold
    targets = (one_array(held_out.read(group), TARGETS) for group in range(len(held_out.sizes)))
    if not is_cold.any() or not any(wanted[list_parts(column)[0].to_numpy()].any() for column in targets):
        expected = f"validation with {kind} items among its targets, in a catalogue that has cold ones"
        raise UserError("run.monitor", monitor, expected, "set run.monitor=val/recall@100")


def _report(config: TrainConfig, trainer: pl.Trainer) -> dict[str, float]:
    best = checkpoint.find(config.run.dir, "best")
    metrics = checkpoint.best(best.parent)["metrics"]
    if trainer.is_global_zero:
        print(f"trained {trainer.global_step} steps; best checkpoint {best}")
        print("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()) or "nothing was validated")
    return metrics
