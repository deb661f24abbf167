"""A run directory on a file system of a few megabytes."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contents import assert_same_contents
from tests.disks import small_disk
from tests.forked import run, succeed
from trainer.runtime import checkpoint

pytestmark = pytest.mark.survival

SETTINGS = ("data.global_batch_size=128", "run.validation_batch_size_per_rank=256", "run.monitor=val/recall@10",
            "run.epochs=1", "run.checkpoint_every_steps=8", "run.keep_checkpoints=9")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "data"
    succeed("trainer.prepare", "data=generated", f"data.dir={folder}", "data.users=700", "data.items=300")
    return folder


@pytest.fixture(name="small_disk")
def disk(tmp_path: Path) -> Iterator[Path]:
    """Room for some two checkpoints."""
    with small_disk(tmp_path / "disk", "4m") as folder:
        yield folder


def steps(run_dir: Path) -> list[int]:
    return [int(name.removeprefix("step-")) for name in checkpoint.names(run_dir / "checkpoints")]


def test_a_full_disk_ends_the_run_and_with_room_it_goes_on(data: Path, small_disk: Path, tmp_path: Path) -> None:
    run_dir = small_disk / "run"
    result = run("trainer.train", f"data.dir={data}", f"run.dir={run_dir}", *SETTINGS)
    assert result.returncode == 2, result.stderr
    newest = checkpoint.newest(run_dir)
    assert newest is not None and steps(run_dir)[0] == 8
    for part in ("run.dir=", "No space left on device", "MB needed", f"the one before, {newest.name}, is whole",
                 "run.on_failed_checkpoint=go_on"):  # fmt: skip
        assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(run_dir.glob("checkpoints/*.partial"))

    subprocess.run(["mount", "-o", "remount,size=40m", small_disk], check=True)
    told = succeed("trainer.train", f"data.dir={data}", f"run.dir={run_dir}", *SETTINGS)
    assert f"goes on from {newest}" in told
    succeed("trainer.train", f"data.dir={data}", f"run.dir={tmp_path / 'whole'}", *SETTINGS)
    assert_same_contents(checkpoint.newest(run_dir), checkpoint.newest(tmp_path / "whole"))


def test_or_the_run_goes_on_without_those_checkpoints(data: Path, small_disk: Path) -> None:
    """The last one has to be written: without it there is nothing to evaluate."""
    run_dir = small_disk / "run"
    result = run("trainer.train", f"data.dir={data}", f"run.dir={run_dir}", *SETTINGS,
                 "run.on_failed_checkpoint=go_on")  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.count("a checkpoint was not written: ") > 1
    assert result.stderr.count("expected a checkpoint to be written there") == 1
    assert steps(run_dir)[0] == 8 and "Traceback" not in result.stderr


def test_what_later_commands_write_is_whole_or_not_there(data: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=40m", small_disk], check=True)
    run_dir, filler = small_disk / "run", small_disk / "filler"
    succeed("trainer.train", f"data.dir={data}", f"run.dir={run_dir}", *SETTINGS)
    filler.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 40_000))
    for command, file in (("trainer.evaluate", "report"), ("trainer.query_tower", "query_tower.pt2")):
        result = run(command, f"run.dir={run_dir}")
        assert result.returncode == 2, result.stderr
        assert f"error: {run_dir}/{file}" in result.stderr and "No space left on device" in result.stderr
        assert not [path for path in run_dir.rglob("*") if "partial" in path.name]
    assert not (run_dir / "report" / "report.html").exists() and not (run_dir / "query_tower.pt2").exists()
    filler.unlink()
    for command in ("trainer.evaluate", "trainer.query_tower"):
        succeed(command, f"run.dir={run_dir}")
    assert (run_dir / "report" / "report.html").exists() and (run_dir / "query_tower.pt2").exists()


def test_an_evaluation_that_could_not_be_written_is_not_begun(data: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=40m", small_disk], check=True)
    run_dir = small_disk / "run"
    succeed("trainer.train", f"data.dir={data}", f"run.dir={run_dir}", *SETTINGS)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    result = run("trainer.evaluate", f"run.dir={run_dir}")
    assert result.returncode == 2, result.stderr
    assert f"error: run.dir={run_dir}: expected a folder where the evaluation can be written" in result.stderr
    assert "batch" not in result.stderr  # of its progress
