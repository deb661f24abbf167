"""SIGTERM and SIGUSR1 to runs in processes of their own: what was trained is saved, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import REPOSITORY, command, environment, succeed
from tests.contents import assert_same_contents
from trainer.runtime import checkpoint
from trainer.runtime.signals import Signals

SETTINGS = ("data.global_batch_size=128", "run.validation_batch_size_per_rank=16", "run.monitor=val/recall@10",
            "run.log_every=1", "run.epochs=2")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "data"
    succeed("trainer.prepare", "data=generated", f"data.dir={folder}", "data.users=700", "data.items=300")
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    succeed("trainer.train", f"data.dir={data}", f"run.dir={folder}", *SETTINGS)
    return folder


def start(data: Path, run_dir: Path, *more: str) -> subprocess.Popen[str]:
    arguments = (f"data.dir={data}", f"run.dir={run_dir}", *SETTINGS, *more)
    return subprocess.Popen(command("trainer.train", *arguments), env=environment(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def wait_until(met: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not met():
        assert process.poll() is None and time.monotonic() < deadline, "it ended, or never came so far"
        time.sleep(0.01)


def validates(run_dir: Path) -> bool:
    """Whether a checkpoint is complete and the validation after it is not: that writes best.json."""
    return checkpoint.newest(run_dir) is not None and not (run_dir / "checkpoints" / checkpoint.BEST).exists()


@pytest.mark.survival
@pytest.mark.parametrize(
    ("sent", "moment", "more"),
    [
        (signal.SIGTERM, checkpoint.newest, ["run.checkpoint_every_steps=3"]),
        (signal.SIGUSR1, validates, ["run.validation_batch_size_per_rank=1"]),
    ],
    ids=["SIGTERM in a step", "SIGUSR1 in validation"],
)
def test_a_signal_saves_and_asks_to_be_started_again(
    data: Path, whole: Path, tmp_path: Path, sent: signal.Signals, moment: Callable[[Path], object], more: list[str]
) -> None:
    run_dir = tmp_path / "run"
    process = start(data, run_dir, *more)
    wait_until(lambda: moment(run_dir), process)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == os.EX_TEMPFAIL, stderr
    newest = checkpoint.newest(run_dir)
    assert newest is not None and newest.name < checkpoint.newest(whole).name
    step = int(newest.name.removeprefix("step-"))
    assert f"preempted: {sent.name} received, ended after step {step:,}. The same command goes on from" in stderr
    assert "Traceback" not in stderr
    stdout = succeed("trainer.train", f"data.dir={data}", f"run.dir={run_dir}", *SETTINGS)
    assert f"goes on from {newest}" in stdout
    assert_same_contents(checkpoint.newest(run_dir), checkpoint.newest(whole))
    assert (run_dir / "checkpoints" / "best.json").read_text() == (whole / "checkpoints" / "best.json").read_text()


@pytest.mark.survival
def test_the_launcher_ends_with_the_code_of_a_preempted_run(data: Path, tmp_path: Path) -> None:
    """SIGTERM to launch/torchrun.sh alone, which passes it on over torchrun to two ranks."""
    run_dir = tmp_path / "run"
    arguments = ["bash", "launch/torchrun.sh", "train", f"data.dir={data}", f"run.dir={run_dir}", *SETTINGS,
                 "run.checkpoint_every_steps=5"]  # fmt: skip
    process = subprocess.Popen(arguments, cwd=REPOSITORY, env=environment() | {"NPROC_PER_NODE": "2"}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    wait_until(lambda: checkpoint.newest(run_dir), process)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == os.EX_TEMPFAIL, stderr
    assert stderr.count("preempted: SIGTERM received") == 1


HANGS = """
import sys, threading
from trainer.runtime.signals import Signals
with Signals() as signals:
    signals.training(sys.argv[1] == "trains")
    print("up", flush=True)
    never = threading.Lock()
    never.acquire()
    never.acquire()
"""


def hanging(state: str) -> subprocess.Popen[str]:
    """A process whose main thread comes back from nothing."""
    process = subprocess.Popen([sys.executable, "-c", HANGS, state], env=environment(), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    return process


def test_a_second_signal_ends_at_once_even_a_process_that_hangs() -> None:
    process = hanging("trains")
    for sent in (signal.SIGTERM, signal.SIGUSR1):  # the same event, told twice
        process.send_signal(sent)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.terminate()
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM
    assert "second signal" in stderr


def test_where_nothing_is_trained_the_first_signal_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "note"
    monkeypatch.setenv("TRAINER_PREEMPTED_NOTE", str(note))
    process = hanging("prepares")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=10) == os.EX_TEMPFAIL
    assert note.read_text() == "SIGUSR1\n"


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
