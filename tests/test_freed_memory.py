"""Memory that a step frees and the next one takes again, by the pages that the system has to fill with zeros for it."""

import subprocess
import sys

import pytest

from tests.commands import environment

STEPS = """
import resource, torch
from trainer.runtime.freed_memory import keep_freed_memory
{keep}
def step():
    layers = [torch.ones(1 << 20) for _ in range(3)]  # 4 MB each
for _ in range(20):  # until the heap has grown
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


AT_FIRST = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
"""What glibc begins with, and changes by itself in ways that depend on where things happen to lie."""


def pages_of_ten_steps(keep: str) -> int:
    result = subprocess.run([sys.executable, "-c", STEPS.format(keep=keep)], env=environment() | AT_FIRST,
                            capture_output=True, text=True, check=True)  # fmt: skip
    return int(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told to keep memory")
def test_a_step_takes_what_the_one_before_has_freed() -> None:
    assert pages_of_ten_steps("keep_freed_memory()") < 100 < 1000 < pages_of_ten_steps("")
