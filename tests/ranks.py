"""Real process groups for tests: worker processes that run one function after another.

    results = ranks.run(2, function, *arguments)      # function(processes, *arguments) on ranks 0 and 1, over gloo

Functions live at the top level of a test module; what they return must be picklable. Workers are forks of one process
and share its seed of hashes: what depends on the order of a set shows in commands that torchrun starts, not here.
"""

import gc
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from tests import forked


class RankPool:
    """Worker processes for each world size, started when first needed.

    A worker serves one world size alone: TorchRec keeps a process-wide note of a collective it has done, so ranks with
    and without it would wait for one another.
    """

    def __init__(self) -> None:
        self._workers: dict[int, list[tuple[Any, Connection]]] = {}

    def run(self, world_size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
        """Calls the function on every rank of a new process group and returns their results in rank order."""
        if world_size not in self._workers:
            self._workers[world_size] = [self._start() for _ in range(world_size)]
        connections = [connection for _, connection in self._workers[world_size]]
        port = _free_port()
        for rank in range(world_size):
            connections[rank].send((rank, world_size, port, function, arguments))
        pending = {connection: rank for rank, connection in enumerate(connections)}
        results: list[Any] = [None] * world_size
        deadline = time.monotonic() + timeout
        while pending:
            answered = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            if not answered:
                self.close()
                raise TimeoutError(f"ranks {sorted(pending.values())} did not answer within {timeout} s")
            for connection in answered:
                rank = pending.pop(connection)
                ok, results[rank] = connection.recv()
                if not ok:
                    self.close()  # the others may wait for this rank for ever
                    raise AssertionError(f"rank {rank}:\n{results[rank]}")
        return results

    def close(self) -> None:
        """Ends all workers."""
        for process, _ in (worker for workers in self._workers.values() for worker in workers):
            process.kill()
            process.join()
        self._workers.clear()

    def _start(self) -> tuple[Any, Connection]:
        here, there = multiprocessing.Pipe()
        return forked.start(_work, there), here


def _work(requests: Connection) -> None:
    import torch

    from trainer.runtime.processes import Processes, joined
    from trainer.runtime.quiet import quieten_libraries

    gc.freeze()
    quieten_libraries()
    torch.set_num_threads(1)
    while True:
        rank, world_size, port, function, arguments = requests.recv()
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        processes = Processes(rank, rank, world_size, world_size, torch.device("cpu"))
        try:
            with joined(processes):
                requests.send((True, function(processes, *arguments)))
        except BaseException:
            requests.send((False, traceback.format_exc()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
