"""Checkpoints on disk: every rank writes its own rows, and any number of ranks reads them back.

    RUN/checkpoints/best.json    step and validation metrics of the best
    RUN/checkpoints/step-N/      .metadata and *.distcp of torch.distributed.checkpoint: tables, dense layers, fused
                                 optimizer state; trainer.pt, what Lightning keeps: dense optimizer, schedule, loops,
                                 callbacks; and checksums.json, size and SHA-256 of each of these files

A checkpoint is written beside its place as step-N.partial and renamed when whole, so a folder without the suffix was
complete when it was written. Whether it still is, is checked before it is read.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torchrec.distributed import DistributedModelParallel

from trainer.errors import UserError
from trainer.runtime.gather import gather_objects
from trainer.runtime.whole_files import write

BEST, REST, CHECKSUMS, METADATA = "best.json", "trainer.pt", "checksums.json", ".metadata"
DAMAGED = ".damaged"
"""Suffix of what the user has had set aside; theirs to remove."""
_AT_ONCE = 1 << 24
"""Bytes of a file read at a time."""


def state_of(model: DistributedModelParallel) -> dict[str, Any]:
    """Tables, dense layers and the tables' optimizer state, as they are: not a copy."""
    state, fused = {"model": model.state_dict()}, model.fused_optimizer.state_dict()
    # SGD has none, nor has a rank without tables: torch.distributed.checkpoint takes an empty one for an entry to read
    return state | {"fused_optimizer": fused} if any(fused["state"].values()) else state


def load(model: DistributedModelParallel, path: str | Path) -> None:
    """Reads a verified checkpoint into a model that may be sharded over another number of ranks.

    Raises:
        UserError: the checkpoint has other tables, layers or sizes than the model.
    """
    state = state_of(model)
    _read(state, path)
    model.load_state_dict(state["model"])
    if "fused_optimizer" in state:
        model.fused_optimizer.load_state_dict(state["fused_optimizer"])


def load_dense(model: nn.Module, path: str | Path) -> None:
    """Reads what a verified checkpoint has of a model without tables; a process does so by itself.

    Raises:
        UserError: the checkpoint has other layers or sizes than the model.
    """
    state = {"model": model.state_dict()}
    _read(state, path, no_dist=True)
    model.load_state_dict(state["model"])


def _read(state: dict[str, Any], path: str | Path, no_dist: bool = False) -> None:
    try:
        dcp.load(state, checkpoint_id=path, no_dist=no_dist)
    except dcp.CheckpointException as error:
        raise UserError(
            "run.dir",
            path,
            f"a checkpoint of this very model ({reasons(error)})",
            "give every configuration its own run.dir",
        ) from None


def reasons(error: dcp.CheckpointException) -> str:
    """What went wrong on all ranks, on one line."""
    failures = [failure[0] for failure in error.failures.values()]
    return "; ".join(sorted({(str(failure) or type(failure).__name__).splitlines()[0] for failure in failures}))


def load_rest(path: str | Path) -> dict[str, Any]:
    """What was saved beside the model: dense optimizer, loops, callbacks."""
    # the file holds loop states and callbacks of the user's own run beside tensors
    return torch.load(Path(path) / REST, map_location="cpu", weights_only=False)


def checksum(file: Path) -> dict[str, Any] | None:
    """Size and SHA-256 of a file, or None where there is none."""
    if not file.is_file():
        return None
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while block := stream.read(_AT_ONCE):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def written_checksums(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of every file of a checkpoint, as noted when it was written.

    Raises:
        UserError: they are not there any more, or not those of all files.
    """
    needed = {REST, METADATA, *(file.name for file in path.glob("*.distcp"))}
    try:
        written = json.loads((path / CHECKSUMS).read_text())
        if not isinstance(written, dict) or needed - written.keys():
            raise ValueError("it is not of all files")
        return written
    except (OSError, ValueError) as error:
        raise UserError("run.checkpoint", path, f"its {CHECKSUMS} as written ({error})",
                        "bring the file back, or name another checkpoint") from None  # fmt: skip


def damaged_files(path: str | Path) -> list[str]:
    """Files of a checkpoint that are not as they were written; each rank reads its share, all learn the same."""
    path, rank, world_size = Path(path), dist.get_rank(), dist.get_world_size()
    try:
        written = written_checksums(path)
        share = sorted(written)[rank::world_size]
        damaged = [file for file in share if checksum(path / file) != written[file]]
    except (OSError, UserError):
        damaged = [CHECKSUMS]
    return sorted({file for of_rank in gather_objects(damaged) for file in of_rank})


def name(step: int) -> str:
    """Folder name of the checkpoint of a step."""
    return f"step-{step:09d}"


def step(path: Path) -> int:
    """Steps after which a checkpoint was saved."""
    return int(path.name.removeprefix("step-"))


def names(folder: Path) -> list[str]:
    """Of the complete checkpoints in RUN/checkpoints, the oldest first."""
    return sorted(path.name for path in folder.glob("step-*") if re.fullmatch(r"step-\d{9,}", path.name))


def keep(folder: Path, best: dict[str, Any], newest: int) -> None:
    """Notes which checkpoint is best, then removes all but it and the newest; called by one process.

    Args:
        folder: RUN/checkpoints.
        best: its step and metrics; empty where nothing has been validated.
        newest: how many of the newest to keep.
    """
    if best:
        write(folder, BEST, json.dumps(best, indent=2) + "\n")
    kept = {*names(folder)[-newest:]} | ({name(best["step"])} if best else set())
    for path in folder.glob("step-*"):
        if path.name not in kept and path.suffix != DAMAGED:
            shutil.rmtree(path)


def best(folder: Path) -> dict[str, Any]:
    """Step and metrics of the best checkpoint in RUN/checkpoints, as `keep` has noted them.

    Raises:
        UserError: they cannot be read.
    """
    try:
        noted = json.loads((folder / BEST).read_text())
        return {"step": int(noted["step"]), "metrics": {key: float(value) for key, value in noted["metrics"].items()}}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError("run.checkpoint", "best", f"{folder / BEST} as it was written ({error})",
                        f"bring the file back, or name one of {names(folder)}") from None  # fmt: skip


def find(run_dir: str | Path, which: str) -> Path:
    """The checkpoint called `best` or `last`, or by its folder's name.

    Raises:
        UserError: there is none.
    """
    folder = Path(run_dir) / "checkpoints"
    if which == "best" and (folder / BEST).is_file():
        found: Path | None = folder / name(best(folder)["step"])
    else:
        found = newest(run_dir) if which == "last" else folder / which
    if found is None or not found.is_dir():
        there = names(folder) or "there are none"
        raise UserError("run.checkpoint", which, f"a checkpoint in {folder}: {there}", "train first, or name another")
    return found


def newest(run_dir: str | Path) -> Path | None:
    """The complete checkpoint of the highest step, or None."""
    folder = Path(run_dir) / "checkpoints"
    return folder / names(folder)[-1] if names(folder) else None
