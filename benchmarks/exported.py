"""The lists that a run's exported embeddings give the test queries of its prepared folder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

# Q test queries of one target each, q some of them, N items, D embedding dim


@dataclass(frozen=True)
class HeldOutRows:
    """What a prepared folder says of its test queries."""

    columns: pa.Table
    """The features, and what else the folder holds."""
    target_Q: np.ndarray
    """int [Q], catalogue row of the target."""
    seen_Q: list[np.ndarray]
    """Catalogue rows of what the user did before, oldest first, for each query."""

    @classmethod
    def read(cls, data: Path) -> "HeldOutRows":
        columns = ds.dataset(sorted((data / "events" / "test").glob("part-*.parquet"))).to_table().combine_chunks()
        seen = columns["seen"].chunk(0)
        seen_Q = np.split(seen.values.to_numpy(), seen.offsets.to_numpy()[1:-1])
        return cls(columns, np.array([target for [target] in columns["targets"].to_pylist()]), seen_Q)

    def column(self, name: str) -> np.ndarray:
        """[Q]."""
        return self.columns[name].to_numpy()


@dataclass(frozen=True)
class Lists:
    """Items by falling score for each query, without those that the user has seen."""

    query_QD: np.ndarray
    item_ND: np.ndarray
    rows: HeldOutRows

    @classmethod
    def read(cls, run: Path, rows: HeldOutRows) -> "Lists":
        return cls(*(_embeddings(run / f"{side}_embeddings") for side in ("query", "item")), rows)

    def ranks(self, query_q: np.ndarray, of_q: np.ndarray | None = None) -> np.ndarray:
        """Ranks of targets as trainer.evaluate has them.

        Args:
            query_q: int [q], queries whose embedding asks.
            of_q: int [q], those whose target is looked for and whose items seen are left out; null for the same.
        """
        of_q = query_q if of_q is None else of_q
        score_qN, target = self.query_QD[query_q] @ self.item_ND.T, (np.arange(len(of_q)), self.rows.target_Q[of_q])
        threshold_q = score_qN[target]  # from the same product, whose rounding then is the same for equal items
        score_qN[target] = -np.inf
        return 1 + (self._without_seen(score_qN, of_q) >= threshold_q[:, None]).sum(axis=1)

    def top(self, k: int, query_q: np.ndarray, of_q: np.ndarray) -> np.ndarray:
        """int [q, k] catalogue rows of the first k, in no order; arguments as of `ranks`."""
        score_qN = self._without_seen(self.query_QD[query_q] @ self.item_ND.T, of_q)
        return np.argpartition(-score_qN, k, axis=1)[:, :k]

    def _without_seen(self, score_qN: np.ndarray, of_q: np.ndarray) -> np.ndarray:
        for scores, query in zip(score_qN, of_q, strict=True):
            scores[self.rows.seen_Q[query]] = -np.inf
        return score_qN


def _embeddings(folder: Path) -> np.ndarray:
    column = ds.dataset(sorted(folder.glob("part-*.parquet"))).to_table()["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)
