import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards
from torchrec.distributed import DistributedModelParallel

from tests.ranks import RankPool
from tests.training import config, metrics, sharded_model, trained, whole_tables, write_checkpoint
from trainer.config import RunConfig, TrainConfig
from trainer.errors import UserError
from trainer.runtime import checkpoint, saved_model
from trainer.runtime.checkpoint_writer import CheckpointWriter
from trainer.runtime.processes import Processes
from trainer.runtime.resume import checkpoint_to_resume

Gone = tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]
"""Metrics and parameters at a checkpoint, and parameters some steps later."""


def save(processes: Processes, folder: Path, path: Path, train: TrainConfig) -> Gone:
    model, _ = trained(processes, train, folder, steps=5)
    write_checkpoint(model, path, {"note": "from two ranks"})
    return gone_on(processes, folder, model, train)


def load(processes: Processes, folder: Path, path: Path, train: TrainConfig) -> Gone:
    model = sharded_model(processes, train, seed=1)
    saved_model.load(model, path)
    return gone_on(processes, folder, model, train)


def gone_on(processes: Processes, folder: Path, model: DistributedModelParallel, train: TrainConfig) -> Gone:
    at_checkpoint = whole_tables(model)
    result = metrics(processes, folder, model.eval(), train)
    model, _ = trained(processes, train, folder, steps=3, start=5, model=model.train())
    return result, at_checkpoint, whole_tables(model)


def test_two_ranks_save_and_one_two_or_three_go_on(ranks: RankPool, prepared: Path, tmp_path: Path) -> None:
    path = tmp_path / checkpoint.name(5)
    before = ranks.run(2, save, prepared, path, config())[0]
    assert saved_model.load_rest(path) == {"note": "from two ranks"}
    assert not path.with_name(path.name + ".partial").exists()
    for world_size in (1, 2, 3):
        after = ranks.run(world_size, load, prepared, path, config())[0]
        assert after[0] == pytest.approx(before[0], rel=1e-12)
        assert all(torch.equal(after[1][name], value) for name, value in before[1].items())
        # the steps after the checkpoint need the fused optimizer's state; Adam's starts anew in both
        for name, value in before[2].items():
            torch.testing.assert_close(after[2][name], value, atol=2e-5, rtol=0)


def test_three_ranks_go_on_bit_for_bit(ranks: RankPool, prepared: Path, tmp_path: Path) -> None:
    """Of two, a sum has no order; of three, it must be the one that it would have been."""
    path = tmp_path / checkpoint.name(5)
    before = ranks.run(3, save, prepared, path, config())[0]
    after = ranks.run(3, load, prepared, path, config())[0]
    assert before[2] and all(torch.equal(after[2][name], value) for name, value in before[2].items())


@pytest.mark.parametrize("case", ["sgd", "a rank without tables"])
def test_ranks_without_optimizer_state_go_on_bit_for_bit(
    ranks: RankPool, prepared: Path, tmp_path: Path, case: str
) -> None:
    path, train = tmp_path / checkpoint.name(5), config(optimizer="sgd")
    if case == "a rank without tables":
        train = config("table_wise")
        train.model.query.features, train.model.candidate.features = ["user_id", "age", "history"], ["item_id", "price"]
    before = ranks.run(3, save, prepared, path, train)[0]
    after = ranks.run(3, load, prepared, path, train)[0]
    for at in (1, 2):
        assert before[at] and all(torch.equal(after[at][name], value) for name, value in before[at].items())


def refused(processes: Processes, path: Path, other: TrainConfig) -> str:
    with pytest.raises(UserError) as error:
        saved_model.load(sharded_model(processes, other), path)
    return str(error.value)


def test_a_checkpoint_of_another_model_is_refused(ranks: RankPool, prepared: Path, tmp_path: Path) -> None:
    path = tmp_path / checkpoint.name(5)
    ranks.run(1, save, prepared, path, config())
    wider = config()
    wider.model.embedding_dim = 16
    assert "expected a checkpoint of this very model" in ranks.run(1, refused, path, wider)[0]


def test_best_and_last_are_kept_and_found(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (3, 10, 200):
        (folder / checkpoint.name(step)).mkdir(parents=True)
    (folder / (checkpoint.name(300) + ".partial")).mkdir()
    (folder / (checkpoint.name(100) + checkpoint.DAMAGED)).mkdir()
    checkpoint.keep(folder, {"step": 10, "metrics": {}}, newest=1)
    kept = {checkpoint.name(10), checkpoint.name(100) + checkpoint.DAMAGED, checkpoint.name(200)}
    assert {path.name for path in folder.glob("step-*")} == kept
    assert checkpoint.find(tmp_path, "best").name == checkpoint.name(10)
    assert checkpoint.find(tmp_path, "last") == checkpoint.newest(tmp_path) == folder / checkpoint.name(200)
    assert checkpoint.find(tmp_path, checkpoint.name(10)) == folder / checkpoint.name(10)
    with pytest.raises(UserError, match="run.checkpoint=step-000000003.*train first, or name another"):
        checkpoint.find(tmp_path, checkpoint.name(3))
    shutil.rmtree(folder)
    assert checkpoint.newest(tmp_path) is None
    with pytest.raises(UserError, match="run.checkpoint=best.*there are none"):
        checkpoint.find(tmp_path, "best")


@pytest.mark.parametrize("content", [b"", b"{}", b"3", b'{"step": "two", "metrics": {}}', b"\xff"])
def test_a_damaged_note_of_the_best_is_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoints" / checkpoint.name(3)).mkdir(parents=True)
    (tmp_path / "checkpoints" / checkpoint.BEST).write_bytes(content)
    with pytest.raises(UserError, match=r"best.json as it was written .* or name one of \['step-000000003'\]"):
        checkpoint.find(tmp_path, "best")
    assert checkpoint.find(tmp_path, "last").name == checkpoint.name(3)


def write_in_background_and_train_on(
    processes: Processes, folder: Path, path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The second copy goes into the memory of the first; steps are taken while it is written."""
    model, _ = trained(processes, config(), folder, steps=2)
    writer = CheckpointWriter(in_background=True)
    writer.save(model, {"step": 2}, path.with_name(checkpoint.name(2)), then=lambda: None)
    model, _ = trained(processes, config(), folder, steps=3, start=2, model=model)
    told = path.with_name("told")
    writer.save(model, {"step": 5}, path, then=told.touch)
    saved = whole_tables(model)
    model, _ = trained(processes, config(), folder, steps=3, start=5, model=model)
    writer.wait()
    assert writer.failure is None and told.exists()
    return saved, whole_tables(model)


def write_of_another_device(processes: Processes, path: Path) -> tuple[str | None, bool]:
    """A table on a device that is not the host's, of which there is a stand-in only: its numbers cannot be copied."""
    part = Shard.from_tensor_and_offsets(torch.empty(3, 4, device="meta"), [3 * processes.rank, 0], processes.rank)
    table = init_from_local_shards([part], 3 * processes.world_size, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_model, "state_of", lambda model: {"table": table})
        patch.setattr(CheckpointWriter, "_copy", lambda self, key, tensor: torch.zeros(tensor.shape))
        writer = CheckpointWriter(in_background=True)
        writer.save(None, {}, path, then=lambda: None)  # type: ignore[arg-type]
        writer.wait()
    return writer.failure, path.is_dir()


def test_tables_are_copied_to_the_host_from_other_devices(ranks: RankPool, tmp_path: Path) -> None:
    assert ranks.run(2, write_of_another_device, tmp_path / checkpoint.name(5)) == [(None, True)] * 2


def read(processes: Processes, path: Path) -> dict[str, Tensor]:
    assert saved_model.damaged_files(path) == []
    model = sharded_model(processes, config(), seed=1)
    saved_model.load(model, path)
    return whole_tables(model)


def test_what_is_written_in_the_background_is_the_state_when_it_was_saved(
    ranks: RankPool, prepared: Path, tmp_path: Path
) -> None:
    path = tmp_path / checkpoint.name(5)
    saved, later = ranks.run(2, write_in_background_and_train_on, prepared, path)[0]
    assert any(not torch.equal(saved[name], later[name]) for name in saved)
    loaded = ranks.run(3, read, path)[0]
    assert all(torch.equal(loaded[name], value) for name, value in saved.items())
    assert saved_model.load_rest(path) == {"step": 5}


def damaged(processes: Processes, path: Path) -> list[str]:
    return saved_model.damaged_files(path)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("file", ["__0_0.distcp", "__1_0.distcp", ".metadata", "trainer.pt", "checksums.json"])
@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink, lambda file: os.truncate(file, file.stat().st_size - 1)])
def test_any_damage_is_found_by_every_rank(
    ranks: RankPool, prepared: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, file: str,
    damage: Callable[[Path], None],
) -> None:  # fmt: skip
    whole = tmp_path_factory.getbasetemp() / "undamaged" / checkpoint.name(5)
    if not whole.exists():
        ranks.run(2, save, prepared, whole, config())
    path = tmp_path / whole.name
    shutil.copytree(whole, path)
    assert ranks.run(2, damaged, path) == [[], []]
    damage(path / file)
    found = ranks.run(2, damaged, path)
    assert found[0] == found[1] and found[0]
    assert file == "checksums.json" or found[0] == [file]


@pytest.mark.parametrize("forged", ["{}", "[]", '{"trainer.pt": {"bytes": 0}}', "3", "\xff"])
def test_checksums_are_of_all_files(ranks: RankPool, prepared: Path, tmp_path: Path, forged: str) -> None:
    path = tmp_path / checkpoint.name(5)
    ranks.run(2, save, prepared, path, config())
    (path / "checksums.json").write_bytes(forged.encode("latin-1"))
    assert ranks.run(2, damaged, path) == [["checksums.json"]] * 2
    with pytest.raises(UserError, match=r"expected its checksums.json as written \(.*\). Remedy: bring the file back"):
        checkpoint.written_checksums(path)


def resume(processes: Processes, run_dir: Path, set_aside: bool) -> str | None:
    path = checkpoint_to_resume(RunConfig(dir=str(run_dir), set_aside_damaged=set_aside), processes)
    return path and path.name


def refused_to_resume(processes: Processes, run_dir: Path) -> str:
    with pytest.raises(UserError) as error:
        checkpoint_to_resume(RunConfig(dir=str(run_dir)), processes)
    return str(error.value)


def test_a_damaged_newest_checkpoint_is_refused_with_what_goes_on_from_the_one_before(
    ranks: RankPool, prepared: Path, tmp_path: Path
) -> None:
    newest, before = (tmp_path / "checkpoints" / checkpoint.name(step) for step in (5, 2))
    ranks.run(2, write_in_background_and_train_on, prepared, newest)
    assert ranks.run(2, resume, tmp_path, False) == [newest.name] * 2
    flip_a_bit(newest / "__1_0.distcp")
    told = ranks.run(2, refused_to_resume, tmp_path)
    assert told[0] == told[1]
    for part in (f"newest checkpoint {newest.name}", "__1_0.distcp", "run.set_aside_damaged=true", before.name):
        assert part in told[0]
    assert newest.exists()
    assert ranks.run(2, resume, tmp_path, True) == [before.name] * 2
    assert (newest.parent / f"{newest.name}.damaged" / "__1_0.distcp").exists()
    assert ranks.run(2, resume, tmp_path, False) == [before.name] * 2  # now it is a choice no longer
    (before / "trainer.pt").unlink()
    assert "begins anew" in ranks.run(2, refused_to_resume, tmp_path)[0]
    assert ranks.run(2, resume, tmp_path, True) == [None] * 2


def write_where_there_is_no_room(processes: Processes, folder: Path, path: Path) -> tuple[str | None, str | None]:
    model, _ = trained(processes, config(), folder, steps=2)
    writer = CheckpointWriter(in_background=True)
    failures = []
    for limit in (9_000, resource.RLIM_INFINITY):  # bytes a file may have: less than the first rank's tables
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit if processes.rank == 0 else hard, hard))
        writer.save(model, {}, path, then=lambda: None)
        writer.wait()
        failures.append(writer.failure)
        # the first rank takes away what there is of it
        assert processes.rank or not path.with_name(path.name + ".partial").exists()
    return failures[0], failures[1]


def test_a_rank_that_cannot_write_is_told_to_all_and_the_next_checkpoint_is_whole(
    ranks: RankPool, prepared: Path, tmp_path: Path
) -> None:
    path = tmp_path / checkpoint.name(5)
    failures = ranks.run(2, write_where_there_is_no_room, prepared, path)
    assert failures[0] == failures[1]
    assert "File too large" in failures[0][0] and failures[0][1] is None
    assert ranks.run(1, damaged, path) == [[]]
