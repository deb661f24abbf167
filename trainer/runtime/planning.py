"""What a training would take of a cluster that is only described, and what to change where it does not fit."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

from torch.distributed._shard.sharding_spec import EnumerableShardingSpec
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ParameterSharding
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from trainer.checks import check_batch_size, check_negatives, check_train_config
from trainer.config import PlanConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.row_groups import open_events, open_sequences
from trainer.data.schema import read_schema
from trainer.errors import UserError
from trainer.model.two_tower import TwoTower, make_model
from trainer.runtime.placement import (
    SHARE_KEPT_FREE,
    Cluster,
    check_tables,
    fuse_optimizer,
    gradient_scale,
    make_planner,
    planned,
    sharders,
)
from trainer.runtime.step_costs import FLOAT, HALF, Exchange, PlacedTable, exchanges, memory, seconds
from trainer.runtime.step_sizes import StepSizes, step_sizes, with_rows

GIB = 1 << 30
_PROCESS = 1.0 * GIB
"""Of the host's memory, which a rank takes for its libraries: 0.4 measured on the CPU; CUDA's take more."""
_CONTEXT = 2.0 * GIB
"""Of a GPU's memory, which CUDA, NCCL and gaps between what is allocated take: an assumption."""
_MOST_NODES = 64
"""Times as many as asked about, which are tried."""


@dataclass(frozen=True)
class ClusterPlan:
    """Of one config on one cluster.

    Attributes:
        config: asked about.
        batch_size_per_rank: rows.
        sizes: of a rank's step.
        tables: placed by TorchRec's planner.
        sent: by a rank in a step.
        memory: bytes on the device of the rank that holds most, by what they are for.
        host: bytes of a machine's memory, likewise.
        seconds: of each part of a step.
    """

    config: PlanConfig
    batch_size_per_rank: int
    sizes: StepSizes
    tables: list[PlacedTable]
    sent: list[Exchange]
    memory: dict[str, float]
    host: dict[str, float]
    seconds: dict[str, float]

    @property
    def fits(self) -> bool:
        """Whether every rank and every machine has room for all of it, and some to spare."""
        cluster = self.config.plan
        device = cluster.device == "cpu" or sum(self.memory.values()) <= (1 - SHARE_KEPT_FREE) * cluster.hbm_gib * GIB
        return device and sum(self.host.values()) <= (1 - SHARE_KEPT_FREE) * cluster.host_gib * GIB


class Planning:
    """Opens the data once, to plan with any number of configs.

    Args:
        config: of the training and the cluster.

    Raises:
        UserError: config and data do not go together.
    """

    def __init__(self, config: PlanConfig) -> None:
        self._data = read_schema(config.data.dir)
        self._schema = with_rows(self._data, config.plan.rows)
        self._features = self._schema.select(config.model.query.features, config.model.candidate.features)
        self._catalog = Catalog(config.data.dir, self._data)
        check_negatives(config.model.loss, len(self._catalog))
        tables = {feature.table for feature in self._features if feature.is_sparse}
        for table in config.plan.rows:
            if table not in tables:
                raise UserError("plan.rows", table, f"one of the tables {sorted(tables)}", "correct or remove it")

    def plan(self, config: PlanConfig) -> ClusterPlan:
        """The planner's plan, and what a step takes.

        Raises:
            UserError: the planner finds none that fits, or config and cluster do not go together.
        """
        plan = config.plan
        ranks, dim, on_cpu = plan.nodes * plan.ranks_per_node, config.model.embedding_dim, plan.device == "cpu"
        at_once = check_batch_size(config.data, ranks)
        tables = self.place(config, at_once)
        in_data = self._data.select(config.model.query.features, config.model.candidate.features)
        assembler = BatchAssembler(self._data, in_data, self._catalog, config.model, config.run.seed)
        columns = assembler.columns(config.data.layout)
        if config.data.layout == "sequence":
            files = open_sequences(config.data.dir, self._data, columns)
        else:
            files = open_events(config.data.dir, self._data, "train", columns)
        all_distinct = self._schema.item_id.table in plan.rows
        sizes = step_sizes(config, self._schema, self._features, assembler, files, at_once, ranks, all_distinct)
        items = max(len(self._catalog), plan.rows.get(self._schema.item_id.table, 0))
        held = memory(sizes, tables, ranks, dim, plan.device, items if config.run.monitor else 0)
        sent = exchanges(sizes, tables, ranks, dim, config.sharding.exchange, plan.device)
        local = plan.ranks_per_node
        copies = sum(held[name] for name in ("rows of tables", "their optimizer's state")) * local
        host = {
            "row groups of the reader": float(local * (config.data.streams // ranks + 2) * files.largest),
            "libraries": local * _PROCESS,
            "copies for checkpoints": copies if config.run.save_in_background else 0.0,
        }
        if on_cpu:
            host |= {name: value * local for name, value in held.items()}
        else:
            host["tables"] = float(local * max(sum(table.on_host(rank) for table in tables) for rank in range(ranks)))
            if config.run.save_in_background:
                host["copies for checkpoints"] += host["tables"]
            held["CUDA and NCCL"] = _CONTEXT
        return ClusterPlan(config, at_once, sizes, tables, sent, held, host, seconds(sizes, tables, sent, plan, dim))

    def place(self, config: PlanConfig, batch_size_per_rank: int) -> list[PlacedTable]:
        """Where the planner puts the tables, as in a training on such a cluster.

        Raises:
            UserError: it finds no place.
        """
        plan = config.plan
        model = make_model(self._schema, self._features, config)
        check_tables(config.sharding, model)
        fuse_optimizer(model, config.optimizer)
        of_host = round(plan.host_gib * GIB / plan.ranks_per_node)
        of_device = of_host if plan.device == "cpu" else round(plan.hbm_gib * GIB)
        ranks = plan.nodes * plan.ranks_per_node
        cluster = Cluster(plan.device, ranks, plan.ranks_per_node, of_device, of_host)
        planner = make_planner(model, config.sharding, batch_size_per_rank, cluster)
        of_tables = sharders(gradient_scale(config.sharding, config.data.global_batch_size))
        found = planned(config.sharding, partial(planner.plan, model, of_tables)).plan["embeddings"]
        assert isinstance(found, EmbeddingModuleShardingPlan)
        number, state = _bytes(config)
        return [
            _placed(table, found[table.name], ranks, number, state)
            for table in model.embeddings.embedding_bag_configs()
        ]

    def table_bytes(self, config: PlanConfig) -> dict[str, int]:
        """Of each table with its optimizer's state over all ranks, the largest first."""
        model: TwoTower = make_model(self._schema, self._features, config)
        number, state = _bytes(config)
        found = {
            t.name: t.num_embeddings * (t.embedding_dim * number + state)
            for t in model.embeddings.embedding_bag_configs()
        }
        return dict(sorted(found.items(), key=lambda entry: -entry[1]))

    def fitting(self, config: PlanConfig) -> ClusterPlan:
        """The plan, if it fits.

        Raises:
            UserError: it does not. Which tables are to blame, and what makes it fit, the smallest change first.
        """
        found = self._tried(config)
        if found is not None:
            return found
        cluster, capacity = config.plan, _capacity(config)
        left, blamed = sum((sizes := self.table_bytes(config)).values()), []
        for table, size in sizes.items():
            blamed.append(f"{table} with {size / GIB:,.1f} GiB")
            left -= size
            if left <= capacity / 2:
                break
        changes, ranks = self.changes(config), cluster.nodes * cluster.ranks_per_node
        raise UserError(
            "plan", f"{ranks} ranks on {cluster.nodes} machines, {capacity / GIB:,.0f} GiB in all",
            f"room for tables, layers, activations and exchange; what takes most is {', '.join(blamed)}",
            "any one of these makes it fit: " + "; or ".join(changes) if changes else
            "fewer rows, for no change that was tried makes it fit",
        )  # fmt: skip

    def changes(self, config: PlanConfig) -> list[str]:
        """Overrides, each of which makes the config fit, found by planning with it; the smallest change first."""
        found = []
        if config.model.table_dtype == "float32":
            halved = deepcopy(config)
            halved.model.table_dtype = "float16"
            if self._would_fit(halved):
                found.append("model.table_dtype=float16")
        if config.plan.device == "cuda" and not config.sharding.host_memory:
            in_host_memory = deepcopy(config)
            in_host_memory.sharding.host_memory = True
            if self._would_fit(in_host_memory):
                found.append("sharding.host_memory=true")
        now, dim = config.plan.nodes, config.model.embedding_dim
        # so many are needed for the tables alone, however they lie
        least = math.ceil(sum(self.table_bytes(config).values()) / (_capacity(config) / now))
        first = max(now + 1, least)
        nodes = _least(first, max(first, now * _MOST_NODES), lambda n: self._would_fit(_on_nodes(config, n)))
        if nodes:
            data = _on_nodes(config, nodes).data
            batch = f"data.global_batch_size={data.global_batch_size}"
            found.append(f"plan.nodes={nodes} data.streams={data.streams} {batch}")
        step = 2 * config.model.history.heads if config.model.history.encoder == "transformer" else 4
        less = (dim - 1) // step
        by = _least(1, less, lambda n: self._would_fit(_narrower(config, (less + 1 - n) * step))) if less else None
        if by:
            found.append(f"model.embedding_dim={(less + 1 - by) * step}")
        return found

    def _would_fit(self, changed: PlanConfig) -> bool:
        """Whether it does; a change that the model or the data does not allow does not."""
        try:
            check_train_config(changed)
            return self._tried(changed) is not None
        except UserError:
            return False

    def _tried(self, config: PlanConfig) -> ClusterPlan | None:
        try:
            found = self.plan(config)
        except UserError as error:
            if error.field != "sharding":
                raise
            return None
        return found if found.fits else None


def _least(first: int, most: int, holds: Callable[[int], bool]) -> int | None:
    """The least number in [first, most] for which it holds, if it does for all from there on."""
    below, reach = first - 1, first
    while not holds(reach):
        if reach == most:
            return None
        below, reach = reach, min(most, first + 2 * (reach - first) + 1)
    while reach - below > 1:
        middle = (below + reach) // 2
        below, reach = (below, middle) if holds(middle) else (middle, reach)
    return reach


def _on_nodes(config: PlanConfig, nodes: int) -> PlanConfig:
    """With as many streams, and rows of a batch, as so many ranks can share."""
    changed = deepcopy(config)
    ranks = nodes * config.plan.ranks_per_node
    streams = ranks * max(1, round(config.data.streams / ranks))
    changed.plan.nodes, changed.data.streams = nodes, streams
    changed.data.global_batch_size = -(-config.data.global_batch_size // streams) * streams
    return changed


def _capacity(config: PlanConfig) -> float:
    """Bytes that tables may be spread over."""
    cluster = config.plan
    if cluster.device == "cpu":
        return cluster.host_gib * cluster.nodes * GIB
    return cluster.hbm_gib * cluster.nodes * cluster.ranks_per_node * GIB


def _narrower(config: PlanConfig, dim: int) -> PlanConfig:
    changed = deepcopy(config)
    changed.model.embedding_dim = dim
    return changed


def _bytes(config: PlanConfig) -> tuple[int, int]:
    """Of a number in a table, and of the optimizer's state for a row."""
    number = HALF if config.model.table_dtype == "float16" else FLOAT
    return number, FLOAT if config.optimizer.embedding == "rowwise_adagrad" else 0


def _placed(table: EmbeddingBagConfig, sharding: ParameterSharding, ranks: int, number: int, state: int) -> PlacedTable:
    rows = [0] * ranks
    assert isinstance(sharding.sharding_spec, EnumerableShardingSpec)
    for shard in sharding.sharding_spec.shards:
        rank = shard.placement.rank() if shard.placement else None
        assert rank is not None
        rows[rank] += shard.shard_sizes[0]
    return PlacedTable(
        table.name,
        table.feature_names,
        sharding.sharding_type,
        sharding.compute_kernel,
        table.embedding_dim,
        rows,
        table.embedding_dim * number,
        state,
    )
