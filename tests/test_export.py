"""Exports that are stopped, damaged, repaired and proven; the oracle is one that nothing hit."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import exports
from tests.commands import command, environment
from tests.disks import small_disk
from tests.exports import contents
from tests.prepared import ITEMS, ROWS
from tests.ranks import RankPool
from trainer.errors import user_errors
from trainer.runtime.processes import Processes

FILES = [f"part-{k:05d}.parquet" for k in range(6)]
"""Of the 40 items, 7 in each."""


@pytest.fixture(scope="module")
def run_dir(ranks: RankPool, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with the checkpoints of steps 3 and 4."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    ranks.run(2, exports.train, prepared, folder)
    return folder


@pytest.fixture(scope="module")
def whole(ranks: RankPool, prepared: Path, run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN/item_embeddings as nothing hit it."""
    out = tmp_path_factory.mktemp("whole")
    assert ranks.run(2, exports.export, prepared, run_dir, out)[0] == FILES
    return out / "item_embeddings"


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A folder with a copy of it, to be damaged."""
    shutil.copytree(whole, tmp_path / "item_embeddings")
    return tmp_path


@pytest.mark.parametrize(("side", "dtype"), [("item", "float32"), ("item", "int8"), ("query", "float32")])
def test_the_same_bytes_from_any_number_of_ranks(
    ranks: RankPool, prepared: Path, run_dir: Path, tmp_path: Path, side: str, dtype: str
) -> None:
    found = []
    for world_size in (1, 2, 3):
        out = tmp_path / str(world_size)
        out.mkdir()
        ranks.run(world_size, exports.export, prepared, run_dir, out, {"side": side, "dtype": dtype})
        assert [path.name for path in out.iterdir()] == [f"{side}_embeddings"]
        found.append(contents(out / f"{side}_embeddings"))
    assert found[0] == found[1] == found[2]
    num_rows = ITEMS if side == "item" else ROWS["test"]
    assert len(found[0]) == -(-num_rows // 7) + 2


def test_the_manifest_says_what_the_shards_are(whole: Path, run_dir: Path) -> None:
    manifest = json.loads((whole / "_manifest.json").read_text())
    shards = [pq.read_table(whole / file) for file in FILES]
    assert manifest["schema"] == {"item_id": "string", "digest": "int64", "embedding": "fixed_size_list<float32>[8]"}
    assert shards[0].schema.names == [*manifest["schema"]]
    embedding = pa.list_(pa.field("element", pa.float32(), nullable=False), 8)
    assert shards[0].schema.types == [pa.string(), pa.int64(), embedding]
    assert manifest["shards"] == [
        {"file": file, "num_rows": len(shard), "bytes": (whole / file).stat().st_size,
         "sha256": hashlib.sha256((whole / file).read_bytes()).hexdigest()}
        for file, shard in zip(FILES, shards, strict=True)
    ]  # fmt: skip
    assert (manifest["num_rows"], manifest["dimension"], manifest["metric"]) == (ITEMS, 8, "inner_product")
    assert (manifest["checkpoint"], manifest["step"]) == ("step-000000003", 3)
    assert {path.name for path in whole.iterdir()} == {*FILES, "_manifest.json", "_SUCCESS"}


def test_what_is_damaged_is_written_again_and_nothing_else(
    ranks: RankPool, prepared: Path, run_dir: Path, whole: Path, out: Path
) -> None:
    """On another number of ranks than before: lost, cut short, of the same size but other bytes, left half-written."""
    folder = out / "item_embeddings"
    (folder / FILES[1]).unlink()
    os.truncate(folder / FILES[3], 200)
    flipped = bytearray((folder / FILES[4]).read_bytes())
    flipped[100] ^= 1
    (folder / FILES[4]).write_bytes(flipped)
    (folder / f"{FILES[1]}.partial").write_bytes(b"half")
    kept = {file: (folder / file).stat().st_mtime_ns for file in (FILES[0], FILES[2], FILES[5])}
    assert ranks.run(3, exports.export, prepared, run_dir, out)[0] == [FILES[1], FILES[3], FILES[4]]
    assert contents(folder) == contents(whole) and [*out.iterdir()] == [folder]
    assert all((folder / file).stat().st_mtime_ns == written for file, written in kept.items())


def test_what_is_whole_stays_as_it_is(ranks: RankPool, prepared: Path, run_dir: Path, out: Path) -> None:
    folder = out / "item_embeddings"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert ranks.run(2, exports.export, prepared, run_dir, out, {}, 3, 0)[0] == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / "_SUCCESS").unlink()
    assert ranks.run(2, exports.export, prepared, run_dir, out, {}, 3, 0)[0] == []
    assert (folder / "_SUCCESS").exists()


def test_one_that_is_stopped_goes_on(
    ranks: RankPool, prepared: Path, run_dir: Path, whole: Path, tmp_path: Path
) -> None:
    """Again and again, on any number of ranks; nothing passes for whole before it is."""
    folder, partial = tmp_path / "item_embeddings", tmp_path / "item_embeddings.partial"
    for world_size, after, shards in ((1, 0, 0), (1, 1, 1), (2, 1, 3)):
        ranks.run(world_size, exports.export, prepared, run_dir, tmp_path, {}, 3, after)
        assert [path.name for path in sorted(partial.glob("part-*"))] == FILES[:shards]
        assert not folder.exists() and not (partial / "_SUCCESS").exists() and not (partial / "_manifest.json").exists()
    (partial / FILES[0]).unlink()
    shutil.copy(partial / FILES[1], partial / FILES[5])  # nobody has noted it
    assert ranks.run(2, exports.export, prepared, run_dir, tmp_path)[0] == [FILES[0], *FILES[3:]]
    assert contents(folder) == contents(whole) and not partial.exists()


@pytest.mark.parametrize("another", [{"dtype": "float16"}, {"rows_per_shard": 8}, {"step": 4}])
def test_shards_of_another_claim_are_never_mixed_in(
    ranks: RankPool, prepared: Path, run_dir: Path, whole: Path, out: Path, another: dict[str, int]
) -> None:
    """The whole folder stays until the other is whole, and what was left of a third is thrown away."""
    folder, partial = out / "item_embeddings", out / "item_embeddings.partial"
    step = another.pop("step", 3)
    ranks.run(1, exports.export, prepared, run_dir, out, {"rows_per_shard": 9}, 3, 2)
    assert len([*partial.glob("part-*")]) == 2
    ranks.run(1, exports.export, prepared, run_dir, out, another, step, 1)
    assert len([*partial.glob("part-*")]) == 1 and contents(folder) == contents(whole)
    ranks.run(1, exports.export, prepared, run_dir, out, another, step)
    clean = out / "clean"
    clean.mkdir()
    ranks.run(1, exports.export, prepared, run_dir, clean, another, step)
    assert contents(folder) == contents(clean / "item_embeddings") != contents(whole) and not partial.exists()


def test_killed_between_whole_and_renamed(
    ranks: RankPool, prepared: Path, run_dir: Path, whole: Path, out: Path
) -> None:
    folder, partial = out / "item_embeddings", out / "item_embeddings.partial"
    folder.rename(partial)
    assert ranks.run(2, exports.export, prepared, run_dir, out)[0] == []
    assert contents(folder) == contents(whole) and not partial.exists()
    folder.rename(partial)
    (partial / FILES[2]).unlink()
    ranks.run(1, exports.export, prepared, run_dir, out, {}, 3, 0)
    assert not folder.exists() and not (partial / "_SUCCESS").exists()


def test_a_killed_command_leaves_shards_that_another_keeps(
    ranks: RankPool, prepared: Path, run_dir: Path, tmp_path: Path
) -> None:
    """SIGKILL, at whatever moment it falls."""
    shutil.copytree(run_dir, tmp_path / "run")
    folder, partial = tmp_path / "run" / "item_embeddings", tmp_path / "run" / "item_embeddings.partial"
    settings = {"rows_per_shard": 1, "batch_size_per_rank": 1}
    process = subprocess.Popen(
        command("trainer.export", f"run.dir={tmp_path / 'run'}", "run.checkpoint=step-000000003", "run.accelerator=cpu",
                *(f"export.{name}={value}" for name, value in settings.items())),
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len([*partial.glob("part-*.parquet")]) < 3:
        assert process.poll() is None and time.monotonic() < deadline, "no shard was written"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name for path in partial.glob("_progress/part-*.parquet.json")}
    assert not folder.exists() and 2 <= len(kept) < ITEMS, "it was killed too late to show anything"
    written = ranks.run(2, exports.export, prepared, run_dir, tmp_path / "run", settings)[0]
    assert {f"{file}.json" for file in written}.isdisjoint(kept) and len(written) + len(kept) == ITEMS
    ranks.run(2, exports.export, prepared, run_dir, tmp_path, settings)
    assert contents(folder) == contents(tmp_path / "item_embeddings")


@pytest.mark.parametrize("settings", [
    {"side": "item"}, {"side": "item", "dtype": "float16"}, {"side": "item", "dtype": "int8"},
    {"side": "query", "dtype": "int8"}, {"side": "query"},
])  # fmt: skip
def test_a_sound_folder_is_proven(
    ranks: RankPool, prepared: Path, run_dir: Path, tmp_path: Path, settings: dict[str, str]
) -> None:
    """On other ranks, and whatever type and rows a shard the command names: these are the folder's own."""
    ranks.run(2, exports.export, prepared, run_dir, tmp_path, settings)
    folder = tmp_path / f"{settings['side']}_embeddings"
    before = contents(folder)
    for world_size, rows, samples in ((1, 1000, None), (3, 4, 4)):
        told = set(ranks.run(world_size, exports.proof, prepared, run_dir, tmp_path,
                             {"side": settings["side"], "verify_rows": rows, "rows_per_shard": 5}))  # fmt: skip
        samples = samples or (ITEMS if settings["side"] == "item" else ROWS["test"])
        assert len(told) == 1 and f"each there once; {samples} computed anew" in told.pop()
    assert contents(folder) == before


def forge(folder: Path, file: str, change: Callable[[np.ndarray], None]) -> None:
    """Changes embeddings of a shard, and the manifest with it."""
    table = pq.read_table(folder / file)
    rows_RD = np.stack(table["embedding"].to_numpy(zero_copy_only=False)).copy()
    change(rows_RD)
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows_RD.reshape(-1)), rows_RD.shape[1])
    pq.write_table(table.set_column(table.column_names.index("embedding"), "embedding", column), folder / file)
    manifest = json.loads((folder / "_manifest.json").read_text())
    for shard in manifest["shards"]:
        content = (folder / shard["file"]).read_bytes()
        shard |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "_manifest.json").write_text(json.dumps(manifest))


def damage(folder: Path, how: str) -> None:
    match how:
        case "unmarked":
            (folder / "_SUCCESS").unlink()
        case "lost":
            (folder / FILES[2]).unlink()
        case "flipped":
            content = bytearray((folder / FILES[5]).read_bytes())
            content[60] ^= 1
            (folder / FILES[5]).write_bytes(content)
        case "stray":
            shutil.copy(folder / FILES[0], folder / "part-00006.parquet")
        case "left over":
            (folder / "part-00006.parquet.crc").touch()
        case "swapped":
            (folder / FILES[0]).write_bytes((folder / FILES[1]).read_bytes())
            forge(folder, FILES[2], lambda rows_RD: None)
        case "untrue":
            forge(folder, FILES[3], lambda rows_RD: rows_RD.__setitem__(4, -rows_RD[4]))
        case "not finite":
            forge(folder, FILES[3], lambda rows_RD: rows_RD.__setitem__((4, 2), np.nan))


@pytest.mark.parametrize(
    ("how", "told"),
    [("unmarked", "it lacks its _SUCCESS"), ("lost", "part-00002.parquet is missing"),
     ("flipped", "part-00005.parquet has other bytes than were written"),
     ("stray", "expected 6 shards, not part-00006.parquet beside them"),
     ("left over", "expected 6 shards, not part-00006.parquet.crc beside them"),
     ("swapped", "part-00000.parquet has item_id item-7 in row 0, not item-0"),
     ("untrue", "part-00003.parquet: the embedding of row 25, item_id item-25, is off by 2.0e+00 of its largest elem"),
     ("not finite", "part-00003.parquet: the embedding of row 25, item_id item-25, is off by nan of its largest elem")],
)  # fmt: skip
def test_what_is_wrong_is_named(ranks: RankPool, prepared: Path, run_dir: Path, out: Path, how: str, told: str) -> None:
    damage(out / "item_embeddings", how)
    found = ranks.run(2, exports.proof, prepared, run_dir, out)
    assert found[0] == found[1] and told in found[0]
    assert "export.verify=" in found[0] and "Remedy: " in found[0]


def test_another_model_is_not_what_the_folder_is_of(ranks: RankPool, prepared: Path, run_dir: Path, out: Path) -> None:
    told = ranks.run(2, exports.proof, prepared, run_dir, out, {}, 4)[0]
    assert "checkpoint is step-000000003, not step-000000004, model is " in told and "step is 3, not 4" in told


def test_an_id_that_is_there_twice_is_named(ranks: RankPool, prepared: Path, run_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(prepared, data)
    with pa.memory_map(str(prepared / "catalog.arrow")) as file:
        catalog = pa.ipc.open_file(file).read_all()
    ids = catalog["raw_item_id"].to_pylist()
    ids[30] = ids[11]
    catalog = catalog.set_column(0, "raw_item_id", pa.array(ids)).combine_chunks()
    with pa.ipc.new_file(data / "catalog.arrow", catalog.schema) as writer:
        writer.write_table(catalog)
    ranks.run(2, exports.export, data, run_dir, tmp_path)
    assert "item_id item-11 is there 2 times" in ranks.run(2, exports.proof, data, run_dir, tmp_path)[1]


@pytest.mark.parametrize(("dtype", "value"), [("float32", np.nan), ("int8", np.inf), ("float16", 70_000)])
def test_an_embedding_that_the_type_cannot_hold_is_named(
    ranks: RankPool, prepared: Path, run_dir: Path, tmp_path: Path, dtype: str, value: float
) -> None:
    rows_ND = np.ones((20, 4), np.float32)
    rows_ND[13, 2] = value
    told = ranks.run(1, exports.export_given, rows_ND, prepared, run_dir, tmp_path, {"dtype": dtype})[0]
    assert (
        f"export.dtype={dtype}: expected finite embeddings that it can hold; that of row 13, item_id 13, is not" in told
    )
    assert not (tmp_path / "item_embeddings").exists()
    rows_ND[13, 2] = 1
    told = ranks.run(1, exports.export_given, rows_ND, prepared, run_dir, tmp_path, {"dtype": dtype})[0]
    assert told.endswith("item_embeddings; 1 of 3 shards were there")


@pytest.fixture(name="small_disk")
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "1m") as folder:
        yield folder


def test_a_full_disk_is_told_and_with_room_the_export_goes_on(
    ranks: RankPool, prepared: Path, run_dir: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 2 MB in 8 shards, three have room."""
    rows_ND = np.random.default_rng(0).normal(size=(8000, 64)).astype(np.float32)
    arguments = (exports.export_given, rows_ND, prepared, run_dir, small_disk, {"rows_per_shard": 1000})
    partial = small_disk / "item_embeddings.partial"
    number, file = ranks.run(1, *arguments)[0]
    assert (number, file) == (errno.ENOSPC, str(partial / FILES[3]))
    assert sorted(path.name for path in partial.iterdir()) == ["_progress", *FILES[:3]]
    with pytest.raises(SystemExit), user_errors():
        raise OSError(number, os.strerror(number), file)
    assert f"{file}: No space left on device. Remedy: make room" in capsys.readouterr().err

    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert ranks.run(1, *arguments)[0].endswith("item_embeddings; 3 of 8 shards were there")
    found = pq.read_table(small_disk / "item_embeddings")["embedding"].combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(found.reshape(-1, 64), rows_ND)


def test_a_folder_that_cannot_be_written_is_told_on_every_rank(ranks: RankPool, prepared: Path, run_dir: Path) -> None:
    told = ranks.run(2, exports.export_given, np.ones((8, 4), np.float32), prepared, run_dir, Path("/proc"), {})
    assert told[0] == told[1] and told[0][0] in (errno.ENOENT, errno.EACCES, errno.EPERM)


def peak_of_exporting(processes: Processes, data: Path, run_dir: Path, out: Path) -> float:
    """MB that an export of 154, in shards of 77, adds to the process's memory at its highest."""
    rows_ND = np.random.default_rng(0).random((600_000, 64), np.float32)
    settings = {"rows_per_shard": 300_000, "batch_size_per_rank": 512}
    exports.export_given(processes, rows_ND[:100_000], data, run_dir, out, settings)
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    before = _highest()
    exports.export_given(processes, rows_ND, data, run_dir, out, settings)
    added = _highest() - before
    found = pq.read_table(out / "item_embeddings" / FILES[1])["embedding"].combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(found.reshape(-1, 64), rows_ND[300_000:])
    return added


def _highest() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1000


def test_row_groups_are_all_that_is_held(ranks: RankPool, prepared: Path, run_dir: Path, tmp_path: Path) -> None:
    """Of 8.4 MB, some times over in writing Parquet."""
    assert ranks.run(1, peak_of_exporting, prepared, run_dir, tmp_path)[0] < 60
