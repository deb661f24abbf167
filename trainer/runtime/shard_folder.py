"""The folder that an export fills: what is done of it is known at any moment, and it is seen only when whole.

    RUN/item_embeddings.partial/part-00000.parquet      a shard, written beside its place, synchronised and renamed
    .../_progress/claim.json                            what the shards are of, written before the first
    .../_progress/part-00000.parquet.json               size and SHA-256 of a shard, noted by the rank that wrote it
    .../_manifest.json, then .../_SUCCESS               once nothing is missing; then the folder gets its own name

A later export of the same claim keeps every shard that is as it was noted, here or in the folder of the whole, and
writes the others. One of another claim begins anew; the whole folder before it stays until it is whole itself.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm.auto import tqdm

from trainer.runtime import checkpoint
from trainer.runtime.gather import gather_objects
from trainer.runtime.whole_files import synchronise, write

MANIFEST, SUCCESS = "_manifest.json", "_SUCCESS"
_PROGRESS, _CLAIM = "_progress", "claim.json"
_OF_ALL = {"checkpoint", "step", "model", "data", "side", "dimension", "dtype", "schema", "num_rows", "rows_per_shard"}
_OF_A_SHARD = {"file", "num_rows", "bytes", "sha256"}
"""What a manifest says, at the least."""


class ShardFolder:
    """A folder of shards in the making; all ranks call each method but `note` together.

    Args:
        path: of the folder when it is whole.
        claim: what its shards are of.
        num_rows: of each shard, by its file's name.
    """

    def __init__(self, path: Path, claim: dict[str, Any], num_rows: Mapping[str, int]) -> None:
        self._whole, self._claim, self._num_rows = path, claim, num_rows
        self._partial = self.path = path.with_name(path.name + ".partial")

    def missing(self) -> list[str]:
        """Files that are not there as they were noted, each rank having read its share of those that are.

        Raises:
            OSError: on every rank, if the first cannot write there.
        """
        self.path, noted = _as_first_says(self._find)
        share = list(self._num_rows)[dist.get_rank() :: dist.get_world_size()]
        progress = tqdm(share, desc="check", unit="shard a rank", disable=dist.get_rank() > 0 or not noted)
        lost = [file for file in progress if file not in noted or checkpoint.checksum(self.path / file) != noted[file]]
        missing = sorted(file for of_rank in gather_objects(lost) for file in of_rank)
        if missing:
            self.path = _as_first_says(self._reopen)
        return missing

    def note(self, file: str, written: dict[str, Any]) -> None:
        """Remembers a shard that this rank has put in its place, by size and SHA-256."""
        write(self.path / _PROGRESS, f"{file}.json", json.dumps(written))

    def complete(self) -> None:
        """Writes manifest and mark, and gives the folder its name, unless all that is done."""
        dist.barrier()  # every rank has noted what it wrote
        _as_first_says(self._complete)

    def _find(self) -> tuple[Path, dict[str, Any]]:
        """The folder that the claim is of, and what is noted of its shards."""
        for path in (self._whole, self._partial):
            if _claim_of(path) == self._claim:
                for rest in path.glob("*.partial"):  # of a process that was killed
                    rest.unlink()
                return path, _notes_of(path)
        shutil.rmtree(self._partial, ignore_errors=True)
        (self._partial / _PROGRESS).mkdir(parents=True)
        write(self._partial / _PROGRESS, _CLAIM, json.dumps(self._claim, indent=2) + "\n")
        return self._partial, {}

    def _reopen(self) -> Path:
        """Takes back that the folder is whole."""
        (self.path / SUCCESS).unlink(missing_ok=True)
        if self.path == self._whole:
            shutil.rmtree(self._partial, ignore_errors=True)  # of another claim
            self._whole.rename(self._partial)
        (self._partial / _PROGRESS).mkdir(exist_ok=True)
        return self._partial

    def _complete(self) -> None:
        if self.path == self._whole and (self.path / SUCCESS).exists():
            return
        notes = _notes_of(self.path)
        shards = [{"file": file, "num_rows": rows, **notes[file]} for file, rows in self._num_rows.items()]
        write(self.path, MANIFEST, json.dumps({**self._claim, "shards": shards}, indent=2) + "\n")
        shutil.rmtree(self.path / _PROGRESS, ignore_errors=True)
        write(self.path, SUCCESS, "")
        if self.path == self._partial:
            shutil.rmtree(self._whole, ignore_errors=True)
            self._partial.rename(self._whole)
        synchronise(self._whole.parent)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Of a folder; None where there is none that can be read, or it lacks what each has."""
    manifest = _read(path / MANIFEST) or {}
    shards = manifest.get("shards")
    if not manifest.keys() >= _OF_ALL or not isinstance(shards, list):
        return None
    return manifest if all(isinstance(shard, dict) and shard.keys() >= _OF_A_SHARD for shard in shards) else None


def _claim_of(path: Path) -> dict[str, Any] | None:
    manifest = read_manifest(path)
    if manifest is None:
        return _read(path / _PROGRESS / _CLAIM)
    return {name: value for name, value in manifest.items() if name != "shards"}


def _notes_of(path: Path) -> dict[str, Any]:
    """Size and SHA-256 by file; what is noted on the way is newer than a manifest."""
    manifest = read_manifest(path) or {"shards": []}
    noted = {shard["file"]: {key: shard[key] for key in ("bytes", "sha256")} for shard in manifest["shards"]}
    for note in (path / _PROGRESS).glob("*.parquet.json"):
        if (read := _read(note)) is not None:
            noted[note.name.removesuffix(".json")] = read
    return noted


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _as_first_says(act: Callable[[], Any]) -> Any:
    """What the first rank's call returns, or raises, on every rank."""
    told: Any = None
    if dist.get_rank() == 0:
        try:
            told = act()
        except OSError as error:
            told = error
    told = gather_objects(told)[0]
    if isinstance(told, OSError):
        raise told
    return told
