"""Seconds and peak memory of exact evaluation, beside a brute-force top-k in numpy.

    python benchmarks/evaluation.py [--items 1000000] [--queries 2048] [--ranks 1] [--threads 2]

Random vectors of 64 dimensions; each query has one target and 20 items seen. `ranks` is what validation does, `lists`
the 100 best of the whole catalogue; `trainer.evaluate` does both. `numpy` multiplies as many queries at once, puts the
items seen last, and takes the 100 best with argpartition and argsort. Every form works on all queries, in processes of
its own; memory is what they add to that of the vectors, on the largest rank. `all queries` scales to --of-queries.
"""

import argparse
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from datetime import date
from multiprocessing import get_context

import numpy as np
import torch

from trainer.data.batch import QueryBatch
from trainer.data.shares import share_of_rank
from trainer.runtime.processes import Processes, joined
from trainer.runtime.ranking import CatalogRanker
from trainer.runtime.scoring import DotProducts
from trainer.runtime.top_k import CatalogTopK, seen_but_no_target

DIM, K, SEEN, BATCH = 64, 100, 20, 1024
Batch = tuple[torch.Tensor, QueryBatch]
Result = tuple[float, float, np.ndarray | None]


def vectors(rows: range, seed: int) -> torch.Tensor:
    """The same rows however they are cut, a thousand to a seed."""
    found = torch.empty((len(rows), DIM))
    for block in range(rows.start // 1000, -(-rows.stop // 1000)):
        drawn = torch.randn((1000, DIM), generator=torch.Generator().manual_seed(seed * 1_000_003 + block))
        here = range(max(rows.start, 1000 * block), min(rows.stop, 1000 * (block + 1)))
        own = drawn[here.start - 1000 * block : here.stop - 1000 * block]
        torch.nn.functional.normalize(own, out=found[here.start - rows.start : here.stop - rows.start])
    return found


def batches(items: int, queries: int, rank: int, ranks: int) -> Iterator[Batch]:
    """This rank's queries; the same over all ranks whatever their number."""
    rng = np.random.default_rng(0)
    for start in range(0, queries, BATCH):
        rows = torch.from_numpy(rng.integers(items, size=(BATCH, 1 + SEEN)))
        own = share_of_rank(BATCH, rank, ranks)
        mine, here = rows[own.start : own.stop], torch.arange(start + own.start, start + own.stop)
        lengths = torch.ones(len(own), dtype=torch.int64)
        batch = QueryBatch(None, here, mine[:, 0].contiguous(), lengths, mine[:, 1:].flatten(), SEEN * lengths)
        yield vectors(range(start + own.start, start + own.stop), 2), batch


def of_ranks(items: torch.Tensor, first_row: int, num_items: int) -> Callable[[Batch], np.ndarray | None]:
    ranker = CatalogRanker(DotProducts(items), first_row, torch.zeros(num_items, dtype=torch.bool))

    def ranks(batch: Batch) -> None:
        ranker.ranks(*batch)

    return ranks


def of_lists(items: torch.Tensor, first_row: int, num_items: int) -> Callable[[Batch], np.ndarray | None]:
    top_k = CatalogTopK(DotProducts(items), first_row, K)
    return lambda batch: top_k.lists(batch[0], *seen_but_no_target(batch[1])).row_BK.numpy()


def of_numpy(items: torch.Tensor, first_row: int, num_items: int) -> Callable[[Batch], np.ndarray | None]:
    item_ND = items.numpy()

    def lists(batch: Batch) -> np.ndarray:
        seen_BS, found = batch[1].seen_rows.view(-1, SEEN).numpy(), []
        for start in range(0, BATCH, 32):
            score_bN = batch[0][start : start + 32].numpy() @ item_ND.T
            for scores, seen, target in zip(score_bN, seen_BS[start:], batch[1].target_rows[start:], strict=False):
                scores[seen[seen != int(target)]] = -np.inf
            best_bK = np.argpartition(score_bN, -K, axis=1)[:, -K:]
            order_bK = np.argsort(-np.take_along_axis(score_bN, best_bK, axis=1), axis=1)
            found.append(np.take_along_axis(best_bK, order_bK, axis=1))
        return np.concatenate(found)

    return lists


FORMS = {"ranks": of_ranks, "lists": of_lists, "numpy": of_numpy}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(form: str, items: int, queries: int, rank: int, ranks: int, threads: int) -> Result:
    """Seconds for all queries, MB added on this rank, and the lists of its own queries, where the form makes any."""
    torch.set_num_threads(threads)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29611", RANK=str(rank))
    with joined(Processes(rank, rank, ranks, ranks, torch.device("cpu"))):
        rows = share_of_rank(items, rank, ranks)
        work = FORMS[form](vectors(rows, 1), rows.start, items)
        todo, before = list(batches(items, queries, rank, ranks)), peak_mb()
        found, begin = [], time.perf_counter()
        for batch in todo:
            found.append(work(batch))
        seconds = time.perf_counter() - begin
        return seconds, peak_mb() - before, None if form == "ranks" else np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=2048, help=f"a multiple of {BATCH}")
    parser.add_argument("--of-queries", type=int, default=100_000)
    parser.add_argument("--ranks", type=int, default=1, help="of `ranks` and `lists`; numpy is one process")
    parser.add_argument("--threads", type=int, default=2, help="over all ranks")
    asked = parser.parse_args()
    print(f"{date.today()}, {os.cpu_count()} cores {platform.machine()}, {asked.threads} threads in all")
    print(f"{asked.items:,} items, {asked.queries:,} queries, the {K} best, dim {DIM}; {asked.ranks} rank(s)")
    print(f"{'':<8}{'seconds':>9}{'queries/s':>11}{f'{asked.of_queries:,} queries':>18}{'added MB':>10}")
    lists = {}
    for form in FORMS:
        ranks = 1 if form == "numpy" else asked.ranks
        threads = asked.threads // ranks
        os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(threads)
        works = [(form, asked.items, asked.queries, rank, ranks, threads) for rank in range(ranks)]
        with get_context("spawn").Pool(ranks) as pool:
            results = pool.starmap(measure, works, chunksize=1)
        seconds, added = (max(column) for column in list(zip(*results, strict=True))[:2])
        if form != "ranks":  # of every batch, one rank's queries after another's
            parts = [of_rank.reshape(asked.queries // BATCH, -1, K) for _, _, of_rank in results]
            lists[form] = np.concatenate(parts, axis=1).reshape(-1, K)
        a_second = asked.queries / seconds
        print(
            f"{form:<8}{seconds:>9.1f}{a_second:>11.1f}{asked.of_queries / a_second:>16,.0f} s{added:>10,.0f}",
            flush=True,
        )
    same = (lists["lists"] == lists["numpy"]).all(axis=1).mean()
    print(f"lists equal to numpy's, item by item: {same:.2%} (rounding orders near-ties otherwise)")


if __name__ == "__main__":
    main()
