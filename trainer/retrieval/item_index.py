"""Items near a query: the index that `trainer.index` builds, searched by faiss; faiss-cpu and pyarrow are needed.

RUN/index/items.faiss      the index, whose entries are numbered from 0 in the order of the shards
RUN/index/ids.parquet      item_id of each entry
RUN/index/index.json       fingerprint of the model, kind, settings
"""

import json
from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.errors import UserError
from trainer.serving.vocabulary import Id

# B queries, I interests of a query, K items of a list, D embedding dim

INDEX, IDS, FACTS = "items.faiss", "ids.parquet", "index.json"


class Scored(NamedTuple):
    """An item of a list."""

    id: Id
    score: float
    """Dot product with the query; of a compressed index, nearly."""


class ItemIndex:
    """An index, loaded.

    Args:
        folder: RUN/index.

    Attributes:
        facts: fingerprint of the model, checkpoint, kind, settings, dimension, number of items.

    Raises:
        UserError: there is none, or it cannot be read.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        path = Path(folder)
        try:
            self.facts: dict[str, Any] = json.loads((path / FACTS).read_text())
            self._ids: pa.ChunkedArray = pq.read_table(path / IDS)["item_id"]
            self._index = faiss.read_index(str(path / INDEX))
            if not self._index.ntotal == len(self._ids) == self.facts["num_items"]:
                raise ValueError(f"{self._index.ntotal} entries, {len(self._ids)} ids")
            if "model" not in self.facts:
                raise ValueError(f"{FACTS} does not say of which model")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, pa.ArrowException) as error:
            raise UserError("folder", path, f"an index that can be read ({error})",
                            "build it with trainer.index, or name another") from None  # fmt: skip

    def search(
        self, query_BD: NDArray[np.float32], k: int, left_out: Sequence[Collection[Id]] = ()
    ) -> list[list[Scored]]:
        """The best items of each query by falling score; fewer than k where the index finds no more.

        Args:
            query_BD: float32 [B, D], or [B, I, D]: an item's score is then that of the interest nearest to it.
            k: length of the lists.
            left_out: for each query, ids that are not to be in its list.
        """
        most = max(map(len, left_out), default=0)
        rows, scores = search(self._index, query_BD, min(k + most, self._index.ntotal))
        lists = []
        for query, (of_query, score_K) in enumerate(zip(rows, scores, strict=True)):
            found = [Scored(*one) for one in zip(self._ids.take(of_query).to_pylist(), score_K.tolist(), strict=True)]
            others = left_out[query] if left_out else ()
            lists.append([scored for scored in found if scored.id not in others][:k])
        return lists


def search(
    index: faiss.Index, query_BD: NDArray[np.float32], k: int, effort: int | None = None
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float32]]]:
    """Entries of an index and their scores, by falling score, for each of B queries.

    Args:
        index: of inner products.
        query_BD: float32 [B, D], or [B, I, D] of several interests, of which an entry has the largest score.
        k: at most so many.
        effort: candidates (hnsw) or lists (ivf_pq) of this search; None for those it was saved with.
    """
    interests = query_BD.shape[1] if query_BD.ndim == 3 else 1
    flat = np.ascontiguousarray(query_BD.reshape(-1, query_BD.shape[-1]))
    score_XK, row_XK = index.search(flat, k, params=_parameters(index, effort))
    scores, rows = (of_all.reshape(len(query_BD), interests * k) for of_all in (score_XK, row_XK))
    best = [_best(row, score, k) for row, score in zip(rows, scores, strict=True)]
    return [row for row, _ in best], [score for _, score in best]


def _best(row_X: NDArray[np.int64], score_X: NDArray[np.float32], k: int) -> tuple[NDArray, NDArray]:
    """The first k different rows by falling score; faiss says -1 where it found none."""
    order_X = np.argsort(-score_X, kind="stable")
    row_X, score_X = row_X[order_X], score_X[order_X]
    _, first = np.unique(row_X, return_index=True)
    kept = np.sort(first[row_X[first] >= 0])[:k]
    return row_X[kept], score_X[kept]


def _parameters(index: faiss.Index, effort: int | None) -> faiss.SearchParameters | None:
    if effort is None or isinstance(index, faiss.IndexFlat):
        return None
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=effort)
    return faiss.SearchParametersIVF(nprobe=effort)
