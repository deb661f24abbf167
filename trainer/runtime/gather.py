"""All ranks' candidates on every rank, with gradients back to their owners."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# B candidates on this rank, N over all ranks


def gather(local: Tensor) -> Tensor:
    """Concatenates equally large tensors of all ranks in rank order, without gradient: [B, ...] -> [N, ...]."""
    if dist.get_world_size() == 1:
        return local
    everyone = local.new_empty(dist.get_world_size() * len(local), *local.shape[1:])
    dist.all_gather_single(everyone, local.contiguous())
    return everyone


def gather_with_gradient(local: Tensor) -> Tensor:
    """As `gather`; each rank's backward returns the sum over ranks of the gradients to its own rows."""
    return local if dist.get_world_size() == 1 else _Gather.apply(local)


def gather_of_any_length(local: Tensor) -> Tensor:
    """Concatenates one-dimensional tensors of any lengths over ranks, without gradient."""
    length = gather(torch.tensor([len(local)], device=local.device))
    longest = int(length.max())
    padded = local.new_zeros(longest)
    padded[: len(local)] = local
    everyone = gather(padded).view(len(length), longest)
    return torch.cat([row[:n] for row, n in zip(everyone, length.tolist(), strict=True)])


def gather_objects(local: Any) -> list[Any]:
    """Small picklable objects of all ranks, in rank order, on every rank."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, local)
    return everyone


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = len(local)
        return gather(local)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own = gradient.new_empty(ctx.rows, *gradient.shape[1:])
        dist.reduce_scatter_single(own, gradient.contiguous())
        return own
