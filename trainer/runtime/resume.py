"""From which checkpoint a run goes on."""

import shutil
from pathlib import Path

import torch.distributed as dist

from trainer.config import RunConfig
from trainer.errors import UserError
from trainer.runtime import checkpoint, saved_model
from trainer.runtime.processes import Processes


def checkpoint_to_resume(config: RunConfig, processes: Processes) -> Path | None:
    """The run's newest checkpoint, every file of it verified; None for a run that has yet to begin.

    Called by all ranks, which find the same.

    Raises:
        UserError: it is damaged, and `set_aside_damaged` does not ask for the one before.
    """
    while (path := checkpoint.newest(config.dir)) is not None:
        damaged = saved_model.damaged_files(path)
        if not damaged:
            return path
        earlier = checkpoint.names(path.parent)[:-1]
        goes_on = f"goes on from {earlier[-1]}" if earlier else "begins anew, for there is no other checkpoint"
        if not config.set_aside_damaged:
            raise UserError(
                "run.dir", config.dir, f"its newest checkpoint {path.name} as it was written, which is no longer so of "
                f"{', '.join(damaged)}",
                f"bring the files back; or give the same command with run.set_aside_damaged=true, which renames the "
                f"checkpoint to {path.name}{checkpoint.DAMAGED} and {goes_on}",
            )  # fmt: skip
        if processes.is_first:
            aside = path.with_name(path.name + checkpoint.DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            print(f"{path.name} is damaged ({', '.join(damaged)}) and set aside as {aside.name}; the run {goes_on}")
        dist.barrier()
    return None
