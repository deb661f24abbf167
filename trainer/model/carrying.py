"""What becomes of a model's layers when features come or go, so that at first it scores as before.

The layers that see the concatenated inputs keep the weights of the inputs that stay, in their new places; for new
inputs their weights are zero, and learn from the first step on.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.model.tower import Tower
from trainer.model.two_tower import TwoTower, dense_parameters

_DENSE_TERM = "dense_term"


@dataclass(frozen=True)
class Carried:
    """How a parameter is filled from one of another model."""

    name: str
    """In the other model."""
    kept: tuple[tuple[Tensor, Tensor], ...]
    """For each dimension the places that are kept: there, and here."""

    @torch.no_grad()
    def fill(self, here: Tensor, there: Tensor) -> None:
        """Writes what is kept; in rows that are kept, what stands for new inputs becomes zero.

        Args:
            here: the parameter, or a tensor that goes with it, filled in place.
            there: the same of the other model.
        """
        if not self.kept:
            here.copy_(there)
            return
        here[self.kept[0][1].to(here.device)] = 0
        source = there[torch.meshgrid(*(place for place, _ in self.kept), indexing="ij")]
        here[torch.meshgrid(*(place.to(here.device) for _, place in self.kept), indexing="ij")] = source.to(here.device)


def carried(before: TwoTower, now: TwoTower) -> dict[str, Carried]:
    """For each dense parameter of a model, how it is filled from another that differs in features alone.

    Layers correspond by their order: dropout, which has no parameters, may number them otherwise. What is left out is
    new, and begins at zero: it is the layer of a sum's dense inputs, which had none.
    """
    old, new = dense_parameters(before), dense_parameters(now)
    in_order = [[name for name in names if _DENSE_TERM not in name] for names in (old, new)]
    pairs = list(zip(*in_order, strict=True)) + [(name, name) for name in new if _DENSE_TERM in name and name in old]
    return {name: Carried(other, _kept(before, now, name, new[name].shape)) for other, name in pairs}


def _kept(before: TwoTower, now: TwoTower, name: str, shape: torch.Size) -> tuple[tuple[Tensor, Tensor], ...]:
    side, _, layer = name.partition(".")
    along = [(torch.arange(size), torch.arange(size)) for size in shape]
    if side not in ("query_tower", "candidate_tower"):
        return tuple(along)
    tower, other = getattr(now, side), getattr(before, side)
    if layer.startswith(_DENSE_TERM) and len(shape) == 2:
        along[1] = _places(_dense_widths(other), _dense_widths(tower))
    elif not tower.is_sum and layer.startswith("cross."):
        along = [_places(other.widths, tower.widths)] * len(shape)
    elif not tower.is_sum and layer == "mlp.0.weight":
        along[1] = _places(other.widths, tower.widths)
    return tuple(along)


def _dense_widths(tower: Tower) -> dict[str, int]:
    return {name: width for name, width in tower.widths.items() if name not in tower.sparse_names}


def _places(before: Mapping[str, int], now: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """Columns of the features that both have, in the concatenation of each."""
    there, here = _starts(before), _starts(now)
    kept = [name for name in now if name in before]
    return tuple(  # type: ignore[return-value]
        torch.tensor([start[name] + column for name in kept for column in range(now[name])], dtype=torch.int64)
        for start in (there, here)
    )


def _starts(widths: Mapping[str, int]) -> dict[str, int]:
    ends = torch.tensor([0, *widths.values()]).cumsum(0).tolist()
    return dict(zip(widths, ends, strict=False))
