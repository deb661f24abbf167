"""What queries give the items of this rank's stretch of the catalogue."""

from typing import Protocol

import torch
from torch import Tensor

# C queries, K interests of a query, R = C * K, M items on this rank, m of them scored, D embedding dim


class ItemScores(Protocol):
    """Items that can be scored, in their order."""

    def __len__(self) -> int:
        """M."""
        ...

    def empty(self, *shape: int) -> Tensor:
        """A tensor of the scores' type, where they are."""
        ...

    def permuted(self, order_M: Tensor) -> "ItemScores":
        """The same items in another order."""
        ...

    def scores(self, query_CKD: Tensor, begin: int, end: int) -> Tensor:
        """[C, m] of the items from begin to end, to be changed as one likes, until the next call."""
        ...


class DotProducts:
    """Dot products of embeddings.

    To a query of several interests an item scores what it does to the best of them: Cen et al. 2020, "ComiRec", the
    aggregation module.

    Args:
        item_MD: the items' embeddings.
    """

    def __init__(self, item_MD: Tensor) -> None:
        self._item_MD = item_MD
        # held for good, since fresh memory costs more than what is done with it
        self._scores = item_MD.new_empty(0)

    def __len__(self) -> int:
        return len(self._item_MD)

    def empty(self, *shape: int) -> Tensor:
        """As of ItemScores."""
        return self._item_MD.new_empty(shape)

    def permuted(self, order_M: Tensor) -> "DotProducts":
        """As of ItemScores."""
        return DotProducts(self._item_MD[order_M])

    def scores(self, query_CKD: Tensor, begin: int, end: int) -> Tensor:
        """As of ItemScores."""
        item_mD, query_RD = self._item_MD[begin:end], query_CKD.flatten(0, 1)
        size = len(query_RD) * len(item_mD)
        if len(self._scores) < size:
            self._scores = item_mD.new_empty(size)
        score_Rm = torch.mm(query_RD, item_mD.T, out=self._scores[:size].view(len(query_RD), len(item_mD)))
        best_Cm, *others = score_Rm.unflatten(0, query_CKD.shape[:2]).unbind(1)
        for other_Cm in others:
            torch.maximum(best_Cm, other_Cm, out=best_Cm)
        return best_Cm
