"""Batches on their way to the model: copied, and their ids exchanged, while the step before them is computed.

What TorchRec's TrainPipelineSparseDist does, by the same calls of its sharded tables; but that class also takes over
backward pass and optimizer, which are Lightning's here, and runs on GPUs alone.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import LazyAwaitable
from torchrec.sparse.jagged_tensor import KeyedTensor

from trainer.data.batch import RetrievalBatch
from trainer.data.events import TrainingReader
from trainer.runtime.lockstep import Sizes, tell_sizes
from trainer.runtime.processes import Processes
from trainer.runtime.row_wise import ShardedBags


class IdExchange:
    """Ids of a batch, on their way to the ranks that hold their rows.

    Ranks tell one another how many there are, then which; each part is waited for by the next alone.

    Args:
        embeddings: the sharded tables.
        batch: on this rank's device, with as many slots as that of any other rank.
        aside: the stream on which it is done.
    """

    def __init__(self, embeddings: ShardedBags, batch: RetrievalBatch, aside: torch.cuda.Stream | None) -> None:
        self._embeddings, self._aside = embeddings, aside
        self._context = embeddings.create_context()
        with _on(aside):
            self._numbers = embeddings.input_dist(self._context, batch.sparse_features)
        self._ids: Any = None

    def send(self) -> None:
        """Sends the ids, unless they are sent."""
        if self._ids is None:
            with _on(self._aside):
                self._ids = self._numbers.wait()

    def look_up(self) -> LazyAwaitable[KeyedTensor]:
        """What the tables give, once."""
        self.send()
        with _on(self._aside):
            received = self._ids.wait()
            self._embeddings.find_routes(self._context, received)
        if self._aside is not None:
            now = torch.cuda.current_stream()
            now.wait_stream(self._aside)
            received.record_stream(now)
            self._context.record_stream(now)
        return self._embeddings.compute_and_output_dist(self._context, received)


@dataclass(frozen=True)
class StagedBatch:
    """A batch that a step can begin with.

    Attributes:
        batch: on this rank's device.
        sizes: of the batches of all ranks.
        exchange: of its ids, begun.
    """

    batch: RetrievalBatch
    sizes: Sizes
    exchange: IdExchange


class Pipeline:
    """The reader's batches, each of which is under way before the step before it begins.

    Every rank does all of it in the same order; nothing is exchanged before the first batch is taken.

    Args:
        reader: of this rank's batches.
        model: sharded; from now on its tables take an IdExchange in the place of ids.
        processes: this process's place.
        pause_wanted: whether this rank has something for all to see to.
    """

    def __init__(
        self, reader: TrainingReader, model: DistributedModelParallel, processes: Processes,
        pause_wanted: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._reader, self._device, self._pause_wanted = reader, processes.device, pause_wanted
        self._embeddings = cast(ShardedBags, cast(nn.Module, model.module).embeddings)
        self._embeddings.forward = partial(_forward, self._embeddings)
        on_gpu = processes.device.type == "cuda"
        self._copying, self._exchanging = (torch.cuda.Stream(self._device) if on_gpu else None for _ in range(2))
        self._newest: IdExchange | None = None

    def __iter__(self) -> Iterator[StagedBatch]:
        batches = iter(self._reader)
        batch, sizes = self._tell(next(batches))
        while True:
            staged = self._begin(batch, sizes())
            batch, sizes = self._tell(next(batches))
            yield staged

    def send_ids(self) -> None:
        """Sends those of the batch begun last: their numbers, by now, are known."""
        if self._newest is not None:
            self._newest.send()

    def _tell(self, batch: RetrievalBatch) -> tuple[RetrievalBatch, Callable[[], Sizes]]:
        """Copies a batch, and tells other ranks of its sizes."""
        told = tell_sizes(batch, self._pause_wanted())
        with _on(self._copying):
            return batch.to(self._device, non_blocking=True), told

    def _begin(self, batch: RetrievalBatch, sizes: Sizes) -> StagedBatch:
        if self._exchanging is not None and self._copying is not None:
            self._exchanging.wait_stream(self._copying)
            for user in (self._exchanging, torch.cuda.current_stream()):  # else its memory could be given away before
                batch.record_stream(user)
        with _on(self._exchanging):
            batch = batch.with_slots(sizes.slots)
        if self._exchanging is not None:
            batch.record_stream(torch.cuda.current_stream())  # whose lengths may be new
        self._newest = IdExchange(self._embeddings, batch, self._exchanging)
        return StagedBatch(batch, sizes, self._newest)


def _forward(embeddings: ShardedBags, features: Any) -> LazyAwaitable[KeyedTensor]:
    """Of tables, for features that are on their way as well as for those that are not."""
    return features.look_up() if isinstance(features, IdExchange) else type(embeddings).forward(embeddings, features)


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)
