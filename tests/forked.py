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
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

from tests.commands import command, environment, stdout_of

_IMPORTED = [
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
]


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A function of a test module, in a fork that ends with this process."""
    process = _context().Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


@cache
def _context() -> ForkServerContext:
    """Its server has a command's environment, which libraries read when they are imported, and leaves a GPU alone."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with mock.patch.dict(os.environ, environment() | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}):
        forkserver.ensure_running()
    return context


def run(module: str, *overrides: str, ranks: int = 0, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """As `tests.commands.run`."""
    arguments = command(module, *overrides, ranks=ranks)
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/stdout", f"{folder}/stderr"]
        process = _context().Process(target=_become, args=(environment(), files, ranks, module, *overrides))
        process.start()
        try:
            process.join(timeout)
            if process.exitcode is None:
                raise subprocess.TimeoutExpired(arguments, timeout, *_texts(files))
        finally:
            if process.exitcode is None:  # out of time, or the test is interrupted
                os.killpg(process.pid or 0, signal.SIGKILL)
                process.join()
        return subprocess.CompletedProcess(arguments, process.exitcode, *_texts(files))


def _texts(files: list[str]) -> list[str]:
    return [Path(file).read_text() for file in files]


def succeed(module: str, *overrides: str, ranks: int = 0) -> str:
    """As `tests.commands.succeed`."""
    return stdout_of(run(module, *overrides, ranks=ranks))


def _become(environment: dict[str, str], files: list[str], ranks: int, *module_and_overrides: str) -> None:
    """In the fork."""
    assert "trainer.runtime.fit" in sys.modules, "the server of forks could not import the trainer"
    gc.freeze()
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate(("/dev/null", *files)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    if ranks:
        _launch(ranks, *module_and_overrides)
    else:
        _run_module(*module_and_overrides)


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
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
