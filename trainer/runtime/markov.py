"""A baseline that knows what was chosen after what: a Markov chain over a user's last items."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from trainer.data.batch import QueryBatch
from trainer.data.catalog import Catalog
from trainer.data.schema import Schema
from trainer.data.shares import share_of_rank
from trainer.data.transitions import transition_shares
from trainer.runtime.evaluation import Evaluation, evaluate_scores
from trainer.runtime.processes import Processes

# B queries on this rank, C of all ranks, L last items of each, N items, M of them on this rank

LAST, DECAY = 10, 0.8
"""Items of a user that count, and how much each counts of what the one after it does."""
OF_POPULARITY = 1e-6
"""What popularity counts beside the chain: it orders the items that the chain does not reach."""


class MarkovScores:
    """Mean over a user's last items, each counted 0.8 of the one after it, of how likely an item is to come next.

    A first-order chain of which several last items have a say, as the items of a basket have in Rendle et al. 2010,
    "Factorizing personalized Markov chains", section 4.1, here weighted by recency.

    Args:
        share_NM: from transition_shares, to the items of this rank's stretch.
        popularity_M: float64, their share of all events before the split.
        device: where scores are wanted; they are made on the CPU.
    """

    def __init__(self, share_NM: sparse.csr_array, popularity_M: np.ndarray, device: torch.device) -> None:
        self._share_NM, self._popularity_M, self._device = share_NM, popularity_M, device
        self._stretches: dict[tuple[int, int], sparse.csr_array] = {}

    def __len__(self) -> int:
        return len(self._popularity_M)

    def empty(self, *shape: int) -> Tensor:
        """As of ItemScores."""
        return torch.empty(shape, dtype=torch.float64, device=self._device)

    def permuted(self, order_M: Tensor) -> "MarkovScores":
        """As of ItemScores."""
        order = order_M.cpu().numpy()
        return MarkovScores(self._share_NM[:, order], self._popularity_M[order], self._device)

    def scores(self, query_CKD: Tensor, begin: int, end: int) -> Tensor:
        """As of ItemScores, of queries [C, 1, L] from `last_items`."""
        if (begin, end) not in self._stretches:
            self._stretches[begin, end] = self._share_NM[:, begin:end]
        row_CL = query_CKD[:, 0].cpu().numpy()
        place_C, place_L = np.nonzero(row_CL >= 0)
        weight = DECAY**place_L
        weight /= np.bincount(place_C, weight, minlength=len(row_CL))[place_C]
        shape = (len(row_CL), self._share_NM.shape[0])
        last_CN = sparse.csr_array((weight, (place_C, row_CL[place_C, place_L])), shape=shape)
        score_Cm = (last_CN @ self._stretches[begin, end]).toarray()
        score_Cm += OF_POPULARITY * self._popularity_M[begin:end]
        return torch.from_numpy(score_Cm).to(self._device)


def last_items(batch: QueryBatch) -> Tensor:
    """int64 [B, L]: catalogue rows of what a query's user did last, the latest first; -1 where there was less."""
    end_B = batch.seen_lengths.cumsum(0)
    back_L = torch.arange(LAST, device=end_B.device)
    there_BL = back_L < batch.seen_lengths[:, None]
    place_BL = torch.where(there_BL, end_B[:, None] - 1 - back_L, 0)
    padded = torch.cat([batch.seen_rows, batch.seen_rows.new_full((1,), -1)])
    return torch.where(there_BL, padded[place_BL], -1)


def evaluate_markov(
    data_dir: str | Path, schema: Schema, catalog: Catalog, split: str, processes: Processes,
    list_ks: Sequence[int] = (),
) -> Evaluation:  # fmt: skip
    """Evaluation of the chain; every process reads all training rows, and keeps what leads to its items.

    Args:
        data_dir: prepared folder.
        schema: of that folder.
        catalog: the items.
        split: whose queries will come.
        processes: this process's place.
        list_ks: as of evaluate_model.

    Raises:
        UserError: the training rows do not tell what came before what, or cannot be read.
    """
    rows = share_of_rank(len(catalog), processes.rank, processes.world_size)
    share_NM = transition_shares(data_dir, schema, rows, show_progress=processes.is_first)
    count_N = catalog.counts_before(split)
    popularity_M = count_N[rows.start : rows.stop] / max(1, int(count_N.sum()))
    items = MarkovScores(share_NM, popularity_M, processes.device)
    return evaluate_scores(last_items, items, catalog, split, processes, list_ks)
