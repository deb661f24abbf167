"""One tower: features already looked up, concatenated with the dense ones, through an MLP, to length 1."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import TowerConfig
from trainer.data.schema import Feature
from trainer.errors import UserError

# B rows, D embedding dim, C dense columns


class Standardize(nn.Module):
    """Dense inputs as the layers want them: log1p where asked for, mean 0, variance 1, and 0 where missing.

    Args:
        features: the dense ones, in the order of the columns. A vector's columns pass unchanged.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        super().__init__()
        columns = [feature for feature in features for _ in range(feature.dim)]
        self.log1p_C: Tensor
        self.mean_C: Tensor
        self.std_C: Tensor
        self.register_buffer("log1p_C", torch.tensor([f.log1p for f in columns], dtype=torch.bool), persistent=False)
        self.register_buffer("mean_C", torch.tensor([f.mean for f in columns]), persistent=False)
        self.register_buffer("std_C", torch.tensor([f.std for f in columns]), persistent=False)

    def forward(self, dense_BC: Tensor) -> Tensor:
        """float32 [B, C] -> float32 [B, C]."""
        scaled_BC = torch.where(self.log1p_C, dense_BC.log1p(), dense_BC)
        return ((scaled_BC - self.mean_C) / self.std_C).nan_to_num(nan=0.0)


class Tower(nn.Module):
    """Embeddings of one side from its features.

    Args:
        side: query or candidate, for messages.
        features: its inputs; looked-up ones come first in the concatenation, then dense ones, each in this order.
        dims: width of each embedding table, by table name.
        config: features and hidden layers.
        embedding_dim: D.
        normalize: whether the result has length 1.

    Raises:
        UserError: the tower has no features, or no layer and inputs whose width is not D.
    """

    def __init__(
        self, side: str, features: Sequence[Feature], dims: Mapping[str, int], config: TowerConfig,
        embedding_dim: int, normalize: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        dense = [feature for feature in features if not feature.is_sparse]
        self.sparse_names = [feature.name for feature in features if feature.is_sparse]
        self.normalize = normalize
        width = sum(dims[feature.table] for feature in features if feature.is_sparse) + sum(f.dim for f in dense)
        if width == 0:
            raise UserError(
                f"model.{side}.features", config.features, "at least one feature", "name one or set it to null"
            )
        if config.hidden is None and width != embedding_dim:
            raise UserError(
                f"model.{side}.hidden", None, f"inputs of width {embedding_dim} where no layer follows, not {width}",
                f"set model.{side}.hidden=[] for a linear layer, or choose other features",
            )  # fmt: skip
        self.standardize = Standardize(dense)
        self.mlp = nn.Sequential() if config.hidden is None else _mlp(width, config.hidden, embedding_dim)

    def forward(self, embedded: Mapping[str, Tensor], dense_BC: Tensor) -> Tensor:
        """Looked-up features by name, each [B, its table's width], and dense ones -> [B, D]."""
        inputs = [embedded[name] for name in self.sparse_names]
        embedding_BD = self.mlp(torch.cat([*inputs, self.standardize(dense_BC)], dim=1))
        return F.normalize(embedding_BD, dim=1) if self.normalize else embedding_BD


def _mlp(width: int, hidden: Sequence[int], embedding_dim: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for out in hidden:
        layers += [nn.Linear(width, out), nn.ReLU()]
        width = out
    return nn.Sequential(*layers, nn.Linear(width, embedding_dim))
