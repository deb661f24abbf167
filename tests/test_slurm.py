"""launch/slurm.sbatch as it is shipped, under SLURM itself: two nodes of one machine, a rank on each.

Not part of `make test`: `make test-slurm` installs SLURM where it can, and runs them.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.commands import REPOSITORY, command, environment, succeed
from tests.contents import assert_same_contents
from tests.slurm_cluster import Cluster, slurm_cluster, unable
from trainer.runtime import checkpoint

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(unable() is not None, reason=str(unable())),
]

SETTINGS = ("data.global_batch_size=128", "run.validation_batch_size_per_rank=16", "run.monitor=val/recall@10",
            "run.log_every=1", "run.patience=100", "run.checkpoint_every_steps=10",
            "model.loss.log_q=streaming", "run.threads=1")  # fmt: skip
LONG, LEFT = 60, 3
"""Minutes that a job may take, and those that it is then left: SLURM signals 120 seconds before the end."""
SBATCH = ("sbatch", "--parsable", "--gpus-per-node=0", "--signal=USR1@120", f"--time={LONG}", "launch/slurm.sbatch")


@pytest.fixture(name="data", scope="module")
def _data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "data"
    succeed("trainer.prepare", "data=generated", f"data.dir={folder}", "data.users=700", "data.items=300")
    return folder


@pytest.fixture(name="whole", scope="module")
def _whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on one machine, which nothing ends."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    succeed("trainer.train", f"data.dir={data}", f"run.dir={folder}", *SETTINGS, "run.epochs=4", ranks=2)
    return folder


@pytest.fixture(name="cluster", scope="module")
def _cluster() -> Iterator[Cluster]:
    with slurm_cluster(**environment() | {"NPROC_PER_NODE": "1"}) as cluster:
        yield cluster


def submit(cluster: Cluster, folder: Path, *arguments: str) -> str:
    """Number of a job that writes its log to a folder."""
    options = (f"--output={folder}/%x-%j.log", f"--chdir={REPOSITORY}")
    return cluster.run(SBATCH[0], *options, *SBATCH[1:], *arguments)


def test_a_training_over_two_nodes_outlives_its_time_and_a_requeue_and_others_follow_it(
    cluster: Cluster, data: Path, whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job = submit(cluster, tmp_path, "train", f"data.dir={data}", f"run.dir={run_dir}", *SETTINGS, "run.epochs=4")
    after = [submit_after(cluster, tmp_path, job, command, run_dir) for command in ("evaluate", "export")]

    # its time is nearly over: it saves, and puts itself back into the queue
    cluster.wait(job, lambda its: its["JobState"] == "RUNNING" and checkpoint.newest(run_dir))
    with at_rest(run_dir):  # for SLURM looks at the time twice a minute, and the run may not be over before
        hours, minutes, _ = cluster.job(job)["RunTime"].split(":")
        cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * int(hours) + int(minutes) + LEFT}")
        cluster.wait(job, lambda its: "death signal" in cluster.log(its))
    cluster.wait(job, lambda its: its["Restarts"] == "1" and its["JobState"] == "PENDING")
    saved = checkpoint.newest(run_dir)
    assert saved is not None and saved.name < (checkpoint.newest(whole) or saved).name
    assert "preempted: back into the queue, after 0 restarts" in cluster.log(cluster.job(job))
    start_again(cluster, job)

    # an administrator puts it back, without a word before
    cluster.wait(job, lambda its: its["JobState"] == "RUNNING" and checkpoint.newest(run_dir) != saved)
    cluster.run("scontrol", "requeue", job)
    cluster.wait(job, lambda its: its["Restarts"] == "2" and its["JobState"] == "PENDING")
    start_again(cluster, job)

    ended = cluster.wait(job, lambda its: its["JobState"] == "COMPLETED")
    begun = [line for line in cluster.log(ended).splitlines() if line.startswith("goes on from")]
    assert ended["NumNodes"] == "2" and len(begun) == 2, cluster.log(ended)
    assert_same_contents(checkpoint.newest(run_dir), checkpoint.newest(whole))
    for each in after:
        ended = cluster.wait(each, lambda its: its["JobState"] == "COMPLETED")
        assert ended["NumNodes"] == "2", cluster.log(ended)
    assert (run_dir / "metrics.json").is_file() and (run_dir / "item_embeddings" / "_SUCCESS").is_file()


@contextmanager
def at_rest(run_dir: Path) -> Iterator[None]:
    """Keeps a run's processes from training."""
    trains = [pid for pid, words in command_lines() if f"run.dir={run_dir}" in words and "trainer.train" in words
              and not any(word.endswith("torchrun") for word in words)]  # fmt: skip
    assert trains
    for pid in trains:
        os.kill(pid, signal.SIGSTOP)
    yield
    for pid in trains:
        os.kill(pid, signal.SIGCONT)


def command_lines() -> Iterator[tuple[int, list[str]]]:
    """Of all processes that are there."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield int(path.parent.name), path.read_bytes().decode(errors="replace").split("\0")


def submit_after(cluster: Cluster, folder: Path, job: str, command: str, run_dir: Path) -> str:
    options = (f"--output={folder}/%x-%j.log", f"--chdir={REPOSITORY}", f"--dependency=afterok:{job}")
    return cluster.run(SBATCH[0], *options, *SBATCH[1:], command, f"run.dir={run_dir}")


def start_again(cluster: Cluster, job: str) -> None:
    """With the time it had; SLURM itself would wait for two minutes, in which all that was before is gone."""
    cluster.wait_until_idle()
    time.sleep(1)  # a node takes no job anew in the second in which it was told to end it
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={LONG}", "StartTime=now")


def test_a_job_that_is_cancelled_stays_so_and_the_run_goes_on_by_hand(
    cluster: Cluster, data: Path, whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job = submit(cluster, tmp_path, "train", f"data.dir={data}", f"run.dir={run_dir}", *SETTINGS, "run.epochs=4")
    cluster.wait(job, lambda its: its["JobState"] == "RUNNING" and checkpoint.newest(run_dir))
    cluster.run("scancel", job)
    ended = cluster.job(job)
    while ended["JobState"] in ("RUNNING", "COMPLETING"):
        ended = cluster.job(job)
    assert ended["JobState"] == "CANCELLED" and ended["Restarts"] == "0"
    again = submit(cluster, tmp_path, "train", f"data.dir={data}", f"run.dir={run_dir}", *SETTINGS, "run.epochs=4")
    cluster.wait(again, lambda its: its["JobState"] == "COMPLETED")
    assert "goes on from" in cluster.log(cluster.job(again))
    assert_same_contents(checkpoint.newest(run_dir), checkpoint.newest(whole))


def test_the_jobs_of_a_sweep_are_jobs_of_slurm(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    """hydra-submitit-launcher submits them; each is what its own command makes."""
    settings = (f"data.dir={data}", *SETTINGS, "run.epochs=1")
    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=10")
    sweep = command("trainer.train", "--multirun", *launcher, *settings, "optimizer.dense_learning_rate=0.001,0.01",
                    f"run.dir={tmp_path}/runs/lr-${{optimizer.dense_learning_rate}}",
                    f"hydra.sweep.dir={tmp_path}/multirun")  # fmt: skip
    cluster.run(*sweep)
    jobs = cluster.run("scontrol", "--oneliner", "show", "job").splitlines()
    assert sum(f"{tmp_path}/multirun/.submitit/" in job for job in jobs) == 2, jobs
    for rate in ("0.001", "0.01"):
        succeed("trainer.train", *settings, f"optimizer.dense_learning_rate={rate}", f"run.dir={tmp_path}/lr-{rate}")
        alone, swept = (tmp_path / name / f"lr-{rate}" / "checkpoints" for name in ("", "runs"))
        assert (swept / checkpoint.BEST).read_text() == (alone / checkpoint.BEST).read_text()
