"""How often each item is among the first of all queries' lists, and some of these lists."""

from collections.abc import Collection, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.data.batch import QueryBatch
from trainer.model.exposure import exposure_metrics
from trainer.runtime.gather import gather_objects
from trainer.runtime.scoring import ItemScores
from trainer.runtime.top_k import CatalogTopK, seen_but_no_target

# B queries on this rank, M items on this rank, N items of all ranks, I interests, K length of the longest
# list, k of each list, D embedding dim


class Exposure:
    """Counts the lists that each item is in, at several cut-offs: int64 [N] a cut-off on each rank.

    Args:
        items: those of this rank.
        first_row: catalogue row of the first of them.
        percentile_N: float64, how popular each item of the whole catalogue is.
        ks: cut-offs.
        kept: a few rows of the split, whose lists are not only counted.
    """

    def __init__(
        self, items: ItemScores, first_row: int, percentile_N: Tensor, ks: Sequence[int], kept: Collection[int] = ()
    ) -> None:
        self._ks, self._percentile_N = sorted(set(ks)), percentile_N
        self._top_k = CatalogTopK(items, first_row, max(ks))
        self._count_kN = percentile_N.new_zeros((len(self._ks), len(percentile_N)), dtype=torch.int64)
        self._kept, self._lists = frozenset(kept), dict[int, list[int]]()

    def update(self, query_BD: Tensor, batch: QueryBatch) -> None:
        """Lists what is best for this process's queries, or [B, I, D] of several interests; all processes together."""
        row_BK = self._top_k.lists(query_BD, *seen_but_no_target(batch)).row_BK
        if self._kept:
            for place, query in enumerate(batch.row.tolist()):
                if query in self._kept:
                    self._lists[query] = [row for row in row_BK[place].tolist() if row >= 0]
        row_BK = row_BK[batch.row >= 0]
        for count_N, k in zip(self._count_kN, self._ks, strict=True):
            listed = row_BK[:, :k].flatten()
            listed = listed[listed >= 0]
            count_N.index_add_(0, listed, torch.ones_like(listed))

    def lists(self) -> dict[int, list[int]]:
        """Catalogue rows of the lists that were kept, the best first, by row of the split; all processes together."""
        return {query: rows for of_rank in gather_objects(self._lists) for query, rows in sorted(of_rank.items())}

    def metrics(self) -> dict[str, float]:
        """`coverage@10` and its companions over all queries so far, equal on every process; all processes together."""
        everyone_kN = self._count_kN.clone()
        dist.all_reduce(everyone_kN)
        found = [exposure_metrics(count_N, self._percentile_N) for count_N in everyone_kN]
        return {f"{name}@{k}": its[name] for name in found[0] for k, its in zip(self._ks, found, strict=True)}
