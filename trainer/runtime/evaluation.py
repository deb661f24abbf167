"""Exact evaluation of a held-out split over the whole catalogue."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trainer.data.assembly import BatchAssembler
from trainer.data.batch import QueryBatch
from trainer.data.catalog import Catalog
from trainer.data.shares import share_of_rank, steps_of_all
from trainer.model.metrics import ranking_metrics
from trainer.runtime.embedding import embed_items
from trainer.runtime.lockstep import in_lockstep
from trainer.runtime.processes import Processes
from trainer.runtime.ranking import CatalogRanker

# B queries on this rank, M items on this rank, D embedding dim


class Evaluation:
    """Ranks every held-out target among all items; each process scores its stretch of the catalogue.

    Args:
        query_embedding: from a batch to its queries' embeddings [B, D], or [B, K, D] of several interests.
        item_MD: embeddings of this process's stretch.
        first_row: catalogue row at which the stretch begins.
    """

    def __init__(self, query_embedding: Callable[[QueryBatch], Tensor], item_MD: Tensor, first_row: int) -> None:
        self._query_embedding, self._ranker = query_embedding, CatalogRanker(item_MD, first_row)
        self._ranks: list[Tensor] = []

    @torch.no_grad()
    def update(self, batch: QueryBatch) -> None:
        """Ranks one batch of queries from each process."""
        rank_Q, row_Q = self._ranker.ranks(self._query_embedding(batch), batch)
        self._ranks.append(rank_Q[row_Q >= 0].cpu())

    def metrics(self, ks: Sequence[int]) -> dict[str, float]:
        """Means over all queries so far, equal on every process."""
        return ranking_metrics(torch.cat(self._ranks), ks)


def evaluate_model(
    model: nn.Module, assembler: BatchAssembler, catalog: Catalog, batch_size_per_rank: int, processes: Processes
) -> Evaluation:
    """Evaluation of a sharded TwoTower in evaluation mode; the catalogue is embedded here, once.

    Args:
        model: the same on every process.
        assembler: lays out its inputs.
        catalog: the items.
        batch_size_per_rank: items embedded at a time.
        processes: this process's place.
    """
    rows = share_of_rank(len(catalog), processes.rank, processes.world_size)
    steps = steps_of_all(len(catalog), batch_size_per_rank, processes.world_size)
    item_MD = torch.cat([*embed_items(model, assembler, rows, steps, batch_size_per_rank, processes.device)])
    return Evaluation(lambda batch: model(in_lockstep(batch.batch))[0], item_MD, rows.start)


def evaluate_popularity(catalog: Catalog, processes: Processes) -> Evaluation:
    """Evaluation of the list that everybody gets: items by their number of training events."""
    rows = share_of_rank(len(catalog), processes.rank, processes.world_size)
    # float64, since float32 would tie counts above 2^24
    count_M1 = torch.from_numpy(catalog.train_counts()[rows.start : rows.stop, None].astype("float64"))
    count_M1 = count_M1.to(processes.device)
    return Evaluation(lambda batch: count_M1.new_ones(len(batch.row), 1), count_M1, rows.start)
