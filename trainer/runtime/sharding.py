"""Tables over ranks: DistributedModelParallel, after the planner's plan."""

import os
from collections.abc import Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper
from torchrec.distributed.types import ShardingEnv

from trainer.config import OptimizerConfig, ShardingConfig
from trainer.model.two_tower import TwoTower
from trainer.runtime.gloo import average_quickly
from trainer.runtime.initialization import initialize_rows
from trainer.runtime.placement import Cluster, fuse_optimizer, gradient_scale, make_planner, planned, sharders
from trainer.runtime.processes import Processes

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
    fuse_optimizer(model, optimizer)
    scale = gradient_scale(sharding, batch_size_per_rank * processes.world_size)
    on_cpu = processes.device.type == "cpu"
    planner = make_planner(model, sharding, batch_size_per_rank, _cluster(processes))
    of_tables = sharders(scale)
    plan = planned(sharding, partial(planner.collective_plan, model, of_tables, dist.group.WORLD))
    for name, dense in model.named_children():
        if name != "embeddings":
            dense.to(processes.device)  # DistributedModelParallel does so only where there are dense parameters
    sharded = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=processes.device,
        plan=plan,
        sharders=of_tables,
        # On GPUs DistributedDataParallel would otherwise rearrange gradients after its first step, and with them the
        # order in which three or more ranks add them up: a run that goes on from a checkpoint would differ in the last
        # bits. (CPU ranks add them up in one order wherever they stand, see gloo.py.) The temperature is used after
        # `forward` alone, which looks unused; runtime/module.py averages its gradient.
        data_parallel_wrapper=DefaultDataParallelWrapper(
            static_graph=False, find_unused_parameters=not on_cpu, params_to_ignore=[OUTSIDE_FORWARD]
        ),
    )
    if on_cpu and processes.world_size > 1:
        average_quickly(sharded)
    for table, local, offsets, width in local_shards(sharded):
        initialize_rows(local, table, offsets[0], offsets[1], width, optimizer.embedding_init_std, seed)
    return sharded


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


def _cluster(processes: Processes) -> Cluster:
    """The ranks at hand, with what each may fill: its GPU's memory, and its share of the host's."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // processes.local_world_size
    on_gpu = processes.device.type == "cuda"
    memory = torch.cuda.get_device_properties(processes.device).total_memory if on_gpu else host
    return Cluster(processes.device.type, processes.world_size, processes.local_world_size, memory, host)
