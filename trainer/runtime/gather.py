"""Rows of all ranks on every rank, and sums over ranks at their owners: each is the other's gradient."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# B rows of this rank, N of all ranks in rank order


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


def start_sum_to_owners(everyone: Tensor) -> Callable[[], Tensor]:
    """Sums over ranks what each has for all rows, without gradient: [N, ...] -> [B, ...], this rank's.

    To be waited for by a call of what is returned. On a CPU ranks are added up in their order, in float32, whatever
    place a row has among the others.

    Args:
        everyone: float32 or float16, equally many rows for each rank.
    """
    ranks = dist.get_world_size()
    if ranks == 1:
        return lambda: everyone
    if everyone.is_cuda:
        own = everyone.new_empty(len(everyone) // ranks, *everyone.shape[1:])
        work = dist.reduce_scatter_single(own, everyone.contiguous(), async_op=True)
    else:  # gloo's reduce_scatter sums up all rows on every rank, which sends twice as much
        received = torch.empty_like(everyone, memory_format=torch.contiguous_format)
        work = dist.all_to_all_single(received, everyone.contiguous(), async_op=True)

    def wait() -> Tensor:
        work.wait()
        if everyone.is_cuda:
            return own
        first, second, *others = received.chunk(ranks)
        total = first.float() + second
        for part in others:
            total += part
        return total

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
        ctx.scale = gradient_scale
        return gather(local if gradient_scale is None else half(local)).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return exchange_gradient(lambda sent: start_sum_to_owners(sent)(), gradient, ctx.scale), None


def exchange_gradient(exchange: Callable[[Tensor], Tensor], gradient: Tensor, scale: float | None) -> Tensor:
    """Exchanges a gradient, on its way in float16 and times a scale where there is one."""
    return exchange(gradient) if scale is None else exchange(half(gradient * scale)).float() / scale


def half(values: Tensor) -> Tensor:
    """What float16 can hold, summed up over ranks too; NaN remains NaN."""
    most = torch.finfo(torch.float16).max / dist.get_world_size()
    return values.clamp(-most, most).half()
