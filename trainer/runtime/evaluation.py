"""Exact evaluation of a held-out split over the whole catalogue, and over its cold and its warm items alone."""

from collections.abc import Callable, Sequence

import numpy as np
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
from trainer.runtime.ranking import CatalogRanker, TargetRanks

# B queries on this rank, Q queries, T targets, M items on this rank, N items, D embedding dim


class Evaluation:
    """Ranks every held-out target among all items; each process scores its stretch of the catalogue.

    Args:
        query_embedding: from a batch to its queries' embeddings [B, D], or [B, K, D] of several interests.
        item_MD: embeddings of this process's stretch.
        first_row: catalogue row at which the stretch begins.
        is_cold_N: bool, which items of the whole catalogue are cold.
    """

    def __init__(
        self, query_embedding: Callable[[QueryBatch], Tensor], item_MD: Tensor, first_row: int, is_cold_N: Tensor
    ) -> None:
        self._query_embedding, self._ranker = query_embedding, CatalogRanker(item_MD, first_row, is_cold_N)
        self._is_cold_N, self._ranks = is_cold_N, list[TargetRanks]()

    @torch.no_grad()
    def update(self, batch: QueryBatch) -> None:
        """Ranks one batch of queries from each process."""
        self._ranks.append(self._ranker.ranks(self._query_embedding(batch), batch))

    def metrics(self, ks: Sequence[int]) -> dict[str, float]:
        """Means over all queries so far, equal on every process.

        `recall@10` is over all items. Where there are such targets, `cold/recall@10` takes cold items alone for
        candidates and targets, and `warm/recall@10` warm ones, over the queries that have one.
        """
        return {
            prefix + name: value
            for prefix, (rank_T, length_Q) in self._lists().items()
            for name, value in ranking_metrics(rank_T, length_Q, ks).items()
        }

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Queries, and items to rank, behind the metrics of each prefix."""
        items = {"": len(self._is_cold_N), "cold/": int(self._is_cold_N.sum()), "warm/": int((~self._is_cold_N).sum())}
        return {prefix: (len(length_Q), items[prefix]) for prefix, (_, length_Q) in self._lists().items()}

    def _lists(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Ranks [T] and lengths [Q] of each prefix, in the order of the split whatever the number of processes."""
        query_T, rank_T, is_cold_T, own_rank_T = (
            torch.cat([getattr(ranks, name) for ranks in self._ranks]).cpu()
            for name in ("query_T", "rank_T", "is_cold_T", "own_rank_T")
        )
        asked_T, any_cold = query_T >= 0, bool(self._is_cold_N.any())
        chosen = {"": (asked_T, rank_T)}
        if any_cold:
            chosen |= {"cold/": (asked_T & is_cold_T, own_rank_T), "warm/": (asked_T & ~is_cold_T, own_rank_T)}
        return {prefix: _in_order(query_T[of], rank_T[of]) for prefix, (of, rank_T) in chosen.items() if of.any()}


def _in_order(query_T: Tensor, rank_T: Tensor) -> tuple[Tensor, Tensor]:
    order_T = torch.argsort(query_T, stable=True)
    return rank_T[order_T], torch.unique_consecutive(query_T[order_T], return_counts=True)[1]


def evaluate_model(
    model: nn.Module, assembler: BatchAssembler, catalog: Catalog, split: str, batch_size_per_rank: int,
    processes: Processes,
) -> Evaluation:  # fmt: skip
    """Evaluation of a sharded TwoTower in evaluation mode; the catalogue is embedded here, once.

    Args:
        model: the same on every process.
        assembler: lays out its inputs.
        catalog: the items.
        split: whose queries will come: items without events before it are cold.
        batch_size_per_rank: items embedded at a time.
        processes: this process's place.
    """
    rows = share_of_rank(len(catalog), processes.rank, processes.world_size)
    steps = steps_of_all(len(catalog), batch_size_per_rank, processes.world_size)
    item_MD = torch.cat([*embed_items(model, assembler, rows, steps, batch_size_per_rank, processes.device)])
    is_cold_N = _is_cold(catalog.counts_before(split), processes)
    return Evaluation(lambda batch: model(in_lockstep(batch.batch))[0], item_MD, rows.start, is_cold_N)


def evaluate_popularity(catalog: Catalog, split: str, processes: Processes) -> Evaluation:
    """Evaluation of the list that everybody gets: items by their number of events before the split."""
    rows = share_of_rank(len(catalog), processes.rank, processes.world_size)
    count_N = catalog.counts_before(split)
    # float64, since float32 would tie counts above 2^24
    count_M1 = torch.from_numpy(count_N[rows.start : rows.stop, None].astype("float64")).to(processes.device)
    is_cold_N = _is_cold(count_N, processes)
    return Evaluation(lambda batch: count_M1.new_ones(len(batch.row), 1), count_M1, rows.start, is_cold_N)


def _is_cold(count_N: np.ndarray, processes: Processes) -> Tensor:
    return torch.from_numpy(count_N == 0).to(processes.device)
