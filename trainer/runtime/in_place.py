"""A trained model whose tables stay where they are: in the checkpoint's files.

What walks through the catalogue or a split once, from one end to the other, looks up few rows of each table at a time.
Such a process reads these rows from the files, which the system's page cache serves, in place of taking its part of
every table and exchanging with all other ranks what each of them looks up. So it needs no more memory, whatever the
tables' size, and no other rank; and what it finds does not depend on how many there are, to the last bit: a list is
added up in its own order.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trainer.model.two_tower import TwoTower, make_model
from trainer.runtime import saved_model
from trainer.runtime.loading import SavedRun, refuse_damaged
from trainer.runtime.saved_table import SavedTable

# B bags, V values of a feature, D its width

ROWS_IN_CACHE = 1024
"""Rows that go through a tower's layers at a time on a CPU: some hundred floats of each then stay in its cache."""


@dataclass(frozen=True)
class _Pooled:
    """What an embedding collection gives, as far as TwoTower asks for it."""

    by_feature: dict[str, Tensor]

    def to_dict(self) -> dict[str, Tensor]:
        return self.by_feature


class _TablesInPlace(nn.Module):
    """In place of the collection that has the tables in memory.

    Args:
        tables: of that collection.
        path: of the checkpoint that has them.
        device: where the rows are wanted.
    """

    def __init__(self, tables: list[EmbeddingBagConfig], path: Path, device: torch.device) -> None:
        super().__init__()
        saved = {table.name: SavedTable(path, table.name) for table in tables}
        self._tables = {feature: saved[table.name] for table in tables for feature in table.feature_names}
        self._device = device

    def forward(self, features: KeyedJaggedTensor) -> _Pooled:
        """As the collection does: the sum of a list, by its weights if any, float32 [B, D] of each feature."""
        keys, length_FB = features.keys(), features.lengths().cpu().view(len(features.keys()), -1)
        counts, weights = length_FB.sum(1).tolist(), features.weights_or_none()
        value_of = features.values().cpu().split(counts)
        weight_of = [None] * len(keys) if weights is None else weights.cpu().split(counts)
        pooled = {
            key: _pool(self._tables[key], value_V, length_B, weight_V)
            for key, value_V, length_B, weight_V in zip(keys, value_of, length_FB, weight_of, strict=True)
        }
        return _Pooled({key: row_BD.to(self._device) for key, row_BD in pooled.items()})


def _pool(table: SavedTable, value_V: Tensor, length_B: Tensor, weight_V: Tensor | None) -> Tensor:
    if not len(value_V):  # as all of the query's are, where items are embedded
        return torch.zeros(1).expand(len(length_B), table.dim)
    row_VD = table.take(value_V)
    if weight_V is None and len(row_VD) == len(length_B) == int(length_B.count_nonzero()):
        return row_VD  # one value in each
    if weight_V is not None:
        row_VD = row_VD * weight_V[:, None]
    return torch.segment_reduce(row_VD, "sum", lengths=length_B.long(), axis=0, initial=0)


class _InCache(nn.Module):
    """Layers that a batch goes through part by part, which takes three quarters of the time.

    Args:
        layers: of a tower.
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self._layers = layers

    def forward(self, input: Tensor) -> Tensor:
        """As the layers do."""
        return torch.cat([self._layers(part) for part in input.split(ROWS_IN_CACHE)])


def load_in_place(run: SavedRun, device: torch.device) -> TwoTower:
    """The run's model in evaluation mode; all processes of the group call this together, and then each goes its way.

    Args:
        run: from `open_run`.
        device: of the towers.

    Raises:
        UserError: files of the checkpoint are damaged, or are of another model.
    """
    refuse_damaged(run.checkpoint)
    model = make_model(run.trained, run.assembler.features, run.config)
    tables = model.embeddings.embedding_bag_configs()
    model.embeddings = _TablesInPlace(tables, run.checkpoint, device)
    saved_model.load_dense(model, run.checkpoint)
    if device.type == "cpu":
        for tower in (model.query_tower, model.candidate_tower):
            tower.mlp = nn.Sequential(_InCache(tower.mlp))
    return model.to(device).eval()
