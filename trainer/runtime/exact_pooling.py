"""Lists pooled where they are wanted, so that the order of each sum, and its last bits, do not depend on the ranks.

Where a table is split by rows, every rank adds up what it holds of a list, and what the ranks have is added up then: on
another number of ranks, in another order. Here each value is looked up by itself, which is exact, for all other ranks
have zeros to add; then a list is added up in its own order. It sends as many rows as a list has values, so it is for
exports of lists alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trainer.model.two_tower import TwoTower
from trainer.runtime.gather import gather

# B bags, V values of a feature, D its width


@dataclass(frozen=True)
class _Pooled:
    """What an embedding collection gives, as far as TwoTower asks for it."""

    by_feature: dict[str, Tensor]

    def to_dict(self) -> dict[str, Tensor]:
        return self.by_feature


class _ExactPooling(nn.Module):
    """In place of the sharded collection that it asks; all ranks call it together."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self._embeddings = embeddings

    def forward(self, features: KeyedJaggedTensor) -> _Pooled:
        """As the collection does: the mean of a list, or its weighted sum, float32 [B, D] of each feature."""
        keys, length_FB = features.keys(), features.lengths().view(len(features.keys()), -1).long()
        counts = length_FB.sum(1).tolist()
        rows = self._embeddings(_one_by_one(features, counts)).to_dict()
        weights = features.weights_or_none()
        pooled, start = {}, 0
        for key, length_B, count in zip(keys, length_FB, counts, strict=True):
            row_VD = rows[key][:count]
            weight_V = None if weights is None else weights[start : start + count]
            pooled[key], start = _pool(row_VD, length_B, weight_V), start + count
        return _Pooled(pooled)


def _one_by_one(features: KeyedJaggedTensor, counts: list[int]) -> KeyedJaggedTensor:
    """Each value in a bag of its own, with as many bags on every rank."""
    bags = int(gather(torch.tensor([max(counts)])).max())
    length = features.lengths().new_zeros(len(counts), bags)
    for place, count in zip(length, counts, strict=True):
        place[:count] = 1
    weights = features.weights_or_none()
    ones = None if weights is None else torch.ones_like(weights)
    return KeyedJaggedTensor(features.keys(), features.values(), weights=ones, lengths=length.view(-1))


def _pool(row_VD: Tensor, length_B: Tensor, weight_V: Tensor | None) -> Tensor:
    if not len(row_VD):
        return row_VD.new_zeros(len(length_B), row_VD.shape[1])
    if weight_V is not None:
        row_VD = row_VD * weight_V[:, None]
    sum_BD = torch.segment_reduce(row_VD, "sum", lengths=length_B, axis=0, initial=0)
    return sum_BD if weight_V is not None else sum_BD / length_B.clamp(min=1)[:, None]


def pool_exactly(model: nn.Module) -> None:
    """Makes a loaded model's embeddings the same, bit for bit, on any number of ranks; it cannot be saved any more."""
    two_tower = next(module for module in model.modules() if isinstance(module, TwoTower))
    two_tower.embeddings = _ExactPooling(two_tower.embeddings)
