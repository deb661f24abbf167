"""Jobs that stall for real: the end comes, says where every rank stands, and comes in time."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.commands import command, environment
from trainer.errors import name_ranks
from trainer.runtime import checkpoint
from trainer.runtime.watchdog import STALLED, Watchdog, message

STALL_SECONDS = 5.0
MARGIN = 10.0
"""Beyond twice STALL_SECONDS: for the grace, and for a machine with more processes than cores."""

# on tests/prepared.py's folder: steps without end, a checkpoint every fifth
TRAIN = (
    "data.global_batch_size=48", "data.streams=6", "run.epochs=100000", "run.validate_every=0.25",
    "run.monitor=null", "model.embedding_dim=8", "model.categorical_dim=4", f"run.stall_seconds={STALL_SECONDS}",
)  # fmt: skip


def test_ranks_that_stand_at_the_same_place_are_told_together() -> None:
    waiting, reading = "after step 7: gather (trainer/runtime/gather.py:18)", "after step 6: read (here.py:1)"
    own = Path("runs/a/stalls/20260102-030405-rank-0.txt")
    told = message({3: waiting, 0: waiting, 1: reading, 2: waiting, 6: waiting}, 9, 600, own).splitlines()
    assert told[0].startswith("error: run.stall_seconds=600: nothing has moved")
    assert told[1:4] == [
        f"  ranks 0, 2, 3, 6 {waiting}",
        f"  rank 1 {reading}",
        "  ranks 4, 5, 7, 8 give no sign: their processes are stopped, or their machines gone",
    ]
    assert "runs/a/stalls/20260102-030405*" in told[4] and "Remedy:" in told[4]


@pytest.mark.parametrize(
    ("ranks", "words"),
    [([1], "rank 1"), ([0, 1], "ranks 0, 1"), ([0, 2, 3, 4, 5, 9], "ranks 0, 2-5, 9"), (range(512), "ranks 0-511")],
)
def test_names_of_ranks(ranks: list[int], words: str) -> None:
    assert name_ranks(ranks) == words


def test_a_sound_run_leaves_no_thread_and_no_file(tmp_path: Path) -> None:
    before = threading.active_count()
    watchdog = Watchdog(tmp_path / "stalls", 0, 1, seconds=1.5)
    with suppress(KeyError), watchdog:
        for step in range(20):  # longer than that in all
            time.sleep(0.1)
            watchdog.beat(f"step {step}")
        assert threading.active_count() == before + 1
        raise KeyError
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


def test_three_processes_of_which_one_is_stopped(tmp_path: Path) -> None:
    """A stall of an earlier start of the run stays on disk and is not taken for a sign of life."""
    stalls = tmp_path / "stalls"
    stalls.mkdir()
    (stalls / "20200101-000000-rank-2.txt").write_text("after step 1: of long ago\n")
    os.utime(stalls / "20200101-000000-rank-2.txt", (time.time() - 60,) * 2)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.stalling", "bare", str(stalls), str(rank), "3"],
            env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(3)
    ]  # fmt: skip
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [process.communicate(timeout=60)[1] for process in processes[:2]]
        assert [process.returncode for process in processes[:2]] == [STALLED, STALLED]
        assert processes[2].poll() is None
    finally:
        processes[2].kill()
        processes[2].wait()
    assert "ranks 0, 1 after step 7: __next__ (trainer/data/prefetch.py:" in told[0]
    assert "rank 2 gives no sign" in told[0]
    assert told[1] == ""
    files = sorted(path.name.partition("-rank-")[2] for path in stalls.iterdir())
    assert files == ["0.txt", "1.txt", "2.txt"]
    stacks = next(stalls.glob("*-rank-1.txt")).read_text()
    assert "in hang_up" in stacks and 'stalling.py", line' in stacks  # of the reader's thread


def test_a_process_that_is_suspended_and_goes_on_has_not_stalled(tmp_path: Path) -> None:
    lines = "\n".join([
        "import time",
        "from trainer.runtime.watchdog import Watchdog",
        f"with Watchdog({str(tmp_path / 'stalls')!r}, 0, 1, 1.0) as watchdog:",
        "    for step in range(20):",
        "        print(step, flush=True); time.sleep(0.1); watchdog.beat('a step')",
    ])  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", lines], env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "0\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=60)[0].endswith("19\n")
    assert process.returncode == 0 and list(tmp_path.iterdir()) == []


class Job:
    """A command under torchrun with two ranks, whose stderr is read as it comes."""

    def __init__(self, module: str, *overrides: str) -> None:
        self.process = subprocess.Popen(
            command(module, *overrides, ranks=2), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.lines: list[str] = []

    def wait_for_message(self, timeout: float) -> str:
        """All that stderr has until the last line of a stall's message."""
        timer = threading.Timer(timeout, self.process.kill)
        timer.start()
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("  Stacks of all threads"):
                break
        timer.cancel()
        told = "".join(self.lines)
        assert "Stacks of all threads" in told, told[-6000:]
        return told

    def worker(self, rank: int) -> int:
        """Process id of a rank."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environ = (entry / "environ").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has ended meanwhile, or is another user's
            if parent == self.process.pid and f"RANK={rank}".encode() in environ:
                return int(entry.name)
        raise AssertionError(f"no process of rank {rank}")

    def end(self) -> str:
        """What stderr had still to say; ends workers too, which torchrun starts in sessions of their own."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.communicate(timeout=60)[1]


@pytest.mark.survival
def test_a_stopped_worker_ends_the_job_with_its_name(prepared: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = Job("trainer.train", f"data.dir={prepared}", f"run.dir={run_dir}", *TRAIN)
    try:
        deadline = time.monotonic() + 120
        while checkpoint.newest(run_dir) is None:
            assert job.process.poll() is None and time.monotonic() < deadline, "it does not train"
            time.sleep(0.1)
        stopped = job.worker(1)
        os.kill(stopped, signal.SIGSTOP)
        since = time.monotonic()
        told = job.wait_for_message(2 * STALL_SECONDS + MARGIN)
        assert time.monotonic() - since >= STALL_SECONDS - 1.5  # a look and a step before
        os.kill(stopped, signal.SIGKILL)  # as torchrun does half a minute later
        assert job.process.wait(timeout=60) != 0
    finally:
        job.end()
    assert told.count("nothing has moved") == 1
    assert "rank 1 gives no sign" in told
    [line] = [line for line in told.splitlines() if line.startswith("  rank 0 after step ")]
    assert "(trainer/" in line
    [stacks] = (run_dir / "stalls").iterdir()
    assert stacks.name.endswith("-rank-0.txt")
    assert "Thread" in stacks.read_text() and "in fit\n" in stacks.read_text()


@pytest.mark.survival
def test_a_reader_that_hangs_is_named_by_its_own_stack(prepared: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = Job("tests.stalling", "train", f"data.dir={prepared}", f"run.dir={run_dir}", *TRAIN)
    try:
        told = job.wait_for_message(120)
        assert job.process.wait(timeout=60) != 0
    finally:
        report = job.end()
    assert f"exitcode  : {STALLED}" in report  # as torchrun tells it
    assert told.count("nothing has moved") == 1 and "gives no sign" not in told
    lines = {line.split()[1]: line for line in told.splitlines() if line.startswith("  rank ")}
    assert "__next__ (trainer/data/prefetch.py:" in lines["1"]
    assert "for its reader in _shuffled (trainer/data/events.py:" in lines["1"]
    assert "prefetch" not in lines["0"] and "(trainer/" in lines["0"]
    [stacks] = (run_dir / "stalls").glob("*-rank-1.txt")
    assert "in hanging_read" in stacks.read_text()
