"""Exact evaluation of a held-out split over the whole catalogue, and over its cold and its warm items alone."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.data.assembly import BatchAssembler
from trainer.data.batch import QueryBatch
from trainer.data.catalog import Catalog
from trainer.data.shares import share_of_rank, steps_of_all
from trainer.model.exposure import popularity_percentile
from trainer.model.metrics import ranking_metrics
from trainer.runtime.embedding import embed_items
from trainer.runtime.exposure import Exposure
from trainer.runtime.lockstep import in_lockstep
from trainer.runtime.processes import Processes
from trainer.runtime.ranking import CatalogRanker, TargetRanks
from trainer.runtime.scoring import DotProducts, ItemScores

# B queries on this rank, Q queries, T targets, M items on this rank, N items, D embedding dim


class Evaluation:
    """Ranks every held-out target among all items; each process scores its stretch of the catalogue.

    Args:
        query_embedding: from a batch to its queries as the items' scores take them: their embeddings [B, D], or
            [B, K, D] of several interests.
        items: those of this process's stretch.
        first_row: catalogue row at which the stretch begins.
        is_cold_N: bool, which items of the whole catalogue are cold.
        exposure: of the same items, where lists are wanted besides the targets' ranks.
    """

    def __init__(
        self, query_embedding: Callable[[QueryBatch], Tensor], items: ItemScores, first_row: int, is_cold_N: Tensor,
        exposure: Exposure | None = None,
    ) -> None:  # fmt: skip
        self._query_embedding, self._ranker = query_embedding, CatalogRanker(items, first_row, is_cold_N)
        self._is_cold_N, self._ranks, self._exposure = is_cold_N, list[TargetRanks](), exposure

    @torch.no_grad()
    def update(self, batch: QueryBatch) -> None:
        """Ranks one batch of queries from each process."""
        query_BD = self._query_embedding(batch)
        self._ranks.append(self._ranker.ranks(query_BD, batch))
        if self._exposure is not None:
            self._exposure.update(query_BD, batch)

    def metrics(self, ks: Sequence[int]) -> dict[str, float]:
        """Means over all queries so far, and what their lists show, equal on every process; all processes together.

        `recall@10` is over all items. Where there are such targets, `cold/recall@10` takes cold items alone for
        candidates and targets, and `warm/recall@10` warm ones, over the queries that have one. `coverage@10` and its
        companions are of lists of all items.
        """
        means = {
            prefix + name: value
            for prefix, ranked in self.ranked().items()
            for name, value in ranking_metrics(ranked.rank_T, ranked.length_Q, ks).items()
        }
        return means | (self._exposure.metrics() if self._exposure is not None else {})

    def lists(self) -> dict[int, list[int]]:
        """Those that were to be kept (see Exposure.lists); all processes together."""
        return self._exposure.lists() if self._exposure is not None else {}

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Queries, and items to rank, behind the metrics of each prefix."""
        items = {"": len(self._is_cold_N), "cold/": int(self._is_cold_N.sum()), "warm/": int((~self._is_cold_N).sum())}
        return {prefix: (len(ranked.length_Q), items[prefix]) for prefix, ranked in self.ranked().items()}

    def ranked(self) -> dict[str, "RankedSplit"]:
        """Of each prefix, in the order of the split whatever the number of processes."""
        query_T, rank_T, is_cold_T, own_rank_T = (
            torch.cat([getattr(ranks, name) for ranks in self._ranks]).cpu()
            for name in ("query_T", "rank_T", "is_cold_T", "own_rank_T")
        )
        asked_T, any_cold = query_T >= 0, bool(self._is_cold_N.any())
        chosen = {"": (asked_T, rank_T)}
        if any_cold:
            chosen |= {"cold/": (asked_T & is_cold_T, own_rank_T), "warm/": (asked_T & ~is_cold_T, own_rank_T)}
        return {prefix: _in_order(query_T[of], rank_T[of]) for prefix, (of, rank_T) in chosen.items() if of.any()}


@dataclass(frozen=True)
class RankedSplit:
    """Ranks of a split's targets, or of those of a kind; on the CPU.

    Attributes:
        query_Q: int64 ascending, row in the split of each query that has any.
        length_Q: int64, how many of them it has.
        rank_T: int64 from 1, of the targets of all queries end to end, in the order in which the split has them.
    """

    query_Q: Tensor
    length_Q: Tensor
    rank_T: Tensor


def _in_order(query_T: Tensor, rank_T: Tensor) -> RankedSplit:
    order_T = torch.argsort(query_T, stable=True)
    query_Q, length_Q = torch.unique_consecutive(query_T[order_T], return_counts=True)
    return RankedSplit(query_Q, length_Q, rank_T[order_T])


def evaluate_model(
    model: nn.Module, assembler: BatchAssembler, catalog: Catalog, split: str, batch_size_per_rank: int,
    processes: Processes, list_ks: Sequence[int] = (), kept: Collection[int] = (),
) -> Evaluation:  # fmt: skip
    """Evaluation of a sharded TwoTower in evaluation mode; the catalogue is embedded here, once.

    Args:
        model: the same on every process.
        assembler: lays out its inputs.
        catalog: the items.
        split: whose queries will come: items without events before it are cold.
        batch_size_per_rank: items embedded at a time.
        processes: this process's place.
        list_ks: cut-offs of lists; none are made without.
        kept: rows of the split whose lists are kept.
    """
    rows = share_of_rank(len(catalog), processes.rank, processes.world_size)
    steps = steps_of_all(len(catalog), batch_size_per_rank, processes.world_size)
    item_MD = torch.cat([*embed_items(model, assembler, rows, steps, batch_size_per_rank, processes.device)])
    return evaluate_scores(
        lambda batch: model(in_lockstep(batch.batch))[0], DotProducts(item_MD), catalog, split, processes, list_ks, kept
    )


def evaluate_popularity(catalog: Catalog, split: str, processes: Processes, list_ks: Sequence[int] = ()) -> Evaluation:
    """Evaluation of the list that everybody gets: items by their number of events before the split."""
    rows = share_of_rank(len(catalog), processes.rank, processes.world_size)
    count_N = catalog.counts_before(split)
    # float64, since float32 would tie counts above 2^24
    count_M1 = torch.from_numpy(count_N[rows.start : rows.stop, None].astype("float64")).to(processes.device)
    return evaluate_scores(
        lambda batch: count_M1.new_ones(len(batch.row), 1), DotProducts(count_M1), catalog, split, processes, list_ks
    )


def evaluate_scores(
    query_embedding: Callable[[QueryBatch], Tensor], items: ItemScores, catalog: Catalog, split: str,
    processes: Processes, list_ks: Sequence[int] = (), kept: Collection[int] = (),
) -> Evaluation:  # fmt: skip
    """Evaluation of whatever scores items.

    Args:
        query_embedding: as of Evaluation.
        items: this process's share of the catalogue, as share_of_rank has it.
        catalog: the items.
        split: whose queries will come.
        processes: this process's place.
        list_ks: as of evaluate_model.
        kept: likewise.
    """
    first_row = share_of_rank(len(catalog), processes.rank, processes.world_size).start
    is_cold_N = torch.from_numpy(catalog.counts_before(split) == 0).to(processes.device)
    exposure = None
    if list_ks:
        percentile_N = popularity_percentile(torch.tensor(catalog.train_counts())).to(processes.device)
        exposure = Exposure(items, first_row, percentile_N, list_ks, kept)
    return Evaluation(query_embedding, items, first_row, is_cold_N, exposure)
