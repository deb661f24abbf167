"""The two works as one writes them with TorchRec alone: an EmbeddingBagCollection under DistributedModelParallel with a
fused row-wise Adagrad, cross-entropy on all logits, and a thread that reads ahead. For throughput.py:

    torchrun --nproc-per-node 2 benchmarks/peer_torchrec.py features FILE

Over several ranks the big tables are sharded row-wise, and items are gathered with gradient.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import PoolingType
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from works import (
    BATCH,
    CATEGORICAL_DIM,
    CATEGORICALS,
    DENSE_RATE,
    DIM,
    HIDDEN,
    ITEM_CATEGORIES,
    ITEM_NUMERICS,
    ITEMS,
    NUMERICS,
    TABLE_RATE,
    TEMPERATURE,
    TEXT,
    USERS,
    Batch,
    ahead,
    batches,
    peer_arguments,
    tell,
    timed,
)


class Sharder(EmbeddingBagCollectionSharder):
    """Which lets tables be sharded row-wise on a CPU too."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [*super().sharding_types(compute_device_type), "row_wise"]


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM))


class TwoTower(nn.Module):
    def __init__(self, work: str) -> None:
        super().__init__()
        features = work == "features"
        self.of_query = ["user_id", "history", *CATEGORICALS] if features else ["user_id"]
        self.of_item = ["item_id", "item_category"] if features else ["item_id"]
        small = CATEGORICALS | {"item_category": ITEM_CATEGORIES} if features else {}
        tables = [("user_id", USERS, DIM, ["user_id"]), ("item_id", ITEMS, DIM, self.of_item[:1])]
        if features:
            tables[1][3].append("history")
        tables += [(name, size, CATEGORICAL_DIM, [name]) for name, size in small.items()]
        self.tables = EmbeddingBagCollection(device=torch.device("meta"), tables=[
            EmbeddingBagConfig(name=name, num_embeddings=rows + 1, embedding_dim=dim, feature_names=names,
                               pooling=PoolingType.MEAN, init_fn=lambda weight: nn.init.normal_(weight, std=0.05))
            for name, rows, dim, names in tables])  # fmt: skip
        if features:
            self.query_layers = mlp(2 * DIM + len(CATEGORICALS) * CATEGORICAL_DIM + len(NUMERICS))
            self.item_layers = mlp(DIM + CATEGORICAL_DIM + len(ITEM_NUMERICS) + TEXT)
        else:
            self.query_layers, self.item_layers = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, features: KeyedJaggedTensor, dense: list[Tensor]) -> Tensor:
        found = self.tables(features).to_dict()
        query = F.normalize(self.query_layers(torch.cat([*(found[name] for name in self.of_query), *dense[:1]], 1)))
        item = F.normalize(self.item_layers(torch.cat([*(found[name] for name in self.of_item), *dense[1:]], 1)))
        first = dist.get_rank() * len(query)
        if dist.get_world_size() > 1:
            item = torch.cat(all_gather(item))
        return F.cross_entropy(query @ item.T / TEMPERATURE, torch.arange(first, first + len(query)))


def tensors(batch: Batch) -> tuple[KeyedJaggedTensor, list[Tensor]]:
    single = [name for name in batch if name in ("user_id", "item_id", "item_category", *CATEGORICALS)]
    names, values = [*single], [torch.from_numpy(batch[name]) for name in single]
    lengths = [torch.ones(len(single) * len(batch["user_id"]), dtype=torch.int32)]
    dense = []
    if "history" in batch:
        items, offsets = map(torch.from_numpy, batch["history"])
        names, values, lengths = [*names, "history"], [*values, items], [*lengths, offsets.diff().int()]
        item = [torch.from_numpy(batch[name])[:, None] for name in ITEM_NUMERICS] + [
            torch.from_numpy(batch["item_text"])
        ]
        dense = [torch.stack([torch.from_numpy(batch[name]) for name in NUMERICS], 1), torch.cat(item, 1)]
    return KeyedJaggedTensor(names, torch.cat(values), lengths=torch.cat(lengths)), dense


def sharded(model: TwoTower) -> DistributedModelParallel:
    apply_optimizer_in_backward(RowWiseAdagrad, model.tables.parameters(), {"lr": TABLE_RATE, "eps": 1e-8})
    world_size = dist.get_world_size()
    big = "row_wise" if world_size > 1 else "table_wise"
    constraints = {
        table.name: ParameterConstraints(sharding_types=[big if table.embedding_dim == DIM else "table_wise"])
        for table in model.tables.embedding_bag_configs()
    }
    topology = Topology(world_size=world_size, local_world_size=world_size, compute_device="cpu")
    sharders: list[Any] = [Sharder()]
    group = dist.GroupMember.WORLD
    assert group is not None
    plan = EmbeddingShardingPlanner(topology, constraints=constraints).collective_plan(model, sharders, group)
    return DistributedModelParallel(
        model, ShardingEnv.from_process_group(group), torch.device("cpu"), plan=plan, sharders=sharders
    )


def main() -> None:
    arguments = peer_arguments().parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = sharded(TwoTower(arguments.work))
    layers = [parameter for name, parameter in model.named_parameters() if "layers" in name]
    optimizer = torch.optim.Adam(layers, DENSE_RATE, fused=True)
    rows = ahead(map(tensors, batches(arguments.file, arguments.work, BATCH // world_size, rank, world_size)))

    def step() -> Tensor:
        loss = model(*next(rows))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def agreed(steps: int) -> int:
        least = torch.tensor(steps)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    found = timed(step, arguments.seconds, agreed)
    if rank == 0:
        tell(found)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
