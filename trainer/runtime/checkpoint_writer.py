"""Writing a checkpoint while training goes on.

Training waits only until the state has been copied in memory. A thread then writes the copy with
torch.distributed.checkpoint, over a process group of its own: its collectives must not mix with those of training.
"""

import errno
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.remote_device import _remote_device
from torchrec.distributed import DistributedModelParallel

from trainer.runtime import checkpoint, saved_model
from trainer.runtime.whole_files import synchronise, write_durably

Result = TypeVar("Result")


class CheckpointWriter:
    """Writes one checkpoint at a time; every rank calls the same methods in the same order.

    Args:
        in_background: whether `save` returns once the state is copied, which takes as much of the host's memory as
            this rank's state. Otherwise it returns when all is written, and copies nothing.
    """

    def __init__(self, in_background: bool) -> None:
        self._in_background = in_background
        self._group = dist.new_group(backend="gloo")
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self.failure: str | None = None
        """Why the last checkpoint was not written, the same on every rank once the writing is over."""
        self.stall = 0.0
        """Seconds for which the last `save` kept training waiting."""

    def save(
        self, model: DistributedModelParallel, rest: dict[str, Any], path: str | Path, then: Callable[[], None]
    ) -> None:
        """Writes the sharded model and fused optimizer state from all ranks, and `rest` from the first.

        Waits for the checkpoint before, if it is still being written.

        Args:
            model: sharded.
            rest: picklable state that every rank holds alike.
            path: of the checkpoint.
            then: called by the first rank when the checkpoint is complete.
        """
        start = time.perf_counter()
        self.wait()
        self.failure = None
        state = saved_model.state_of(model)
        if self._in_background:
            state = self._copied("", state)
        rest_bytes = io.BytesIO()  # which also copies the dense optimizer's state
        if dist.get_rank() == 0:
            torch.save(rest, rest_bytes)
        arguments = (state, rest_bytes, Path(path), then)
        if self._in_background:
            self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True)
            self._thread.start()
        else:
            self._write(*arguments)
        self.stall = time.perf_counter() - start

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Returns when nothing is being written any more; `failure` then tells of the last checkpoint."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, state: dict[str, Any], rest: io.BytesIO, path: Path, then: Callable[[], None]) -> None:
        partial = path.with_name(path.name + ".partial")
        try:
            needed = sum(self._together(lambda: _bytes(state) + rest.getbuffer().nbytes))
            self._first(lambda: _begin(partial, rest, needed))
            # nothing is copied ahead: for that torch would open a context on the first GPU, in this thread of each rank
            to = dcp.FileSystemWriter(partial, per_thread_copy_ahead=0)
            dcp.save(state, storage_writer=to, process_group=self._group)
            checksums = self._together(lambda: _checksums(partial))
            everything = {file: found for of_rank in checksums for file, found in of_rank.items()}
            self._first(lambda: _finish(partial, path, everything))
            self._first(then)
        except dcp.CheckpointException as error:
            self.failure = saved_model.reasons(error)
        except Exception as error:  # whatever it is, the thread that trains has to learn of it
            self.failure = (str(error) or repr(error)).splitlines()[0]
        if self.failure and dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)  # its room may be what the next one lacks

    def _together(self, action: Callable[[], Result]) -> list[Result]:
        """What the action gives on each rank; where it fails on any, all fail."""
        result, failure = None, None
        try:
            result = action()
        except OSError as error:
            failure = str(error)
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (result, failure), group=self._group)
        failures = sorted({failure for _, failure in everyone if failure})
        if failures:
            raise OSError("; ".join(failures))
        return [result for result, _ in everyone]

    def _first(self, action: Callable[[], None]) -> None:
        self._together(action if dist.get_rank() == 0 else lambda: None)

    def _copied(self, key: str, value: Any) -> Any:
        """The state with every tensor copied to the host, into the memory of the copy before."""
        match value:
            case ShardedTensor():
                shards = [
                    Shard(self._copy(f"{key}/{number}", shard.tensor), _on_host(shard.metadata))
                    for number, shard in enumerate(value.local_shards())
                ]
                everyones = [_on_host(part) for part in value.metadata().shards_metadata]
                return ShardedTensor._init_from_local_shards_and_global_metadata(
                    shards, replace(value.metadata(), shards_metadata=everyones), process_group=self._group
                )
            case Tensor():
                return self._copy(key, value)
            case dict():
                return {name: self._copied(f"{key}/{name}", part) for name, part in value.items()}
            case list():
                return [self._copied(f"{key}/{number}", part) for number, part in enumerate(value)]
            case _:
                return value

    def _copy(self, key: str, tensor: Tensor) -> Tensor:
        if key not in self._copies:
            # not pinned: PyTorch would take the next power of two of what the host has
            self._copies[key] = torch.empty_like(tensor, device="cpu")
        return self._copies[key].copy_(tensor.detach())


def _on_host(part: ShardMetadata) -> ShardMetadata:
    """The same part of a table, in the memory of the same rank's host: PyTorch refuses one that lies elsewhere."""
    assert isinstance(part.placement, _remote_device)
    return replace(part, placement=_remote_device(f"rank:{part.placement.rank()}/cpu"))


def _bytes(value: Any) -> int:
    """Of this rank's tensors."""
    match value:
        case ShardedTensor():
            return sum(shard.tensor.nbytes for shard in value.local_shards())
        case Tensor():
            return value.nbytes
        case dict():
            return sum(map(_bytes, value.values()))
        case list():
            return sum(map(_bytes, value))
        case _:
            return 0


def _begin(partial: Path, rest: io.BytesIO, needed: int) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    free = shutil.disk_usage(partial).free
    if free < needed:  # else it would first take all the room that there is from the logs, and from others
        told = f"{os.strerror(errno.ENOSPC)}: {needed / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free"
        raise OSError(errno.ENOSPC, told, str(partial))
    write_durably(partial / checkpoint.REST, rest.getbuffer())


def _checksums(partial: Path) -> dict[str, Any]:
    """Of the files that this rank wrote."""
    files = sorted(partial.glob(f"__{dist.get_rank()}_*.distcp"))
    if dist.get_rank() == 0:
        files += [partial / checkpoint.METADATA, partial / checkpoint.REST]
    return {file.name: checkpoint.checksum(file) for file in files}


def _finish(partial: Path, path: Path, checksums: dict[str, Any]) -> None:
    write_durably(partial / checkpoint.CHECKSUMS, json.dumps(checksums, indent=2).encode())
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)
    synchronise(path.parent)  # a rename that a power cut undoes would leave step-N.partial
