"""Processes that are forks of one that has imported what the trainer runs on: seconds sooner than from nothing.

The commands among them are run as in `tests.commands`; under torchrun its own agent forks the ranks
(`torchrun --start-method fork`).
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from tests.commands import command, environment

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([
    "trainer",
    "torch.distributed.run",
    "torch.utils.tensorboard",
    "trainer.data.preparation",
    "trainer.report.page",
    "trainer.runtime.evaluation",
    "trainer.runtime.fit",
    "trainer.runtime.query_tower_file",
    "trainer.runtime.report",
    "trainer.runtime.shard_files",
])  # fmt: skip


def run(module: str, *overrides: str, ranks: int = 0, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """As `tests.commands.run`."""
    arguments = command(module, *overrides, ranks=ranks)
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/stdout", f"{folder}/stderr"]
        process = CONTEXT.Process(target=_become, args=(environment(), files, ranks, module, *overrides))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout)
        stdout, stderr = (Path(file).read_text() for file in files)
    return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def succeed(module: str, *overrides: str, ranks: int = 0) -> str:
    """As `tests.commands.succeed`."""
    result = run(module, *overrides, ranks=ranks)
    assert result.returncode == 0, f"{result.stdout[-3000:]}\n{result.stderr[-6000:]}"
    return result.stdout


def _become(environment: dict[str, str], files: list[str], ranks: int, *module_and_overrides: str) -> None:
    """In the fork."""
    gc.freeze()
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate(("/dev/null", *files)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    try:
        if ranks:
            _launch(ranks, *module_and_overrides)
        else:
            _run_module(*module_and_overrides)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def _launch(ranks: int, *module_and_overrides: str) -> None:
    """What `torchrun --standalone` does."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    standalone = {"run_id": str(uuid.uuid4()), "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    config = LaunchConfig(1, 1, nproc_per_node=ranks, max_restarts=0, start_method="fork", **standalone)
    elastic_launch(config, _run_module)(*module_and_overrides)


def _run_module(module: str, *overrides: str) -> None:
    """What `python -m` does."""
    sys.path[0] = os.getcwd()
    sys.argv[1:] = overrides
    runpy.run_module(module, run_name="__main__", alter_sys=True)
