"""Tables over ranks: TorchRec's planner, the fused optimizer, DistributedModelParallel."""

import os
from collections.abc import Iterator
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    ParameterConstraints,
    PlannerError,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingPlan, ShardingType
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from trainer.config import OptimizerConfig, ShardingConfig
from trainer.errors import UserError
from trainer.model.two_tower import TwoTower
from trainer.runtime.initialization import initialize_rows
from trainer.runtime.processes import Processes

_SHARE_KEPT_FREE = 0.15
"""Of each rank's memory, which the planner leaves to dense layers, activations and buffers."""


class _BagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's, with the types it leaves out on the CPU although their kernels run there."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types = super().sharding_types(compute_device_type)
        return types + [t for t in (ShardingType.ROW_WISE.value,) if t not in types]


OUTSIDE_FORWARD = "temperature.place"
"""The one parameter that the module's forward pass does not use."""


def shard(
    model: TwoTower,
    sharding: ShardingConfig,
    optimizer: OptimizerConfig,
    batch_size_per_rank: int,
    seed: int,
    processes: Processes,
) -> DistributedModelParallel:
    """Gives every rank its rows of the tables and a replica of the dense layers, ready to train.

    Tables are updated inside the backward pass by the fused optimizer. Gradients are those of the mean loss over
    ranks, for tables and dense layers alike.

    Raises:
        UserError: no plan satisfies the constraints.
    """
    kind, options = _fused_optimizer(optimizer)
    apply_optimizer_in_backward(kind, model.embeddings.parameters(), options)
    sharders = [cast(ModuleSharder[nn.Module], _BagSharder())]
    plan = _plan(model, sharding, sharders, batch_size_per_rank, processes)
    for name, dense in model.named_children():
        if name != "embeddings":
            dense.to(processes.device)  # DistributedModelParallel does so only where there are dense parameters
    sharded = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=processes.device,
        plan=plan,
        sharders=sharders,
        # Otherwise DistributedDataParallel rearranges gradients after its first step, and with them the order in which
        # three or more ranks add them up: a run that goes on from a checkpoint would differ in the last bits. The
        # temperature is used after `forward` alone, which looks unused; runtime/module.py averages its gradient.
        data_parallel_wrapper=DefaultDataParallelWrapper(
            static_graph=False, find_unused_parameters=True, params_to_ignore=[OUTSIDE_FORWARD]
        ),
    )
    for table, local, offsets, width in local_shards(sharded):
        initialize_rows(local, table, offsets[0], offsets[1], width, optimizer.embedding_init_std, seed)
    return sharded


def check_tables(config: ShardingConfig, model: TwoTower) -> None:
    """Refuses a sharding of tables that the model does not have, and one that torchrec gets wrong.

    Raises:
        UserError: with the name, and those there are; see offered_types.
    """
    tables = [table.name for table in model.embeddings.embedding_bag_configs()]
    unknown = sorted(set(config.tables) - set(tables))
    if unknown:
        raise UserError("sharding.tables", unknown[0], f"one of the tables {tables}", "correct or remove the entry")
    offered_types(model, config)


def offered_types(model: TwoTower, config: ShardingConfig) -> dict[str, list[str]]:
    """Sharding types that the planner may choose from, by table.

    Beside a row_wise table, torchrec 1.8 divides the mean of a list from a table_wise one by the list's length a second
    time (`_create_mean_pooling_divisor` leaves out SUM pooling alone). So tables of such lists are row_wise, or every
    table is table_wise.

    Raises:
        UserError: the config asks for both.
    """
    types = {}
    for table in model.embeddings.embedding_bag_configs():
        chosen = config.tables.get(table.name, config.ids if table.name in model.id_tables else config.categoricals)
        # data_parallel is never offered: a replicated table would be updated outside the fused kernel
        types[table.name] = [chosen] if chosen else ["table_wise", "row_wise"]
    lists = sorted(table for table in model.averaged_tables if types[table] == ["table_wise"])
    split = sorted(table for table, of_table in types.items() if of_table == ["row_wise"])
    if lists and split:
        raise UserError(
            f"sharding of table {lists[0]}", "table_wise",
            f"row_wise for a table of lists, whose mean torchrec divides twice beside row_wise tables ({split[0]})",
            f"set +sharding.tables.{lists[0]}=row_wise, or table_wise for all tables",
        )  # fmt: skip
    if lists:
        return {table: ["table_wise"] for table in types}
    return types | {table: ["row_wise"] for table in model.averaged_tables}


def local_shards(model: DistributedModelParallel) -> Iterator[tuple[str, Tensor, tuple[int, int], int]]:
    """This rank's shards: table name, the rows themselves, their (row, column) offset, and the table's width."""
    for name, value in model.state_dict().items():
        if isinstance(value, ShardedTensor):
            for part in value.local_shards():
                row, column = part.metadata.shard_offsets
                yield name.split(".")[-2], part.tensor, (row, column), value.size(1)


def sharded_rows(model: DistributedModelParallel) -> dict[str, tuple[int, int]]:
    """For every table, the rows of which this rank holds any part, and the table's rows in all."""
    held: dict[str, tuple[int, int]] = {}
    for name, value in model.state_dict().items():
        if isinstance(value, ShardedTensor):
            held[name.split(".")[-2]] = (sum(len(part.tensor) for part in value.local_shards()), value.size(0))
    return held


def _fused_optimizer(config: OptimizerConfig) -> tuple[type[torch.optim.Optimizer], dict[str, float]]:
    options = {"lr": config.embedding_learning_rate, "weight_decay": config.embedding_weight_decay}
    match config.embedding:
        case "rowwise_adagrad":
            return RowWiseAdagrad, options | {"eps": 1e-8}
        case _:
            return torch.optim.SGD, options


def _plan(
    model: TwoTower,
    config: ShardingConfig,
    sharders: list[ModuleSharder[nn.Module]],
    batch_size_per_rank: int,
    processes: Processes,
) -> ShardingPlan:
    types = offered_types(model, config)
    constraints = {table: ParameterConstraints(sharding_types=of_table) for table, of_table in types.items()}
    topology = TopologyFactory.create_topology(
        TrainerConfig(world_size=processes.world_size, local_world_size=processes.local_world_size),
        HardwareConfig(**_memory(processes)),
        KernelConfig(compute_device=processes.device.type),
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size_per_rank,
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(_SHARE_KEPT_FREE),
        debug=False,
    )
    try:
        return planner.collective_plan(model, sharders, dist.group.WORLD)
    except PlannerError as error:
        raise UserError(
            "sharding", config, "types for which the planner finds a plan that fits",
            f"allow other types, use more ranks or smaller tables; the planner says: {error}",
        ) from None  # fmt: skip


def _memory(processes: Processes) -> dict[str, int]:
    """Bytes a rank may fill: its GPU's, and its share of the host's."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // processes.local_world_size
    if processes.device.type == "cpu":
        return {"ddr_cap_bytes": host}
    return {"hbm_cap_bytes": torch.cuda.get_device_properties(processes.device).total_memory, "ddr_cap_bytes": host}
