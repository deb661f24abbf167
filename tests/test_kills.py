"""Workers and whole nodes killed at random moments, until twenty have been: the run ends as the one that nothing hit.

Not part of `make test`, for it takes minutes: `make test-survival`.
"""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import REPOSITORY, environment, succeed
from tests.contents import assert_same_contents
from trainer.runtime import checkpoint

pytestmark = pytest.mark.survival

VALIDATE = 40
"""Steps between validations, as the settings below have it."""
SETTINGS = ("data.global_batch_size=128", "run.validation_batch_size_per_rank=8", "run.monitor=val/recall@10",
            "run.log_every=5", "run.epochs=10", "run.patience=100", "run.checkpoint_every_steps=8",
            "model.loss.log_q=streaming", "model.query.dropout=0.2", "optimizer.schedule=cosine",
            "run.stall_seconds=60", "run.threads=1")  # fmt: skip
KILLS_OF_WORKERS, KILLS_OF_NODES = 14, 6


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("generated") / "data"
    told = succeed("trainer.prepare", "data=generated", f"data.dir={folder}", "data.users=700", "data.items=300")
    rows = int(next(line for line in told.splitlines() if "train" in line).split()[1].replace(",", ""))
    return [f"data.dir={folder}", *SETTINGS, f"run.validate_every={VALIDATE * 128 / rows}"]


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing hits."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    succeed("trainer.train", f"run.dir={folder}", *arguments, ranks=2)
    return folder


def launch(run_dir: Path, arguments: list[str], **place: str) -> subprocess.Popen[bytes]:
    with run_dir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            ["bash", "launch/torchrun.sh", "train", f"run.dir={run_dir}", *arguments], cwd=REPOSITORY,
            env=environment() | {"MAX_RESTARTS": "100", "NPROC_PER_NODE": "1"} | place, stdout=log, stderr=log,
        )  # fmt: skip


def below(pid: int) -> list[int]:
    """Processes that this one has started, and those they have."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    own = [int(child) for child in children.read_text().split()] if children.exists() else []
    return own + [other for child in own for other in below(child)]


def workers(node: subprocess.Popen[bytes]) -> list[int]:
    """Those that train."""
    return [pid for pid in below(node.pid) if b"trainer.train" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            and b"torchrun" not in Path(f"/proc/{pid}/cmdline").read_bytes()]  # fmt: skip


def kill_node(node: subprocess.Popen[bytes]) -> None:
    """As a power cut does: launcher, torchrun and workers, at once."""
    for pid in [node.pid, *below(node.pid)]:
        os.kill(pid, signal.SIGKILL)
    node.wait()


def newest(run_dir: Path) -> int:
    path = checkpoint.newest(run_dir)
    return int(path.name.removeprefix("step-")) if path else 0


def wait_until(met: Callable[[], bool], nodes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 180
    while not met():
        assert all(node.poll() is None for node in nodes), "the job ended"
        assert time.monotonic() < deadline, "nothing moves"
        time.sleep(0.002)


def wait_for_a_moment(kind: str, run_dir: Path, nodes: list[subprocess.Popen[bytes]], rng: random.Random) -> None:
    """Of a life that has got somewhere, so that the job ends in spite of all."""
    start = newest(run_dir)
    wait_until(lambda: newest(run_dir) > start, nodes)
    if kind == "save":
        wait_until(lambda: any(run_dir.glob("checkpoints/step-*.partial")), nodes)
    elif kind == "validation":
        wait_until(lambda: newest(run_dir) % VALIDATE == 0 and newest(run_dir) > start, nodes)
    else:
        time.sleep(rng.uniform(0, 0.5))


def assert_ended_as(whole: Path, run_dir: Path) -> None:
    log = run_dir.with_suffix(".log").read_text()
    assert "trained" in log, log[-3000:]
    assert_same_contents(checkpoint.newest(run_dir), checkpoint.newest(whole))
    assert (run_dir / "checkpoints" / "best.json").read_text() == (whole / "checkpoints" / "best.json").read_text()
    left = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert left == {path.name for path in (whole / "checkpoints").iterdir()}


@pytest.mark.timeout(1500)
def test_workers_killed_at_random_moments(arguments: list[str], whole: Path, tmp_path: Path) -> None:
    rng, run_dir, partial = random.Random(0), tmp_path / "run", 0
    job = launch(run_dir, arguments, NPROC_PER_NODE="2")
    for kill in range(KILLS_OF_WORKERS):
        wait_for_a_moment(("step", "save", "validation")[kill % 3], run_dir, [job], rng)
        os.kill(rng.choice(workers(job)), signal.SIGKILL)
        partial += any(run_dir.glob("checkpoints/step-*.partial"))
    assert job.wait(timeout=300) == 0
    assert partial > 0  # or none was killed in a save
    assert_ended_as(whole, run_dir)


@pytest.mark.timeout(1500)
def test_nodes_killed_at_random_moments(arguments: list[str], whole: Path, tmp_path: Path) -> None:
    """Two nodes of one worker each. One that is gone comes back; where they met at the one killed, both do."""
    rng, run_dir, port = random.Random(1), tmp_path / "run", free_port()

    def start(number: int) -> subprocess.Popen[bytes]:
        place = {
            "NNODES": "2",
            "NODE_RANK": str(number),
            "RDZV_ENDPOINT": f"localhost:{port}",
            "LOCAL_ADDR": "localhost",
        }
        return launch(run_dir, arguments, **place)

    nodes = [start(0), start(1)]
    for kill in range(KILLS_OF_NODES):
        wait_for_a_moment(("step", "save", "validation")[kill % 3], run_dir, nodes, rng)
        if kill % 2:
            kill_node(nodes[1])
            nodes[1] = start(1)
        else:
            for node in (nodes[0], nodes[1]):
                kill_node(node)
            nodes = [start(0), start(1)]
    assert [node.wait(timeout=300) for node in nodes] == [0, 0]
    assert_ended_as(whole, run_dir)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
