"""One tower: features already looked up, combined with the dense ones, through cross layers and an MLP, to length 1."""

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
        self._takes_logs = any(feature.log1p for feature in features)
        self.log1p_C: Tensor
        self.mean_C: Tensor
        self.std_C: Tensor
        self.register_buffer("log1p_C", torch.tensor([f.log1p for f in columns], dtype=torch.bool), persistent=False)
        self.register_buffer("mean_C", torch.tensor([f.mean for f in columns]), persistent=False)
        self.register_buffer("std_C", torch.tensor([f.std for f in columns]), persistent=False)

    def forward(self, dense_BC: Tensor) -> Tensor:
        """float32 [B, C] -> float32 [B, C]."""
        scaled_BC = torch.where(self.log1p_C, dense_BC.log1p(), dense_BC) if self._takes_logs else dense_BC
        return ((scaled_BC - self.mean_C) / self.std_C).nan_to_num(nan=0.0)


class Tower(nn.Module):
    """Embeddings of one side from its features.

    Args:
        side: query or candidate, for messages.
        features: its inputs; looked-up ones come first in the concatenation, then dense ones, each in this order.
        dims: width of what is looked up for each feature, by name.
        config: features and layers.
        embedding_dim: D.
        normalize: whether the result has length 1.

    Attributes:
        widths: of each feature, by name, in the order of the concatenation.

    Raises:
        UserError: the tower has no features; inputs of a sum, or without a layer that follows, whose width is not D; or
            residual layers of different widths.
    """

    def __init__(
        self, side: str, features: Sequence[Feature], dims: Mapping[str, int], config: TowerConfig,
        embedding_dim: int, normalize: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        dense = [feature for feature in features if not feature.is_sparse]
        self.sparse_names = [feature.name for feature in features if feature.is_sparse]
        self.widths = {name: dims[name] for name in self.sparse_names} | {f.name: f.dim for f in dense}
        self.normalize = normalize
        if not features:
            raise UserError(
                f"model.{side}.features", config.features, "at least one feature", "name one or set it to null"
            )
        self.standardize = Standardize(dense)
        self.dense_term: nn.Linear | None = None
        num_dense = sum(feature.dim for feature in dense)
        width = sum(self.widths.values())
        self.is_sum = config.combine == "sum"
        if self.is_sum:
            _check_sum(side, {name: dims[name] for name in self.sparse_names}, embedding_dim)
            self.dense_term = nn.Linear(num_dense, embedding_dim) if num_dense else None
            width = embedding_dim
        if config.hidden is None and width != embedding_dim:
            raise UserError(
                f"model.{side}.hidden", None, f"inputs of width {embedding_dim} where no layer follows, not {width}",
                f"set model.{side}.hidden=[] for a linear layer, or choose other features",
            )  # fmt: skip
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(config.cross_layers))
        self.mlp = nn.Sequential() if config.hidden is None else _mlp(side, width, config, embedding_dim)

    def forward(self, embedded: Mapping[str, Tensor], dense_BC: Tensor) -> Tensor:
        """Looked-up features by name, each [B, ..., its width], and dense ones -> [B, ..., D]."""
        inputs = [embedded[name] for name in self.sparse_names]
        if dense_BC.shape[1]:
            dense_BC = self.standardize(dense_BC)
            inputs.append(self.dense_term(dense_BC) if self.dense_term else dense_BC)
        first = _of_one_shape(inputs)
        combined = sum(first[1:], first[0]) if self.is_sum else torch.cat(first, dim=-1)
        crossed = combined
        for layer in self.cross:
            # Wang et al. 2021, "DCN V2", equation 1
            crossed = combined * layer(crossed) + crossed
        embedding = self.mlp(crossed).float()  # which run.matrix_products may have rounded
        return F.normalize(embedding, dim=-1) if self.normalize else embedding


class _Residual(nn.Sequential):
    """Layers whose input is added to their output."""

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def _mlp(side: str, width: int, config: TowerConfig, embedding_dim: int) -> nn.Sequential:
    hidden = config.hidden or []
    if config.residual and len(set(hidden)) > 1:
        raise UserError(f"model.{side}.hidden", hidden, "equal widths where residual=true",
                        f"set model.{side}.residual=false, or one width")  # fmt: skip
    blocks: list[nn.Module] = []
    for number, out in enumerate(hidden):
        norm = [nn.LayerNorm(out)] if config.layer_norm else []
        dropout = [nn.Dropout(config.dropout)] if config.dropout else []
        layers = [nn.Linear(width, out), *norm, nn.ReLU(inplace=True), *dropout]
        blocks += [_Residual(*layers)] if config.residual and number else layers
        width = out
    return nn.Sequential(*blocks, nn.Linear(width, embedding_dim))


def _check_sum(side: str, dims: Mapping[str, int], embedding_dim: int) -> None:
    other = {name: dim for name, dim in dims.items() if dim != embedding_dim}
    if other:
        raise UserError(f"model.{side}.combine", f"sum of widths {other}", f"inputs of embedding_dim={embedding_dim}",
                        f"set model.categorical_dim={embedding_dim}, or combine=concatenate")  # fmt: skip


def _of_one_shape(inputs: Sequence[Tensor]) -> list[Tensor]:
    """What there is once a query, beside what there is for each of its interests."""
    most = max(value.dim() for value in inputs)
    shape = next(value.shape[:-1] for value in inputs if value.dim() == most)
    return [value if value.dim() == most else value[:, None].expand(*shape, value.shape[-1]) for value in inputs]
