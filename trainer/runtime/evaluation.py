"""Exact evaluation of a held-out split over the whole catalogue."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.data.assembly import BatchAssembler
from trainer.data.batch import QueryBatch
from trainer.data.shares import share_of_rank, steps_of_all
from trainer.model.metrics import ranking_metrics
from trainer.runtime.embedding import embed_items
from trainer.runtime.processes import Processes
from trainer.runtime.ranking import CatalogRanker


class Evaluation:
    """Ranks every held-out target among all items; each process scores its stretch of the catalogue.

    Args:
        model: sharded TwoTower, in evaluation mode; its item embeddings are made here, once.
        assembler: lays out its inputs.
        num_items: of the catalogue.
        batch_size: items embedded at a time.
        processes: this process's place.
    """

    def __init__(
        self, model: nn.Module, assembler: BatchAssembler, num_items: int, batch_size: int, processes: Processes
    ) -> None:
        rows = share_of_rank(num_items, processes.rank, processes.world_size)
        steps = steps_of_all(num_items, batch_size, processes.world_size)
        item_MD = torch.cat([*embed_items(model, assembler, rows, steps, batch_size, processes.device)])
        self._model, self._ranker = model, CatalogRanker(item_MD, rows.start)
        self._ranks: list[Tensor] = []

    @torch.no_grad()
    def update(self, batch: QueryBatch) -> None:
        """Ranks one batch of queries from each process."""
        query_BD, _ = self._model(batch.batch)
        rank_Q, row_Q = self._ranker.ranks(query_BD, batch)
        self._ranks.append(rank_Q[row_Q >= 0].cpu())

    def metrics(self, ks: Sequence[int]) -> dict[str, float]:
        """Means over all queries so far, equal on every process."""
        return ranking_metrics(torch.cat(self._ranks), ks)
