"""An index of item embeddings, built shard by shard and compared with exact search."""

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.config import ItemIndexConfig
from trainer.errors import UserError
from trainer.retrieval.item_index import FACTS, IDS, INDEX, search
from trainer.runtime.stored_items import StoredItems
from trainer.runtime.whole_files import synchronise

# Q queries, I interests of a query, K items of a list, D embedding dim

_PER_LIST = 39
"""Items a list or a centroid should be learned from at least, faiss says."""
_CODES = 256
"""Centroids of a byte."""


@dataclass(frozen=True)
class Measured:
    """A setting of the search.

    Attributes:
        setting: its name and value, or `exact`.
        recall: share of the exact lists that it finds.
        p50: milliseconds of a query by itself on one thread, half of them at most.
        p99: of all but a hundredth of them.
    """

    setting: str
    recall: float
    p50: float
    p99: float


def check_index(items: StoredItems, config: ItemIndexConfig) -> None:
    """Refuses an index that the items cannot make.

    Raises:
        UserError: it is compressed, and the dimension or the number of items does not allow it.
    """
    if config.kind != "ivf_pq":
        return
    dimension = items.manifest["dimension"]
    if dimension % config.code_size:
        fitting = [size for size in range(1, dimension + 1) if dimension % size == 0]
        quarter = max(size for size in fitting if size <= max(1, dimension // 4))
        raise UserError("index.code_size", config.code_size, f"a divisor of the dimension: {fitting}",
                        f"set index.code_size={quarter}")  # fmt: skip
    if min(len(items), config.training_rows) < _CODES:
        raise UserError("index.kind", "ivf_pq", f"{_CODES} items to learn codes from; there are {len(items)} items, "
                        f"and index.training_rows={config.training_rows}", "set index.kind=flat")  # fmt: skip
    most = min(len(items), config.training_rows) // _PER_LIST
    if config.lists is not None and config.lists > most:
        raise UserError("index.lists", config.lists, f"at most {most}: a list is learned from {_PER_LIST} items",
                        f"set index.lists={most}, or index.lists=null")  # fmt: skip


def build(items: StoredItems, config: ItemIndexConfig, folder: Path) -> faiss.Index:
    """Builds an index, writes it, and replaces with it what was there.

    Memory holds one shard besides the index, and of ivf_pq the rows that it learns from.

    Args:
        items: to be indexed.
        config: of the index.
        folder: RUN/index.

    Returns:
        The index.

    Raises:
        UserError: a shard is not what was written.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        index = _empty(items, config)
        ids = []
        for id_R, row_RD in items.shards("index"):
            index.add(row_RD)
            ids.append(id_R)
        if config.kind != "flat":
            _set_effort(index, efforts(config)[-1])
        pq.write_table(pa.table({"item_id": pa.chunked_array(ids)}), partial / IDS)
        _write(index, partial / INDEX)
        facts = {key: items.manifest[key] for key in ("model", "checkpoint", "step", "dimension")}
        facts |= {"num_items": len(items), "metric": "inner_product", "settings": asdict(config)}
        (partial / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
        for file in partial.iterdir():
            synchronise(file)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return index


def efforts(config: ItemIndexConfig) -> list[int]:
    """What is asked for of the searches of a kind."""
    return {"flat": [], "hnsw": config.ef_search, "ivf_pq": config.nprobe}[config.kind]


def measure(
    index: faiss.Index, items: StoredItems, query_QD: NDArray[np.float32], config: ItemIndexConfig
) -> list[Measured]:
    """Compares each setting of the search with exact search over the shards.

    Args:
        index: of the items.
        items: what it was built from.
        query_QD: float32 [Q, D], or [Q, I, D].
        config: with the settings.
    """
    k = min(config.k, len(items))
    exact = _exact(items, query_QD, k)
    name = {"flat": "exact", "hnsw": "ef_search", "ivf_pq": "nprobe"}[config.kind]
    settings: list[int | None] = [*efforts(config)] or [None]
    return [_measure(index, query_QD, exact, name, effort) for effort in settings]


def _measure(
    index: faiss.Index, query_QD: NDArray[np.float32], exact: list[NDArray[np.int64]], name: str, effort: int | None
) -> Measured:
    k, found, seconds = len(exact[0]), 0, []
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        for query in [0, *range(len(query_QD))]:  # the first one twice: it warms up
            start = time.perf_counter()
            rows, _ = search(index, query_QD[query : query + 1], k, effort)
            seconds.append(time.perf_counter() - start)
            found += len(np.intersect1d(rows[0], exact[query])) * (len(seconds) > 1)
    finally:
        faiss.omp_set_num_threads(threads)
    p50, p99 = np.percentile(seconds[1:], [50, 99]) * 1000
    return Measured(name if effort is None else f"{name}={effort}", found / (k * len(query_QD)), p50, p99)


def _exact(items: StoredItems, query_QD: NDArray[np.float32], k: int) -> list[NDArray[np.int64]]:
    """The best rows of each query, of all shards."""
    rows, scores = [np.empty(0, np.int64)] * len(query_QD), [np.empty(0, np.float32)] * len(query_QD)
    first = 0
    for _, row_RD in items.shards("exact search"):
        flat = faiss.IndexFlatIP(row_RD.shape[1])
        flat.add(row_RD)
        here_rows, here_scores = search(flat, query_QD, min(k, len(row_RD)))
        for query, (row_K, score_K) in enumerate(zip(here_rows, here_scores, strict=True)):
            row_X, score_X = np.append(rows[query], row_K + first), np.append(scores[query], score_K)
            best = np.argsort(-score_X, kind="stable")[:k]
            rows[query], scores[query] = row_X[best], score_X[best]
        first += len(row_RD)
    return rows


def _empty(items: StoredItems, config: ItemIndexConfig) -> faiss.Index:
    """An index without items, that has learned what it must."""
    dimension = items.manifest["dimension"]
    if config.kind != "ivf_pq":
        described = "Flat" if config.kind == "flat" else f"HNSW{config.links}"
        index = faiss.index_factory(dimension, described, faiss.METRIC_INNER_PRODUCT)
        if config.kind == "hnsw":
            index.hnsw.efConstruction = config.ef_construction
        return index
    row_RD = items.sample(config.training_rows, config.seed)
    lists = config.lists or max(1, min(round(4 * math.sqrt(len(items))), len(row_RD) // _PER_LIST))
    # np: without an order of the codes, which takes seconds and which no search here uses
    index = faiss.index_factory(dimension, f"IVF{lists},PQ{config.code_size}np", faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.min_points_per_centroid = 1  # codes of few items are no worse than the recall that is measured
    index.train(row_RD)
    return index


def _set_effort(index: faiss.Index, effort: int) -> None:
    """What the index is searched with where nothing else is said."""
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = effort
    else:
        index.nprobe = min(effort, index.nlist)


def _write(index: faiss.Index, path: Path) -> None:
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:  # faiss tells of the file system in its own words
        raise UserError("run.dir", path, f"room and leave to write the index ({error})",
                        "make room, and give the same command again") from None  # fmt: skip
