"""All ranks' candidates on every rank, with gradients back to their owners."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# B candidates on this rank, N over all ranks


def gather(local: Tensor) -> Tensor:
    """Concatenates equally large tensors of all ranks in rank order, without gradient: [B, ...] -> [N, ...]."""
    return start_gather(local)()


def start_gather(local: Tensor) -> Callable[[], Tensor]:
    """As `gather`, to be waited for by a call of what is returned."""
    if dist.get_world_size() == 1:
        return lambda: local
    everyone = local.new_empty(dist.get_world_size() * len(local), *local.shape[1:])
    work = dist.all_gather_single(everyone, local.contiguous(), async_op=True)

    def wait() -> Tensor:
        work.wait()
        return everyone

    return wait


def gather_with_gradient(local: Tensor, gradient_scale: float | None = None) -> Tensor:
    """As `gather`; each rank's backward returns the sum over ranks of the gradients to its own rows.

    Args:
        local: float32.
        gradient_scale: sends float16, and gradients times this; None sends all as it is.
    """
    return local if dist.get_world_size() == 1 else _Gather.apply(local, gradient_scale)


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
    def forward(ctx: Any, local: Tensor, gradient_scale: float | None) -> Tensor:
        ctx.rows, ctx.scale = len(local), gradient_scale
        return gather(local if gradient_scale is None else _half(local)).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        sent = gradient.contiguous() if ctx.scale is None else _half(gradient * ctx.scale)
        own = sent.new_empty(ctx.rows, *gradient.shape[1:])
        dist.reduce_scatter_single(own, sent)
        return own if ctx.scale is None else own.float() / ctx.scale, None


def _half(values: Tensor) -> Tensor:
    """What float16 can hold, summed up over ranks too; NaN remains NaN."""
    most = torch.finfo(torch.float16).max / dist.get_world_size()
    return values.clamp(-most, most).half()
