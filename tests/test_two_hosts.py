"""launch/torchrun.sh over two hosts that meet by name and port: network namespaces, two ranks in each.

Not part of `make test`: `make test-slurm` runs them too.
"""

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import environment, succeed
from tests.contents import assert_same_contents
from tests.hosts import Host, two_hosts, unable
from trainer.runtime import checkpoint

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(unable() is not None, reason=str(unable())),
]

SETTINGS = ("data.global_batch_size=128", "run.validation_batch_size_per_rank=16", "run.monitor=val/recall@10",
            "run.log_every=1", "run.epochs=2", "run.patience=100", "run.checkpoint_every_steps=10",
            "model.loss.log_q=streaming", "run.threads=1", "run.stall_seconds=60")  # fmt: skip


@pytest.fixture(name="data", scope="module")
def _data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "data"
    succeed("trainer.prepare", "data=generated", f"data.dir={folder}", "data.users=700", "data.items=300")
    return folder


@pytest.fixture(name="whole", scope="module")
def _whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run over four ranks of one host."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    succeed("trainer.train", f"data.dir={data}", f"run.dir={folder}", *SETTINGS, ranks=4)
    return folder


def launch(hosts: tuple[Host, Host], number: int, data: Path, run_dir: Path, nodes: str) -> subprocess.Popen[bytes]:
    """What is typed on a host. Either tells its own name, so none but the port's host need be said."""
    place = {"NNODES": nodes, "NPROC_PER_NODE": "2", "NODE_RANK": str(number), "MAX_RESTARTS": "10",
             "RDZV_ENDPOINT": f"{hosts[0].name}:29400"}  # fmt: skip
    command = ["bash", "launch/torchrun.sh", "train", f"data.dir={data}", f"run.dir={run_dir}", *SETTINGS]
    return hosts[number].start(command, environment() | place, run_dir.with_suffix(f".{number}.log"))


def wait_until(met: Callable[[], object], running: list[subprocess.Popen[bytes]], logs: Path) -> None:
    deadline = time.monotonic() + 480
    while not met():
        ended = [each.returncode for each in running if each.poll() is not None]
        assert not ended and time.monotonic() < deadline, f"{ended}\n{told(logs)}"
        time.sleep(0.02)


def told(run_dir: Path) -> str:
    return "\n".join(log.read_text()[-5000:] for log in sorted(run_dir.parent.glob(f"{run_dir.name}.*.log")))


def newest(run_dir: Path) -> int:
    path = checkpoint.newest(run_dir)
    return checkpoint.step(path) if path else 0


def test_two_hosts_train_what_one_does(data: Path, whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with two_hosts() as hosts:
        running = [launch(hosts, number, data, run_dir, "2") for number in (0, 1)]
        assert [each.wait(timeout=600) for each in running] == [0, 0], told(run_dir)
    assert_same_contents(checkpoint.newest(run_dir), checkpoint.newest(whole))


def test_a_host_that_goes_and_comes_back(data: Path, whole: Path, tmp_path: Path) -> None:
    """With NNODES=1:2 the other trains on alone meanwhile, and then both do."""
    run_dir = tmp_path / "run"
    with two_hosts() as hosts:
        running = [launch(hosts, number, data, run_dir, "1:2") for number in (0, 1)]
        wait_until(lambda: newest(run_dir) >= 20, running, run_dir)
        hosts[1].cut_power()
        running.pop()
        wait_until(lambda: ranks_of(run_dir) == 2, running, run_dir)
        alone = newest(run_dir)
        wait_until(lambda: newest(run_dir) > alone, running, run_dir)
        running.append(launch(hosts, 1, data, run_dir, "1:2"))
        wait_until(lambda: ranks_of(run_dir) == 4, running, run_dir)
        assert [each.wait(timeout=600) for each in running] == [0, 0], told(run_dir)
    assert newest(run_dir) == newest(whole)
    assert len(re.findall("goes on from", told(run_dir))) >= 2
    metrics = [checkpoint.best(path / "checkpoints")["metrics"]["val/recall@10"] for path in (run_dir, whole)]
    assert metrics[0] == pytest.approx(metrics[1], abs=0.03)


def ranks_of(run_dir: Path) -> int:
    """That hold a table's rows, as the run says of its present start."""
    return len(json.loads((run_dir / "sharding.json").read_text())["user_id"]["rows_by_rank"])
