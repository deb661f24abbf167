"""The last queries of a split: what a model makes of them, and what they were before they were prepared."""

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from trainer.data.events import HeldOutReader
from trainer.data.raw_queries import Ids, raw_queries
from trainer.data.row_groups import open_events
from trainer.data.schema import Feature
from trainer.errors import UserError
from trainer.runtime.loading import SavedRun
from trainer.runtime.lockstep import in_lockstep
from trainer.runtime.served_queries import rows_as_inputs
from trainer.serving.query_tower import QueryTower

# B queries, D embedding dim

_QUERIES = 256
_CALLS = 300
_CLOSE = 1e-5


class HeldOutQueries:
    """At most 256 of them.

    Args:
        run: with the data.
        split: test or validation.

    Raises:
        UserError: the split has no rows, or they cannot be read.
    """

    def __init__(self, run: SavedRun, split: str) -> None:
        self._run, self._files = run, open_events(run.data_dir, run.schema, split)
        self._rows = range(max(0, self._files.num_rows - _QUERIES), self._files.num_rows)

    @torch.no_grad()
    def embed(self, model: nn.Module, device: torch.device) -> Tensor:
        """Through a sharded model, on every rank alike: float32 [B, D] or [B, K, D], on the CPU."""
        [batch] = HeldOutReader(self._files, self._run.assembler, len(self._rows), self._rows, steps=1)
        query_BD, _ = model(in_lockstep(batch.batch.to(device)))
        return query_BD.cpu()

    def raw(self, features: Sequence[Feature], ids: Mapping[str, Ids], has_ages: bool) -> list[dict[str, Any]]:
        """See raw_queries."""
        return raw_queries(self._events, features, ids, self._run.catalog, has_ages)

    def rows(self, features: Sequence[Feature]) -> dict[str, Tensor]:
        """See rows_as_inputs."""
        return rows_as_inputs(self._events, features, self._run.catalog)

    @cached_property
    def _events(self) -> pa.Table:
        return pa.concat_tables(self._files.batches(self._rows.start, self._rows.stop, len(self._rows)))


def difference(found: Tensor, expected: Tensor, dtype: str) -> float:
    """The largest of any number, in shares of the largest number where that is above 1.

    Raises:
        UserError: float32 embeddings are not equal to 1e-5.
    """
    furthest = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
    if dtype == "float32" and not furthest <= _CLOSE:
        raise UserError("query_tower.pt2", f"{furthest:.1e} from the model", f"embeddings equal to {_CLOSE:.0e}",
                        "nothing was written; report it, with RUN/config.yaml")  # fmt: skip
    return furthest


def latency(tower: QueryTower, queries: Sequence[dict[str, Any]]) -> list[str]:
    """Lines with the time that queries take on one thread, from what JSON holds to embeddings."""
    threads, told = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for size in (1, 64):
            seconds = []
            for call in range(_CALLS):
                batch = [queries[(call * size + place) % len(queries)] for place in range(size)]
                start = time.perf_counter()
                tower.embed(batch)
                seconds.append(time.perf_counter() - start)
            p50, p99 = np.percentile(seconds[_CALLS // 10 :], [50, 99]) * 1000  # the first ones warm up
            told.append(f"latency on one thread, batch of {size}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    finally:
        torch.set_num_threads(threads)
    return told
