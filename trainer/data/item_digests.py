"""Digests of what a model sees of items, by which those are told whose features have changed."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.data.catalog import Catalog
from trainer.data.ragged import Ragged
from trainer.data.schema import Feature

# n items, C dense columns

_AT_ONCE = 4096
"""Items; what is made of their features on the way is twice as large as these."""


def item_digests(catalog: Catalog, features: Sequence[Feature], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [n], equal for items whose features are equal bit for bit, and for hardly any others.

    Args:
        catalog: with the items.
        features: of the candidate side, as the model knows them.
        rows: int64 [n], catalogue rows.
    """
    parts = [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
    return np.concatenate([np.empty(0, np.int64), *(_digests(catalog, features, part) for part in parts)])


def _digests(catalog: Catalog, features: Sequence[Feature], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    digest_n = np.zeros(len(rows), np.uint64)
    for feature in features:
        if feature.is_sparse:
            digest_n += _of_lists(catalog.sparse(feature, rows), _key(feature.name))
        else:
            dense_nC = catalog.dense(feature, rows).reshape(len(rows), -1).astype(np.float32)
            factor_C = _mixed(_key(feature.name) + np.arange(dense_nC.shape[1], dtype=np.uint64)) | np.uint64(1)
            digest_n += dense_nC.view(np.uint32).astype(np.uint64) @ factor_C
    return _mixed(digest_n).view(np.int64)


def _of_lists(lists: Ragged, key: np.uint64) -> NDArray[np.uint64]:
    """uint64 [n], of values, weights and the place of each in its list."""
    ends = np.cumsum(lists.lengths)
    place = np.arange(len(lists.values)) - np.repeat(ends - lists.lengths, lists.lengths)
    mixed = _mixed(lists.values.astype(np.uint64) ^ _mixed(key + place.astype(np.uint64)))
    if lists.weights is not None:
        mixed = _mixed(mixed ^ lists.weights.astype(np.float32).view(np.uint32))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed)])  # modulo 2^64, so that differences are exact
    return sums[ends] - sums[ends - lists.lengths]


def _key(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64, a bijection."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
