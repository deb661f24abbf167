"""This process among the others: who it is, which device it has, and the group they form."""

import atexit
import gc
import itertools
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from trainer.errors import ContactLost, Preempted, UserError
from trainer.runtime.freed_memory import keep_freed_memory

_GROUPS = itertools.count()
"""Numbers those that this process has joined."""
_TIMEOUT = 1800
"""Seconds that collectives wait for other ranks, which is gloo's own choice; NCCL's is 600."""
_NAME_SECONDS = 60
"""How long a name may stay unknown: that of a pod that has just started does for a while."""


@dataclass(frozen=True)
class Processes:
    """One process's place, as torchrun says it; a process started without torchrun is alone."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    @property
    def num_nodes(self) -> int:
        """Machines, each with equally many processes."""
        return self.world_size // self.local_world_size

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0


def find_processes(accelerator: str, threads: int | None) -> Processes:
    """Reads torchrun's variables, picks the device and sets what the CPU needs: threads, and how memory is kept.

    Args:
        accelerator: cpu, gpu, or auto for a GPU where there is one.
        threads: of this process on the CPU; None shares the machine's cores out over its processes.

    Raises:
        UserError: a GPU is asked for and there is none for this process, or srun started several that would not know
            of one another.
    """
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        raise UserError(
            "srun", f"{os.environ['SLURM_STEP_NUM_TASKS']} tasks", "torchrun in every task, which joins them together",
            "start the job with launch/slurm.sbatch",
        )  # fmt: skip
    if "RANK" in os.environ and "LOCAL_WORLD_SIZE" not in os.environ:
        raise UserError(
            "RANK", os.environ["RANK"], "to be set by torchrun, together with LOCAL_WORLD_SIZE and others",
            "start with torchrun (launch/torchrun.sh), or unset RANK for a single process",
        )  # fmt: skip
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_world_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    _check_restarts()
    gpus = torch.cuda.device_count()
    if accelerator == "cpu" or (accelerator == "auto" and gpus == 0):
        device = torch.device("cpu")
        keep_freed_memory()
        threads = threads or max(1, len(os.sched_getaffinity(0)) // local_world_size)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # where it says nothing, Lightning chooses a number of its own
    elif local_world_size <= gpus:
        device = torch.device("cuda", local_rank)
    else:
        raise UserError(
            "run.accelerator", accelerator, f"{local_world_size} GPUs on this machine, not {gpus}",
            "start as many processes as there are GPUs, or set run.accelerator=cpu",
        )  # fmt: skip
    return Processes(rank, local_rank, world_size, local_world_size, device)


def _check_restarts() -> None:
    """Refuses what makes nodes that are started again wait for one another in vain.

    torch 2.13's torchrun keeps the first store in which processes leave their addresses; a node that comes anew cannot
    know how often the others have started, which would tell them apart.
    """
    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if of_agent and int(os.environ["GROUP_WORLD_SIZE"]) > 1 and int(os.environ["TORCHELASTIC_MAX_RESTARTS"]) > 0:
        raise UserError(
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE"),
            "1 where torchrun may restart processes of several nodes", "start with launch/torchrun.sh, which sets it",
        )  # fmt: skip


def _check_meeting_point() -> None:
    """Refuses a place to meet whose name this machine does not know: torch would look for it again and again."""
    host, last = os.environ["MASTER_ADDR"], time.monotonic() + _NAME_SECONDS
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except OSError as error:
            if time.monotonic() > last:
                raise UserError(
                    "MASTER_ADDR", host, f"a host that this machine knows ({error.strerror})",
                    "torchrun takes the name of rank 0's node: there, give launch/torchrun.sh LOCAL_ADDR, or torchrun "
                    "--local-addr, an address that all nodes reach",
                ) from None  # fmt: skip
        time.sleep(1)


def join(processes: Processes, seconds: float = 0.0) -> None:
    """Brings up the default process group, over gloo for CPU tensors and NCCL for CUDA ones.

    Where to meet comes from torchrun; a process started without it is alone and meets nobody.

    Args:
        processes: this process's place.
        seconds: that collectives wait for other ranks at least.

    Raises:
        UserError: the name of the host where to meet is unknown here.
    """
    if dist.is_initialized():
        return
    if "MASTER_ADDR" in os.environ and processes.world_size > 1:
        _check_meeting_point()
    timeout = timedelta(seconds=max(_TIMEOUT, seconds))
    if processes.device.type == "cuda":
        torch.cuda.set_device(processes.device)
        gc.collect()  # tables of the job before in a sweep, whose parts refer to one another
    backend = "cpu:gloo,cuda:nccl" if processes.device.type == "cuda" else "gloo"
    store: dist.Store | None = None
    if processes.world_size == 1 and "RANK" not in os.environ:
        store = dist.HashStore()
    elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # this store outlives groups and processes: those that torchrun starts again, and the next job of a sweep, must
        # not find the addresses of others
        attempt = f"{os.environ['TORCHELASTIC_RESTART_COUNT']} of {processes.world_size}, group {next(_GROUPS)}"
        kept, _, _ = next(rendezvous("env://", processes.rank, processes.world_size, timeout=timeout))
        store = dist.PrefixStore(attempt, kept)
    dist.init_process_group(backend, timeout=timeout, rank=processes.rank, world_size=processes.world_size, store=store)
    # A model's parts refer to one another, and with it lives on what it knows of the group: threads of gloo's. One that
    # lets go of a tensor while the interpreter ends ends the process with SIGABRT, so what is left goes before that.
    atexit.register(gc.collect)


@contextmanager
def joined(processes: Processes, seconds: float = 0.0) -> Iterator[None]:
    """The process group for the duration of a block.

    Args:
        processes: this process's place.
        seconds: that collectives wait for other ranks at least.

    Raises:
        ContactLost: another rank has ended or its machine is gone.
    """
    join(processes, seconds)
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # which raises nothing of its own
            raise
        raise ContactLost(str(error).splitlines()[0]) from None
    finally:
        leave(processes)


def leave(processes: Processes) -> None:
    """Leaves the process group, unless it has been left: its threads can abort a process that exits.

    Not on a GPU where an error is on its way: NCCL would first wait for other ranks, which wait for this one. The group
    then ends with the process, once the error is told.
    """
    error = sys.exc_info()[1]
    ends_alone = error is not None and not isinstance(error, Preempted)  # which all ranks are at once
    if dist.is_initialized() and not (ends_alone and processes.device.type == "cuda"):
        dist.destroy_process_group()
