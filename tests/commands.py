"""The commands as a user runs them, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def command(module: str, *overrides: str, ranks: int = 0) -> list[str]:
    """Arguments of `torchrun --nproc-per-node RANKS -m MODULE OVERRIDES`, or without torchrun where ranks is 0."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks else []
    return [sys.executable, "-m", *torchrun, module, *overrides]


def environment() -> dict[str, str]:
    """This process's, with the repository importable and one thread a process."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def run(module: str, *overrides: str, ranks: int = 0, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, whatever that is."""
    return subprocess.run(
        command(module, *overrides, ranks=ranks), env=environment(), capture_output=True, text=True, timeout=timeout
    )


def succeed(module: str, *overrides: str, ranks: int = 0) -> str:
    """Runs a command that must succeed, and returns its stdout."""
    return stdout_of(run(module, *overrides, ranks=ranks))


def stdout_of(result: subprocess.CompletedProcess[str]) -> str:
    """Of a command that must have succeeded."""
    assert result.returncode == 0, f"{result.stdout[-3000:]}\n{result.stderr[-6000:]}"
    return result.stdout
