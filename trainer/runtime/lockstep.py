"""What ranks must agree on before they exchange embeddings: batches differ in how many distinct items they hold."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.data.batch import RetrievalBatch
from trainer.runtime.gather import start_gather


@dataclass(frozen=True)
class Sizes:
    """Of the batches of all ranks.

    Attributes:
        slots: most of any rank.
        candidates: of each rank, that all score.
        positives: of each rank.
        weight: of all positives in the loss, over all ranks.
        pause: whether any rank wants all to pause after the step.
    """

    slots: int
    candidates: tuple[int, ...]
    positives: tuple[int, ...]
    weight: float
    pause: bool


def sizes_of_all(batch: RetrievalBatch) -> Sizes:
    """One small exchange, over the host's memory."""
    return tell_sizes(batch)()


def tell_sizes(batch: RetrievalBatch, pause_wanted: bool = False) -> Callable[[], Sizes]:
    """Begins it; what is returned waits for it."""
    positives = len(batch.positive)
    weight = float(positives) if batch.weight is None else float(batch.weight.sum(dtype=torch.float64))
    local = torch.tensor([[batch.slots, batch.num_shared, positives, weight, pause_wanted]], dtype=torch.float64)
    everyone = start_gather(local)

    def sizes() -> Sizes:
        slots, candidates, of_ranks, weights, pause = everyone().T.tolist()
        return Sizes(int(max(slots)), tuple(map(int, candidates)), tuple(map(int, of_ranks)), sum(weights), any(pause))

    return sizes


def in_lockstep(batch: RetrievalBatch) -> RetrievalBatch:
    """The batch with as many slots as that of any other rank."""
    return batch.with_slots(sizes_of_all(batch).slots)
