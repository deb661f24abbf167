"""Processes that stall, for tests/test_watchdog.py.

python -m tests.stalling bare FOLDER RANK SECONDS      without a process group, as rank RANK of 3
torchrun ... -m tests.stalling train OVERRIDES         trainer.train, whose reader hangs on rank 1 at step 5
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from trainer.data.prefetch import Prefetch
from trainer.runtime.watchdog import Watchdog


def bare(folder: str, rank: int, seconds: float) -> None:
    """Ranks 0 and 1 wait for a reader; rank 2 stops. They beat for longer than they may pause, once all are there."""
    print("ready", flush=True)
    sys.stdin.readline()
    with Watchdog(folder, rank, 3, seconds) as watchdog:
        for beat in range(8):
            time.sleep(0.5)
            watchdog.beat(f"step {beat}")
        if rank == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        next(Prefetch(hang_up()))


def hang_up() -> Iterator[None]:
    """A reader that never gives anything."""
    threading.Event().wait()
    yield


def train() -> None:
    """The command, with a reader of our own."""
    from trainer.data.row_groups import RowGroups
    from trainer.runtime.module import RetrievalModule

    read, training_step = RowGroups.read, RetrievalModule.training_step
    hang = threading.Event()

    def hanging_read(files: RowGroups, group: int) -> Any:
        if hang.is_set():
            threading.Event().wait()
        return read(files, group)

    def step(module: RetrievalModule, staged: Any) -> Any:
        if staged.batch.step == 5 and os.environ["RANK"] == "1":
            hang.set()
        return training_step(module, staged)

    RowGroups.read, RetrievalModule.training_step = hanging_read, step  # type: ignore[method-assign]
    from trainer.config import run_command
    from trainer.train import main

    run_command(main)


if __name__ == "__main__":
    kind = sys.argv.pop(1)
    if kind == "bare":
        bare(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    else:
        train()
