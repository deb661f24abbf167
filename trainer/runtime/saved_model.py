"""What a checkpoint holds: read into a model that is sharded over any number of ranks, once it is as it was written."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torchrec.distributed import DistributedModelParallel

from trainer.errors import UserError
from trainer.runtime.checkpoint import CHECKSUMS, REST, checksum, written_checksums
from trainer.runtime.gather import gather_objects


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


def load_rest(path: str | Path) -> dict[str, Any]:
    """What was saved beside the model: dense optimizer, loops, callbacks."""
    # the file holds loop states and callbacks of the user's own run beside tensors
    return torch.load(Path(path) / REST, map_location="cpu", weights_only=False)


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
