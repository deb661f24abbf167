"""Where tables go: what TorchRec's planner may choose from, and its plan, for a training and for trainer.plan alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
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
from torchrec.distributed.types import ModuleSharder, ParameterSharding, ShardingEnv, ShardingPlan, ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from trainer.config import OptimizerConfig, ShardingConfig
from trainer.errors import UserError
from trainer.model.two_tower import TwoTower
from trainer.runtime.row_wise import ShardedBags

SHARE_KEPT_FREE = 0.15
"""Of each rank's memory, which the planner leaves to dense layers, activations and buffers."""


class _BagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's, with our exchange of row-wise tables, and these on the CPU too, where their kernels run.

    Args:
        gradient_scale: None where float32 is exchanged.
    """

    def __init__(self, gradient_scale: float | None) -> None:
        codecs = None
        if gradient_scale is not None:
            half = QCommsConfig(CommType.FP16, CommType.FP16, backward_loss_scale=gradient_scale)
            codecs = get_qcomm_codecs_registry(half, device=torch.device("cpu"))  # which of a GPU's are no others
        # On a GPU, float16 rows would be rounded up or down by chance, which no checkpoint knows.
        super().__init__(fused_params={"stochastic_rounding": False}, qcomm_codecs_registry=codecs)
        self._gradient_scale = gradient_scale

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types = super().sharding_types(compute_device_type)
        return types + [t for t in (ShardingType.ROW_WISE.value,) if t not in types]

    def shard(
        self, module: EmbeddingBagCollection, params: dict[str, ParameterSharding], env: ShardingEnv,
        device: torch.device | None = None, module_fqn: str | None = None,
    ) -> ShardedEmbeddingBagCollection:  # fmt: skip
        return ShardedBags(
            gradient_scale=self._gradient_scale, module=module, table_name_to_parameter_sharding=params, env=env,
            fused_params=self.fused_params, device=device, qcomm_codecs_registry=self.qcomm_codecs_registry,
            module_fqn=module_fqn,
        )  # fmt: skip


def gradient_scale(config: ShardingConfig, global_batch_size: int) -> float | None:
    """By what gradients, of a mean over so many rows, are multiplied on their way in float16: small ones would vanish.

    None where float32 is exchanged. After Yang et al. 2020, "Training Deep Learning Recommendation Model with Quantized
    Collective Communications".
    """
    return float(global_batch_size) if config.exchange == "float16" else None


def sharders(scale: float | None) -> list[ModuleSharder[nn.Module]]:
    """Of the tables; `gradient_scale` says as what their embeddings are exchanged."""
    return [cast(ModuleSharder[nn.Module], _BagSharder(scale))]


@dataclass(frozen=True)
class Cluster:
    """Ranks, and the memory that each may fill."""

    device: str
    """cuda or cpu."""
    ranks: int
    ranks_per_node: int
    device_bytes: int
    """Of a rank's device: a GPU's, or a rank's share of the host's."""
    host_bytes: int
    """A rank's share of the host's."""


def check_tables(config: ShardingConfig, model: TwoTower) -> None:
    """Refuses a sharding of tables that the model does not have.

    Raises:
        UserError: with the name, and those there are.
    """
    tables = [table.name for table in model.embeddings.embedding_bag_configs()]
    unknown = sorted(set(config.tables) - set(tables))
    if unknown:
        raise UserError("sharding.tables", unknown[0], f"one of the tables {tables}", "correct or remove the entry")


def _offered_types(model: TwoTower, config: ShardingConfig) -> dict[str, list[str]]:
    """Sharding types that the planner may choose from, by table."""
    types = {}
    for table in model.embeddings.embedding_bag_configs():
        chosen = config.tables.get(table.name, config.ids if table.name in model.id_tables else config.categoricals)
        # data_parallel is never offered: a replicated table would be updated outside the fused kernel
        types[table.name] = [chosen] if chosen else ["table_wise", "row_wise"]
    return types


def fuse_optimizer(model: TwoTower, config: OptimizerConfig) -> None:
    """Has tables updated inside the backward pass; the planner then counts the optimizer's state."""
    options = {"lr": config.embedding_learning_rate, "weight_decay": config.embedding_weight_decay}
    kind: type[torch.optim.Optimizer] = torch.optim.SGD
    if config.embedding == "rowwise_adagrad":
        kind, options = RowWiseAdagrad, options | {"eps": 1e-8}
    apply_optimizer_in_backward(kind, model.embeddings.parameters(), options)


def make_planner(
    model: TwoTower, config: ShardingConfig, batch_size_per_rank: int, cluster: Cluster
) -> EmbeddingShardingPlanner:
    """TorchRec's planner, as far as a training's config and the ranks' memory decide what it finds.

    It weighs types by bandwidths of its own, the same for every cluster: so the plan of a training is that which
    trainer.plan has shown.
    """
    # otherwise a GPU's tables would go to host memory, where they are many times slower, without a word
    kernels = [EmbeddingComputeKernel.FUSED.value]
    if config.host_memory and cluster.device == "cuda":
        kernels.append(EmbeddingComputeKernel.FUSED_UVM_CACHING.value)
    constraints = {
        table: ParameterConstraints(
            sharding_types=types, compute_kernels=kernels, pooling_factors=model.most_values[table]
        )
        for table, types in _offered_types(model, config).items()
    }
    # of which the planner itself would keep nothing free
    memory = {"ddr_cap_bytes": round((1 - SHARE_KEPT_FREE) * cluster.host_bytes)}
    if cluster.device == "cuda":
        memory["hbm_cap_bytes"] = cluster.device_bytes
    topology = TopologyFactory.create_topology(
        TrainerConfig(world_size=cluster.ranks, local_world_size=cluster.ranks_per_node),
        HardwareConfig(**memory),
        KernelConfig(compute_device=cluster.device),
    )
    return EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size_per_rank,
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(SHARE_KEPT_FREE),
        debug=False,
    )


def planned(config: ShardingConfig, plan: Callable[[], ShardingPlan]) -> ShardingPlan:
    """What a planner finds.

    Raises:
        UserError: it finds nothing that fits.
    """
    try:
        return plan()
    except PlannerError as error:
        raise UserError(
            "sharding", config, "types for which the planner finds a plan that fits",
            "allow other types, use more ranks or smaller tables, or see what python -m trainer.plan offers; the "
            f"planner says: {error}",
        ) from None  # fmt: skip
