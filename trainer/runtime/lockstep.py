"""What ranks must agree on before they exchange embeddings: batches differ in how many distinct items they hold."""

from dataclasses import dataclass

import torch

from trainer.data.batch import RetrievalBatch
from trainer.runtime.gather import gather


@dataclass(frozen=True)
class Sizes:
    """Of the batches of all ranks.

    Attributes:
        slots: most of any rank.
        candidates: of each rank.
        queries: of each rank.
        weight: of all queries in the loss, over all ranks.
    """

    slots: int
    candidates: tuple[int, ...]
    queries: tuple[int, ...]
    weight: float


def sizes_of_all(batch: RetrievalBatch) -> Sizes:
    """One small exchange, over the host's memory."""
    num_queries = len(batch.positive)
    weight = float(num_queries) if batch.query_weight is None else float(batch.query_weight.sum(dtype=torch.float64))
    local = torch.tensor([[batch.slots, batch.num_candidates, num_queries, weight]], dtype=torch.float64)
    slots, candidates, queries, weights = gather(local).T.tolist()
    return Sizes(int(max(slots)), tuple(map(int, candidates)), tuple(map(int, queries)), sum(weights))


def in_lockstep(batch: RetrievalBatch) -> RetrievalBatch:
    """The batch with as many slots as that of any other rank."""
    return batch.with_slots(sizes_of_all(batch).slots)
