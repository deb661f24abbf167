"""Items that are new since an earlier export, or whose features have changed, and those that are gone."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch.distributed as dist
from numpy.typing import NDArray
from tqdm.auto import tqdm

from trainer.config import ExportConfig
from trainer.data.item_digests import item_digests
from trainer.errors import UserError
from trainer.runtime import checkpoint
from trainer.runtime.fingerprint import model_fingerprint
from trainer.runtime.gather import gather_objects
from trainer.runtime.loading import SavedRun
from trainer.runtime.shard_folder import MANIFEST, SUCCESS, read_manifest
from trainer.runtime.shards import ItemShards


class ChangedItems(ItemShards):
    """Those that an index filled by the earlier export lacks or has otherwise; all ranks make it together.

    The first rank finds them; meanwhile it holds the ids and digests of the earlier export.

    Args:
        run: whose they are.
        config: of the export, which names the earlier one.

    Raises:
        UserError: that is not whole and as it was written, of another model, or itself of changed items alone.
    """

    def __init__(self, run: SavedRun, config: ExportConfig) -> None:
        since = Path(config.export.since or "")
        files, digest = _open(since, run)
        found: Any = None
        if dist.get_rank() == 0:
            found = _compare(run, pq.read_table([since / file for file in files], columns=["item_id", "digest"]))
        rows, deleted = gather_objects(found)[0]
        super().__init__(run, config, rows)
        self.folder, self.told = "item_embeddings_since", "new or changed item embeddings"
        self.facts |= {"since": {"folder": str(since), "manifest_sha256": digest}, "deleted": deleted}


def _open(since: Path, run: SavedRun) -> tuple[list[str], str]:
    """The shards of an earlier export, and the digest of its manifest.

    Raises:
        UserError: it is not one to go on from.
    """
    manifest = read_manifest(since)
    if manifest is None or not (since / SUCCESS).exists():
        raise UserError("export.since", since, f"a folder of trainer.export with {MANIFEST} and {SUCCESS}",
                        "name such a folder, or set export.since=null")  # fmt: skip
    if manifest["side"] != "item" or "since" in manifest:
        raise UserError("export.since", since, "an export of all items", "name the one that this one is since")
    if manifest["model"] != model_fingerprint(run):
        expected = f"an export of {run.checkpoint.name} of this run, not of another model ({manifest['checkpoint']})"
        raise UserError("export.since", since, f"{expected}: each embedding is another",
                        "set export.since=null, or run.checkpoint to the one that it is of")  # fmt: skip
    _refuse_damaged(since, manifest["shards"])
    digest = hashlib.sha256((since / MANIFEST).read_bytes()).hexdigest()
    return [shard["file"] for shard in manifest["shards"]], digest


def _refuse_damaged(since: Path, shards: list[dict[str, Any]]) -> None:
    """Each rank reads its share of the shards; all raise if any is not as it was written."""
    mine = shards[dist.get_rank() :: dist.get_world_size()]
    progress = tqdm(mine, desc="check", unit="shard a rank", disable=dist.get_rank() > 0)
    lost = [
        shard["file"]
        for shard in progress
        if checkpoint.checksum(since / shard["file"]) != {key: shard[key] for key in ("bytes", "sha256")}
    ]
    if damaged := sorted(file for of_rank in gather_objects(lost) for file in of_rank):
        raise UserError("export.since", since, f"its shards as written, which these are not: {', '.join(damaged)}",
                        "bring them back, or set export.since=null")  # fmt: skip


def _compare(run: SavedRun, before: pa.Table) -> tuple[NDArray[np.int64], list[Any]]:
    """Catalogue rows of the items to be written, ascending, and the ids of those that are gone."""
    catalog, features = run.catalog, [f for f in run.assembler.features if f.side == "candidate"]
    ids = catalog.raw_ids(np.arange(len(catalog)))
    place = pc.index_in(ids, before["item_id"].combine_chunks()).fill_null(-1).to_numpy(zero_copy_only=False)
    rows = np.arange(len(catalog))
    same = (place >= 0) & (before["digest"].to_numpy()[place] == item_digests(catalog, features, rows))
    is_there = np.zeros(len(before), bool)
    is_there[place[place >= 0]] = True
    return rows[~same], before["item_id"].filter(pa.array(~is_there)).to_pylist()
