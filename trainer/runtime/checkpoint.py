"""Checkpoints on disk: which there are, and the checksums noted for them. Reading them: saved_model.py.

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

from trainer.errors import UserError
from trainer.runtime.whole_files import write

BEST, REST, CHECKSUMS, METADATA = "best.json", "trainer.pt", "checksums.json", ".metadata"
DAMAGED = ".damaged"
"""Suffix of what the user has had set aside; theirs to remove."""
_AT_ONCE = 1 << 24
"""Bytes of a file read at a time."""


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
