"""A model of the made-up data, trained for some steps on the ranks at hand."""

from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel

from tests.prepared import FEATURES, SCHEMA
from trainer.config import LossConfig, ModelConfig, OptimizerConfig, ShardingConfig, TowerConfig, TrainConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.events import HeldOutReader, TrainingReader
from trainer.data.order import TrainingOrder
from trainer.data.row_groups import open_events, open_sequences
from trainer.data.schema import Feature
from trainer.data.shares import share_of_rank, steps_of_all
from trainer.model.two_tower import make_model
from trainer.runtime.checkpoint_writer import CheckpointWriter
from trainer.runtime.evaluation import evaluate_model
from trainer.runtime.gather import gather_objects
from trainer.runtime.module import RetrievalModule
from trainer.runtime.processes import Processes
from trainer.runtime.sharding import shard

BATCH, STREAMS = 48, 6


def config(sharding: str = "row_wise", optimizer: str = "rowwise_adagrad") -> TrainConfig:
    """Small towers, quick rates."""
    query, candidate = (
        TowerConfig(features=[f.name for f in FEATURES if f.side == side], hidden=[16])
        for side in ("query", "candidate")
    )
    rate = 3.0 if optimizer == "sgd" else 0.2
    return TrainConfig(
        model=ModelConfig(
            embedding_dim=8,
            categorical_dim=4,
            query=query,
            candidate=candidate,
            id_dropout=0.1,
            loss=LossConfig(temperature=0.2),
        ),
        optimizer=OptimizerConfig(
            embedding=optimizer, embedding_learning_rate=rate, dense_learning_rate=0.01, warmup_steps=2
        ),
        sharding=ShardingConfig(
            ids=sharding, categoricals="table_wise", tables={"genres": "row_wise"} if sharding == "row_wise" else {}
        ),
    )


def features_of(config: TrainConfig) -> tuple[Feature, ...]:
    """Those that the towers take."""
    return SCHEMA.select(config.model.query.features, config.model.candidate.features)


def sharded_model(processes: Processes, config: TrainConfig, seed: int = 0) -> DistributedModelParallel:
    """The model at its start."""
    torch.manual_seed(seed)
    model = make_model(SCHEMA, features_of(config), config)
    return shard(model, config.sharding, config.optimizer, BATCH // processes.world_size, seed, processes)


def training_reader(
    processes: Processes, config: TrainConfig, folder: Path, assembler: BatchAssembler
) -> TrainingReader:
    """This rank's batches."""
    layout = config.data.layout
    opened = open_sequences if layout == "sequence" else partial(open_events, split="train")
    files = opened(folder, SCHEMA, columns=assembler.columns(layout))
    order = TrainingOrder(files.sizes, BATCH, STREAMS, seed=0)
    return TrainingReader(files, layout, assembler, order, processes.rank, processes.world_size)


def trained(processes: Processes, config: TrainConfig, folder: Path, steps: int, start: int = 0,
            model: DistributedModelParallel | None = None) -> tuple[DistributedModelParallel, list[float]]:  # fmt: skip
    """Takes steps through the module's own training_step, without Lightning's loop around it."""
    model = model or sharded_model(processes, config)
    catalog = Catalog(folder, SCHEMA)
    assembler = BatchAssembler(SCHEMA, features_of(config), catalog, config.model)
    reader = training_reader(processes, config, folder, assembler)
    reader.next_step = start
    module = RetrievalModule(model, config, assembler, catalog, reader, processes, num_steps=100)
    module.log = lambda *args, **kwargs: None
    chosen = module.configure_optimizers()
    losses = []
    for staged in islice(module.pipeline, steps):
        module.on_train_batch_start(staged, staged.batch.step)
        loss = module.training_step(staged)
        loss.backward()
        module.on_before_optimizer_step(None)
        if chosen is not None:  # a model of tables alone has none
            chosen["optimizer"].step()
            chosen["optimizer"].zero_grad()
            chosen["lr_scheduler"]["scheduler"].step()
        losses.append(sum(gather_objects(loss.item())) / processes.world_size)
    reader.close()
    return model, losses


def write_checkpoint(model: DistributedModelParallel, path: Path, rest: dict[str, Any] | None = None) -> None:
    """All ranks together, before it returns."""
    writer = CheckpointWriter(in_background=False)
    writer.save(model, rest or {}, path, then=lambda: None)
    assert writer.failure is None


def metrics(processes: Processes, folder: Path, model: nn.Module, config: TrainConfig) -> dict[str, float]:
    """Of the test split."""
    catalog, files = Catalog(folder, SCHEMA), open_events(folder, SCHEMA, "test")
    assembler = BatchAssembler(SCHEMA, features_of(config), catalog, config.model)
    evaluation = evaluate_model(model, assembler, catalog, "test", 16, processes)
    share = share_of_rank(files.num_rows, processes.rank, processes.world_size)
    for batch in HeldOutReader(files, assembler, 16, share, steps_of_all(files.num_rows, 16, processes.world_size)):
        evaluation.update(batch)
    return evaluation.metrics([1, 5, 10])


def whole_tables(model: DistributedModelParallel) -> dict[str, Tensor]:
    """Every parameter in full on the first rank: for comparison in tests only."""
    result = {}
    for name, value in model.state_dict().items():
        if isinstance(value, ShardedTensor):
            whole = torch.empty(value.size(), dtype=value.dtype) if torch.distributed.get_rank() == 0 else None
            value.gather(dst=0, out=whole)
            value = whole
        if value is not None:
            result[name] = value.detach().clone()
    return result
