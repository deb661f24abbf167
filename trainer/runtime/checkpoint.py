"""Checkpoints on disk: every rank writes its own rows, and any number of ranks reads them back.

    RUN/checkpoints/best.json    step and validation metrics of the best
    RUN/checkpoints/step-N/      .metadata and *.distcp of torch.distributed.checkpoint: tables, dense layers, fused
                                 optimizer state; and trainer.pt, what Lightning keeps: dense optimizer, schedule,
                                 loops, callbacks

A checkpoint is written beside its place as step-N.partial and renamed when whole, so a folder without the suffix is
complete.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torchrec.distributed import DistributedModelParallel

from trainer.errors import UserError

BEST = "best.json"
_REST = "trainer.pt"


def save(model: DistributedModelParallel, rest: dict[str, Any], path: str | Path) -> None:
    """Writes the sharded model and fused optimizer state from all ranks, and `rest` from the first.

    Args:
        model: sharded.
        rest: picklable state that every rank holds alike.
        path: of the checkpoint.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        torch.save(rest, partial / _REST)
    dist.barrier()
    dcp.save(_state(model), checkpoint_id=partial)
    if dist.get_rank() == 0:
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    dist.barrier()


def load(model: DistributedModelParallel, path: str | Path) -> None:
    """Reads a checkpoint into a model that may be sharded over another number of ranks.

    Raises:
        UserError: the checkpoint has other tables, layers or sizes than the model.
    """
    state = _state(model)
    try:
        dcp.load(state, checkpoint_id=path)
    except dcp.CheckpointException as error:
        reasons = "; ".join(sorted({str(failure[0]).splitlines()[0] for failure in error.failures.values()}))
        raise UserError(
            "run.dir", path, f"a checkpoint of this very model ({reasons})", "give every configuration its own run.dir"
        ) from None
    model.load_state_dict(state["model"])
    model.fused_optimizer.load_state_dict(state["fused_optimizer"])


def load_rest(path: str | Path) -> dict[str, Any]:
    """What `save` was given as `rest`."""
    # the file holds loop states and callbacks of the user's own run beside tensors
    return torch.load(Path(path) / _REST, map_location="cpu", weights_only=False)


def name(step: int) -> str:
    """Folder name of the checkpoint of a step."""
    return f"step-{step:09d}"


def keep(folder: Path, best: dict[str, Any], last_step: int) -> None:
    """Notes which checkpoint is best, then removes all but it and the last; called by one process."""
    if best:
        partial = folder / (BEST + ".partial")
        partial.write_text(json.dumps(best, indent=2) + "\n")
        partial.rename(folder / BEST)
    kept = {name(last_step)} | ({name(best["step"])} if best else set())
    for path in folder.glob("step-*"):
        if path.name not in kept:
            shutil.rmtree(path)


def find(run_dir: str | Path, which: str) -> Path:
    """The checkpoint called `best` or `last`, or by its folder's name.

    Raises:
        UserError: there is none.
    """
    folder = Path(run_dir) / "checkpoints"
    if which == "best" and (folder / BEST).is_file():
        found: Path | None = folder / name(json.loads((folder / BEST).read_text())["step"])
    else:
        found = newest(run_dir) if which == "last" else folder / which
    if found is None or not found.is_dir():
        there = sorted(path.name for path in folder.glob("step-*")) or "there are none"
        raise UserError("run.checkpoint", which, f"a checkpoint in {folder}: {there}", "train first, or name another")
    return found


def newest(run_dir: str | Path) -> Path | None:
    """The complete checkpoint of the highest step, or None."""
    complete = [path for path in (Path(run_dir) / "checkpoints").glob("step-*") if path.suffix != ".partial"]
    return max(complete, key=lambda path: path.name, default=None)


def _state(model: DistributedModelParallel) -> dict[str, Any]:
    return {"model": model.state_dict(), "fused_optimizer": model.fused_optimizer.state_dict()}
