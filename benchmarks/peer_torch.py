"""The two works as one writes them in plain PyTorch: nn.Embedding with sparse gradients, a row-wise Adagrad of twelve
lines, cross-entropy on all logits. For throughput.py:

    python benchmarks/peer_torch.py ids FILE
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
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


class RowWiseAdagrad(torch.optim.Optimizer):
    """Of sparse gradients; one number of state a row."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad.coalesce()
                row, value = gradient.indices()[0], gradient.values()
                total = self.state[parameter].setdefault("sum", torch.zeros(len(parameter)))
                total[row] += value.square().mean(1)
                parameter.index_add_(0, row, value / (total[row].sqrt() + 1e-8)[:, None], alpha=-group["lr"])


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM))


class TwoTower(nn.Module):
    def __init__(self, work: str) -> None:
        super().__init__()
        self.user, self.item = (nn.Embedding(rows + 1, DIM, sparse=True) for rows in (USERS, ITEMS))
        self.has_features = work == "features"
        if self.has_features:
            sizes = CATEGORICALS | {"item_category": ITEM_CATEGORIES}
            self.categoricals = nn.ModuleDict(
                {name: nn.Embedding(size + 1, CATEGORICAL_DIM, sparse=True) for name, size in sizes.items()}
            )
            self.query_layers = mlp(2 * DIM + len(CATEGORICALS) * CATEGORICAL_DIM + len(NUMERICS))
            self.item_layers = mlp(DIM + CATEGORICAL_DIM + len(ITEM_NUMERICS) + TEXT)
        else:
            self.query_layers, self.item_layers = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.05)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        query, item = self.user(batch["user_id"]), self.item(batch["item_id"])
        if self.has_features:
            values, offsets = batch["history"]
            history = F.embedding_bag(
                values, self.item.weight, offsets, mode="mean", sparse=True, include_last_offset=True
            )
            of_query = [self.categoricals[name](batch[name]) for name in CATEGORICALS]
            query = torch.cat([query, history, *of_query, batch["query_dense"]], 1)
            item = torch.cat([item, self.categoricals["item_category"](batch["item_category"]), batch["item_dense"]], 1)
        query, item = F.normalize(self.query_layers(query)), F.normalize(self.item_layers(item))
        return F.cross_entropy(query @ item.T / TEMPERATURE, torch.arange(len(query)))


def tensors(batch: Batch) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, column in batch.items():
        if isinstance(column, tuple):
            found[name] = tuple(torch.from_numpy(part).long() for part in column)
        elif column.dtype.kind == "i":
            found[name] = torch.from_numpy(column).long()
    if "history" in batch:
        dense = [torch.from_numpy(batch[name])[:, None] for name in ITEM_NUMERICS] + [
            torch.from_numpy(batch["item_text"])
        ]
        found["query_dense"] = torch.stack([torch.from_numpy(batch[name]) for name in NUMERICS], 1)
        found["item_dense"] = torch.cat(dense, 1)
    return found


def main() -> None:
    arguments = peer_arguments().parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = TwoTower(arguments.work)
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    layers = [*model.query_layers.parameters(), *model.item_layers.parameters()]
    optimizers = [torch.optim.Adam(layers, DENSE_RATE, fused=True), RowWiseAdagrad(tables, TABLE_RATE)]
    rows = ahead(map(tensors, batches(arguments.file, arguments.work, BATCH)))

    def step() -> Tensor:
        loss = model.loss(next(rows))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss.detach()

    tell(timed(step, arguments.seconds))


if __name__ == "__main__":
    main()
