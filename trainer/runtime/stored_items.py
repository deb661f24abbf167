"""Item embeddings as an export left them, shard by shard."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm.auto import tqdm

from trainer.data.vector_types import embeddings_of
from trainer.errors import UserError
from trainer.runtime import checkpoint
from trainer.runtime.shard_folder import SUCCESS, read_manifest

# R rows of a shard, D embedding dim

_NAME, _ID = "item_embeddings", "item_id"


class StoredItems:
    """The whole catalogue, as `trainer.export` writes it to RUN/item_embeddings.

    Args:
        run_dir: of the training.

    Attributes:
        manifest: what the export says of itself.

    Raises:
        UserError: the folder is not there, or not whole.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self._run_dir, self._folder = run_dir, Path(run_dir) / _NAME
        manifest = read_manifest(self._folder)
        if manifest is None or not (self._folder / SUCCESS).exists():
            raise self._unfit("not a whole export: no _SUCCESS or no manifest")
        self.manifest: dict[str, Any] = manifest

    def __len__(self) -> int:
        return self.manifest["num_rows"]

    def shards(self, told: str) -> Iterator[tuple[pa.Array, NDArray[np.float32]]]:
        """Ids and embeddings [R, D] of each shard, one at a time in memory, with a progress bar.

        Args:
            told: what is done with them.

        Raises:
            UserError: a shard is missing, or is not what was written.
        """
        with tqdm(total=len(self), desc=told, unit="item", unit_scale=True) as progress:
            for shard in self.manifest["shards"]:
                path = self._folder / shard["file"]
                if checkpoint.checksum(path) != {key: shard[key] for key in ("bytes", "sha256")}:
                    raise self._unfit(f"{shard['file']} is {'damaged' if path.exists() else 'missing'}")
                table = pq.read_table(path)
                yield table[_ID].combine_chunks(), embeddings_of(table)
                progress.update(len(table))

    def sample(self, most: int, seed: int) -> NDArray[np.float32]:
        """Embeddings of items drawn from all shards, [most, D] or all there are."""
        drawn = np.arange(len(self))
        if len(self) > most:
            drawn = np.sort(np.random.default_rng(seed).choice(len(self), most, replace=False))
        parts, first = [], 0
        for _, row_RD in self.shards("sample"):
            begin, end = np.searchsorted(drawn, [first, first + len(row_RD)])
            parts.append(row_RD[drawn[begin:end] - first])
            first += len(row_RD)
        return np.concatenate(parts)

    def _unfit(self, found: str) -> UserError:
        return UserError("run.dir", f"{self._run_dir} ({self._folder.name}: {found})",
                         "the item embeddings of the run, whole and as written",
                         f"write what is missing: trainer.export run.dir={self._run_dir}")  # fmt: skip
