import subprocess
import sys
from contextlib import nullcontext, suppress

import pytest
import torch
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed

from tests.commands import environment
from trainer.errors import Preempted, UserError
from trainer.runtime.processes import Processes, find_processes, join, joined

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Calls of torch.set_num_threads, which other tests must not feel; nor what the environment says of it."""
    calls: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("OMP_NUM_THREADS")  # and back as it was when the test is over
    return calls


def test_a_process_without_torchrun_is_alone(threads: list[int]) -> None:
    assert find_processes("cpu", 3) == Processes(0, 0, 1, 1, torch.device("cpu"))
    _set_num_threads_if_needed(num_processes=1)  # which Lightning calls when it starts
    assert threads == [3]


def test_torchrun_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    processes = find_processes("cpu", None)
    assert processes == Processes(5, 1, 8, 4, torch.device("cpu"))
    assert (processes.num_nodes, processes.is_first) == (2, False)


def test_gpus_are_taken_where_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert find_processes("auto", None).device == find_processes("gpu", None).device == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for accelerator in ("auto", "gpu"):
        with pytest.raises(UserError, match=f"run.accelerator={accelerator}: expected 4 GPUs on this machine, not 2"):
            find_processes(accelerator, None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_processes("auto", None).device == torch.device("cpu")


def test_srun_without_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UserError, match="srun=4 tasks: .*launch/slurm.sbatch"):
        find_processes("cpu", None)


def test_a_host_that_nobody_knows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (TORCHRUN | {"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("trainer.runtime.processes._NAME_SECONDS", 0)
    with pytest.raises(UserError, match=r"MASTER_ADDR=nowhere.invalid: expected a host that this .*LOCAL_ADDR"):
        join(find_processes("cpu", 1))


@pytest.mark.parametrize(
    ("device", "error", "is_left"),
    [
        ("cpu", None, True), ("cuda:0", None, True), ("cpu", ValueError(), True), ("cuda:0", ValueError(), False),
        ("cuda:0", KeyboardInterrupt(), False), ("cuda:0", Preempted(), True),
    ],
)  # fmt: skip
def test_a_rank_that_fails_on_a_gpu_does_not_wait_for_the_others(
    monkeypatch: pytest.MonkeyPatch, device: str, error: BaseException | None, is_left: bool
) -> None:
    calls: list[str] = []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: calls.append("left"))
    monkeypatch.setattr("trainer.runtime.processes.join", lambda processes, seconds: None)
    with suppress(BaseException) if error else nullcontext(), joined(Processes(0, 0, 1, 1, torch.device(device))):
        if error:
            raise error
    assert calls == ["left"] * is_left


@pytest.mark.parametrize("code", [0, 75])
def test_no_thread_of_the_group_outlives_the_process(code: int) -> None:
    """Whatever holds the group, and however the process ends: a thread that lets go of a tensor would abort it."""
    script = f"""
import atexit, gc, os, sys
from trainer.runtime.processes import find_processes, joined

def threads():
    names = (open(f"/proc/self/task/{{task}}/comm").read() for task in os.listdir("/proc/self/task"))
    return sum("gloo" in name for name in names)

gc.disable()  # it may come at any time, and here it is not to
atexit.register(lambda: print("at the end", threads()))
processes = find_processes("cpu", 1)
import torch.distributed as dist

class Model:
    def __init__(self):
        self.whole, self.group = self, dist.group.WORLD

def command():
    with joined(processes):
        model = Model()
        dist.barrier()  # a thread has its name once it has run
    print("then", threads())
    sys.exit({code})

command()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=False
    )
    then, at_the_end = done.stdout.splitlines()
    assert done.returncode == code and then != "then 0" and at_the_end == "at the end 0"
