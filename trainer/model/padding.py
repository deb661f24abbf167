"""Rows of different lengths, padded stretch by stretch where an operation needs them side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.data.batch import EventHistories

# S states of all rows; n rows of a stretch, P states of its longest


def pad_rows(value: Tensor, history: EventHistories) -> list[Tensor]:
    """Values of all states, [S, ...], as a [n, P, ...] for each stretch, zeros at the end of its shorter rows."""
    sizes = [states for _, _, states in history.stretches]
    padded = []
    for (n, P, states), part, place in zip(
        history.stretches, value.split(sizes), history.place.split(sizes), strict=True
    ):
        if states < n * P:
            part = part.new_zeros(n * P, *part.shape[1:]).index_copy(0, place, part)
        padded.append(part.view(n, P, *part.shape[1:]))
    return padded


def unpad_rows(padded: Sequence[Tensor], history: EventHistories) -> Tensor:
    """The values of the states again: [n, P, ...] of each stretch -> [S, ...]."""
    sizes = [states for _, _, states in history.stretches]
    parts = []
    for (n, P, states), value, place in zip(history.stretches, padded, history.place.split(sizes), strict=True):
        flat = value.flatten(0, 1)
        parts.append(flat if states == n * P else flat.index_select(0, place))
    return torch.cat(parts)
