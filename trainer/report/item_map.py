"""A plane in which items lie as near as their embeddings allow, and the kind of each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA

from trainer.data.ragged import Ragged
from trainer.data.schema import Feature
from trainer.data.table_ids import TableIds
from trainer.runtime.loading import SavedRun

# S items, D embedding dim

MOST_KINDS = 10
OTHER = "others"


@dataclass(frozen=True)
class ItemMap:
    """Items in the plane of their first two principal components.

    Attributes:
        place_S2: float64, where they lie.
        explained: share of the embeddings' variance that each of the two has.
        column: the categorical that tells their kinds; None where items have none.
        kinds: names of the most frequent kinds, the most frequent first, at most 10.
        kind_S: int64, the number of each item's kind, -1 for others.
    """

    place_S2: np.ndarray
    explained: tuple[float, float]
    column: str | None
    kinds: Sequence[str]
    kind_S: np.ndarray


def item_map(run: SavedRun, row_S: np.ndarray, item_SD: np.ndarray) -> ItemMap | None:
    """The map of a sample of items; of a list of categories the first counts.

    Args:
        run: with the catalogue.
        row_S: int64, their catalogue rows.
        item_SD: float32, their embeddings.

    Returns:
        None where there are too few items or dimensions for a plane, an embedding is not finite, or all are equal.
    """
    if min(item_SD.shape) < 2 or not np.isfinite(item_SD).all() or not item_SD.std(axis=0).any():
        return None
    pca = PCA(n_components=2, svd_solver="full")
    place_S2 = pca.fit_transform(item_SD.astype(np.float64))
    first, second = pca.explained_variance_ratio_.tolist()
    feature = next((f for f in run.schema.side("candidate") if f.kind == "categorical"), None)
    kinds, kind_S = ((), np.full(len(row_S), -1)) if feature is None else _kinds(run, feature, row_S)
    return ItemMap(place_S2, (first, second), feature.name if feature else None, kinds, kind_S)


def _kinds(run: SavedRun, feature: Feature, row_S: np.ndarray) -> tuple[Sequence[str], np.ndarray]:
    value_S = _first(run.catalog.sparse(feature, row_S))
    counts = Counter(value for value in value_S.tolist() if value >= 0)
    frequent = sorted(counts, key=lambda value: (-counts[value], value))[:MOST_KINDS]
    kind_S = np.full(len(row_S), -1)
    for kind, value in enumerate(frequent):
        kind_S[value_S == value] = kind
    return _names(run, feature, frequent), kind_S


def _first(lists: Ragged) -> np.ndarray:
    """int64 [S], -1 for an empty one."""
    first = np.full(len(lists.lengths), -1)
    filled = lists.lengths > 0
    first[filled] = lists.values[lists.offsets[:-1][filled]]
    return first


def _names(run: SavedRun, feature: Feature, rows: Sequence[int]) -> list[str]:
    """The user's own values where a vocabulary tells them, else rows of the table."""
    if feature.hashed or not (Path(run.data_dir) / "vocabulary" / f"{feature.table}.parquet").exists():
        return [f"row {row}" for row in rows]
    ids = TableIds(run.data_dir, run.schema, feature.table)
    values = [ids.of(range(row, row + 1))[0].as_py() for row in rows]
    return ["(unknown)" if value is None else str(value) for value in values]
