"""Tables spread over ranks by rows, of whose bags only those parts travel that there are.

TorchRec's own exchange has every rank send a part of every bag, zeros where it holds none of the bag's rows: over W
ranks W times what bags of one id need. Both sides know which parts there are, a rank that wants bags by which rows it
asks for, one that holds rows by what it is asked for; so nothing more is told.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.distributed.dist_data import KJTAllToAll, KJTAllToAllTensorsAwaitable
from torchrec.distributed.embedding_sharding import (
    BaseEmbeddingDist,
    BaseSparseFeaturesDist,
    EmbeddingSharding,
    EmbeddingShardingContext,
    EmbeddingShardingInfo,
    KJTList,
)
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionContext, ShardedEmbeddingBagCollection
from torchrec.distributed.sharding.rw_sharding import RwPooledEmbeddingSharding, RwSparseFeaturesDist
from torchrec.distributed.types import Awaitable, LazyAwaitable, ShardingEnv, ShardingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from trainer.runtime.gather import exchange_gradient, half

# W ranks, F features of row-wise tables, S slots, D their widths together: U units of n numbers, side by side. A unit,
# the largest that divides the width of each feature, makes parts of all widths rows of one matrix.


@dataclass(frozen=True)
class Route:
    """Which units of bags a rank sends, and where those that it receives belong.

    Attributes:
        held: int64 [sent], places among the W * S * U units of the bags of all ranks, as far as this rank has rows.
        sent_to: units for each rank.
        received_from: units from each rank.
        order: int64 [received], units as received, of one bag after another, each in the order of ranks.
        begin: int64 [S * U], where each bag's begin in that order.
        bag: int64 [received], number among the S * U of each unit as received.
    """

    held: Tensor
    sent_to: list[int]
    received_from: list[int]
    order: Tensor
    begin: Tensor
    bag: Tensor


def route(wanted_WFS: Tensor, held_FWS: Tensor, units_F: Tensor) -> Route:
    """Which units travel.

    Args:
        wanted_WFS: bool, parts of its own bags that this rank wants from each.
        held_FWS: bool, parts of the bags of each rank that it is asked for.
        units_F: int64, of which each feature is made up.
    """
    ranks = len(wanted_WFS)
    wanted, held = (parts_WSF.repeat_interleave(units_F, dim=2).view(ranks, -1)
                    for parts_WSF in (wanted_WFS.transpose(1, 2), held_FWS.permute(1, 2, 0)))  # fmt: skip
    of_bag = wanted.sum(0)
    place = (wanted.view(-1).cumsum(0) - 1).view(ranks, -1)
    sent_to, received_from = torch.stack([held.sum(1), wanted.sum(1)]).tolist()
    return Route(
        held=held.view(-1).nonzero()[:, 0], sent_to=sent_to, received_from=received_from, order=place.T[wanted.T],
        begin=of_bag.cumsum(0) - of_bag, bag=wanted.nonzero()[:, 1],
    )  # fmt: skip


def start_parts_to_bags(
    parts: Tensor, route: Route, unit: int, gradient_scale: float | None = None
) -> Callable[[], Tensor]:
    """Sums of the parts that ranks have of every bag, on the ranks that want them: float32 [W * S, D] -> [S, D].

    To be waited for by a call of what is returned. Its backward gives the gradients, divided by the ranks, of their
    mean loss. Parts are added up in the order of ranks.

    Args:
        parts: those that this rank has, zeros where it has none.
        route: of the batch.
        unit: numbers in a unit.
        gradient_scale: sends float16, and gradients times this; None sends all as it is.
    """
    sent = parts.detach().reshape(-1, unit).index_select(0, route.held)
    wait = _exchange(sent if gradient_scale is None else half(sent), route.sent_to, route.received_from)
    return lambda: _PartsToBags.apply(parts, wait, route, gradient_scale)


class ShardedBags(ShardedEmbeddingBagCollection):
    """TorchRec's sharded tables, of which those that are row-wise exchange the parts of bags that there are.

    Args:
        gradient_scale: as in start_parts_to_bags.
        as_torchrec: what TorchRec gives and takes.
    """

    def __init__(self, *, gradient_scale: float | None, **as_torchrec: Any) -> None:
        super().__init__(**as_torchrec)
        for exchange in self._output_dists:
            if isinstance(exchange, _BagExchange):
                exchange.gradient_scale = gradient_scale

    @classmethod
    def create_embedding_bag_sharding(
        cls, sharding_infos: list[EmbeddingShardingInfo], env: ShardingEnv, device: torch.device | None = None,
        *others: Any, **named: Any,
    ) -> EmbeddingSharding[EmbeddingShardingContext, KeyedJaggedTensor, Tensor, Tensor]:  # fmt: skip
        """What TorchRec makes for tables of one sharding type, or ours."""
        is_ours = sharding_infos[0].param_sharding.sharding_type == ShardingType.ROW_WISE.value
        if not is_ours or env.world_size == 1:
            return super().create_embedding_bag_sharding(sharding_infos, env, device, *others, **named)
        return _RowWise(sharding_infos, env, device)

    def input_dist(self, ctx: EmbeddingBagCollectionContext, features: Any) -> Awaitable[Awaitable[KJTList]]:
        """Begins to send ids, and notes which parts of bags will come for them."""
        begun = super().input_dist(ctx, features)
        for place, exchange in enumerate(self._input_dists):
            if isinstance(ids := getattr(exchange, "_dist", None), _IdsToOwners):
                context = cast(EmbeddingShardingContext, ctx.sharding_contexts[place])
                ctx.sharding_contexts[place] = _Routed(**vars(context), wanted_WFS=ids.wanted_WFS)
        return begun

    def find_routes(self, ctx: EmbeddingBagCollectionContext, received: KJTList) -> None:
        """Finds what goes where, once ids have come, unless that is known; on a GPU the host waits for them."""
        for exchange, context, features in zip(self._output_dists, ctx.sharding_contexts, received, strict=True):
            if isinstance(context, _Routed) and context.route is None:
                held_FWS = features.lengths().view(len(features.keys()), len(context.wanted_WFS), -1) > 0
                context.route = route(context.wanted_WFS, held_FWS, exchange.units_F)

    def compute_and_output_dist(self, ctx: EmbeddingBagCollectionContext, input: KJTList) -> LazyAwaitable[KeyedTensor]:
        """Looks up what has been asked for, and begins to send it."""
        self.find_routes(ctx, input)
        return super().compute_and_output_dist(ctx, input)


@dataclass
class _Routed(EmbeddingShardingContext):
    wanted_WFS: Tensor = field(kw_only=True)
    route: Route | None = None

    def record_stream(self, stream: torch.Stream) -> None:
        super().record_stream(stream)
        of_route = [] if self.route is None else vars(self.route).values()
        for tensor in (self.wanted_WFS, *of_route):
            if isinstance(tensor, Tensor):
                tensor.record_stream(stream)


class _RowWise(RwPooledEmbeddingSharding):
    def create_input_dist(self, device: torch.device | None = None) -> BaseSparseFeaturesDist[KeyedJaggedTensor]:
        exchange = cast(RwSparseFeaturesDist, super().create_input_dist(device))
        exchange._dist = cast(KJTAllToAll, _IdsToOwners(exchange._dist, self._world_size))
        return exchange

    def create_output_dist(
        self, device: torch.device | None = None
    ) -> BaseEmbeddingDist[EmbeddingShardingContext, Tensor, Tensor]:
        return _BagExchange(self.embedding_dims(), device or self._device)


class _IdsToOwners(nn.Module):
    """TorchRec's, of ids that lie by the rank that has their rows; notes for which bags each rank is asked."""

    def __init__(self, exchange: KJTAllToAll, ranks: int) -> None:
        super().__init__()
        self._exchange, self._ranks = exchange, ranks
        self.wanted_WFS = torch.empty(0)  # of the last batch

    def forward(self, ids: KeyedJaggedTensor) -> Awaitable[KJTAllToAllTensorsAwaitable]:
        self.wanted_WFS = ids.lengths().view(self._ranks, -1, ids.stride()) > 0
        return self._exchange(ids)


class _BagExchange(BaseEmbeddingDist[EmbeddingShardingContext, Tensor, Tensor]):
    def __init__(self, widths: Sequence[int], device: torch.device) -> None:
        super().__init__()
        self._unit = math.gcd(*widths)
        self.units_F = torch.tensor(widths, device=device) // self._unit
        self.gradient_scale: float | None = None

    def forward(self, local_embs: Tensor, sharding_ctx: EmbeddingShardingContext | None = None) -> Awaitable[Tensor]:
        found = cast(Route, cast(_Routed, sharding_ctx).route)
        return _Bags(start_parts_to_bags(local_embs, found, self._unit, self.gradient_scale))


class _Bags(Awaitable[Tensor]):
    def __init__(self, wait: Callable[[], Tensor]) -> None:
        super().__init__()
        self._bags = wait

    def _wait_impl(self) -> Tensor:
        return self._bags()


class _PartsToBags(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, parts: Tensor, wait: Callable[[], Tensor], route: Route, gradient_scale: float | None
    ) -> Tensor:
        received = wait().float()
        ctx.route, ctx.scale, ctx.shape, ctx.unit = route, gradient_scale, parts.shape, received.shape[1]
        return F.embedding_bag(route.order, received, route.begin, mode="sum").view(-1, parts.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        route: Route = ctx.route
        of_units = (gradient / dist.get_world_size()).view(-1, ctx.unit).index_select(0, route.bag)
        back = partial(_exchange, sent_to=route.received_from, received_from=route.sent_to)
        received = exchange_gradient(lambda sent: back(sent)(), of_units, ctx.scale)
        of_parts = gradient.new_zeros(ctx.shape)
        of_parts.view(-1, ctx.unit).index_copy_(0, route.held, received)
        return of_parts, None, None, None


def _exchange(sent: Tensor, sent_to: list[int], received_from: list[int]) -> Callable[[], Tensor]:
    """Rows to each rank, and those of each in return, to be waited for."""
    received = sent.new_empty(sum(received_from), *sent.shape[1:])
    work = dist.all_to_all_single(received, sent, received_from, sent_to, async_op=True)

    def wait() -> Tensor:
        work.wait()
        return received

    return wait
