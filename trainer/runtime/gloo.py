"""What a sharded model exchanges on CPU ranks, by exchanges that gloo is quick at.

gloo's reduce_scatter sends as much as its all_reduce, which goes around a ring twice, in many messages
(benchmarks/exchange.py).
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.sharding.rw_sharding import RwPooledEmbeddingDist
from torchrec.distributed.types import Awaitable

from trainer.runtime.gather import gather, start_sum_to_owners, start_sum_with_gradient

# W ranks, S slots, D widths of all features of row-wise tables together


def exchange_quickly(model: DistributedModelParallel, gradient_scale: float | None) -> None:
    """Replaces the exchanges of sums: of row-wise tables' bags, and of the dense layers' gradients.

    Args:
        model: sharded over CPU ranks.
        gradient_scale: as in gather_with_gradient.
    """
    embeddings = cast(ShardedEmbeddingBagCollection, cast(nn.Module, model.module).embeddings)
    for place, exchange in enumerate(embeddings._output_dists):
        if isinstance(exchange, RwPooledEmbeddingDist):
            embeddings._output_dists[place] = _BagExchange(gradient_scale)
    if isinstance(model._dmp_wrapped_module, DistributedDataParallel):  # else there are no dense layers
        model._dmp_wrapped_module.register_comm_hook(None, _average)


class _BagExchange(nn.Module):
    """Sums of the parts that ranks have of every bag, on the ranks that want them."""

    def __init__(self, gradient_scale: float | None) -> None:
        super().__init__()
        self._gradient_scale = gradient_scale

    def forward(self, parts: Tensor, context: Any) -> "_Sums":
        """From float32 [W * S, D] to [S, D], with gradient.

        Args:
            parts: those that this rank has.
            context: TorchRec's; every rank has as many slots.
        """
        return _Sums(start_sum_with_gradient(parts, self._gradient_scale))


class _Sums(Awaitable[Tensor]):
    def __init__(self, wait: Callable[[], Tensor]) -> None:
        super().__init__()
        self._sums = wait

    def _wait_impl(self) -> Tensor:
        return self._sums()


def average(local: Tensor) -> Tensor:
    """The mean over ranks of float32 [n], without gradient, added up in the order of ranks wherever a number stands."""
    ranks = dist.get_world_size()
    everyone = F.pad(local, (0, -len(local) % ranks))
    return gather(start_sum_to_owners(everyone)() / ranks)[: len(local)]


def _average(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DistributedDataParallel's hook, for a bucket of gradients."""
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(average(bucket.buffer()))
    return done
