"""The temperature of the softmax: a number, or a parameter within bounds."""

import math

import torch
from torch import Tensor, nn

FACTOR = 10.0
"""How far a learned temperature may go from where it begins, up and down."""


class Temperature(nn.Module):
    """A positive scalar; a learned one is `initial * 10 ** tanh(x)`, so that no step leads out of its bounds.

    Args:
        initial: the value, or the first one.
        learned: whether it is trained.
    """

    def __init__(self, initial: float, learned: bool) -> None:
        super().__init__()
        self._initial = initial
        self.place = nn.Parameter(torch.zeros(())) if learned else None

    def forward(self) -> Tensor | float:
        """The value now."""
        if self.place is None:
            return self._initial
        return self._initial * torch.exp(math.log(FACTOR) * torch.tanh(self.place))
