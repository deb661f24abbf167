"""Tables of a checkpoint as Parquet, against the whole tables gathered from the model that was saved."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor

from tests.prepared import FEATURES, ITEMS, SCHEMA, USERS
from tests.ranks import RankPool
from tests.training import config, trained, whole_tables, write_checkpoint
from trainer.checks import check_export_config
from trainer.config import CheckpointConfig, EmbeddingExportConfig, ExportConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.errors import UserError
from trainer.runtime import checkpoint
from trainer.runtime.loading import SavedRun
from trainer.runtime.processes import Processes
from trainer.runtime.shard_files import write_shards
from trainer.runtime.shards import TableShards

ROWS_PER_SHARD = 8
VOCABULARIES = {
    "user_id": pa.array([1000 + 3 * user for user in range(USERS)]),
    "item_id": pa.array([f"item-{row}" for row in range(ITEMS)]),
    "hour": pa.array([*range(24)]),
    "genres": pa.array(["drama", "comedy", "noir", "", "crime"], pa.large_string()),
}
SHARDED = {"user_id": 3, "item_id": 3, "hour": 1, "genres": 3}
"""Pieces of each as three ranks save them."""


def save(processes: Processes, folder: Path, path: Path) -> dict[str, Tensor]:
    model, _ = trained(processes, config(), folder, steps=3)
    write_checkpoint(model, path)
    return whole_tables(model)


@pytest.fixture(scope="module")
def data(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared folder with vocabularies, one of them in parts as other engines write."""
    folder = tmp_path_factory.mktemp("data")
    for path in prepared.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "vocabulary" / "item_id.parquet").mkdir(parents=True)
    for table, ids in VOCABULARIES.items():
        index = pa.array(np.arange(1, len(ids) + 1, dtype=np.int32))
        whole = pa.table({"id": ids, "index": index, "count": pa.array(np.ones(len(ids), np.int64))})
        path = folder / "vocabulary" / f"{table}.parquet"
        if path.is_dir():
            pq.write_table(whole.slice(0, 15), path / "part-0.parquet", row_group_size=4)
            pq.write_table(whole.slice(15), path / "part-1.parquet", row_group_size=11)
        else:
            pq.write_table(whole, path, row_group_size=7)
    return folder


@pytest.fixture(scope="module")
def saved(ranks: RankPool, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint of three ranks, and its tables gathered."""
    path = tmp_path_factory.mktemp("run") / checkpoint.name(3)
    return path, ranks.run(3, save, prepared, path)[0]


def open_shards(
    data: Path, path: Path, run_dir: Path, table: str, hashed: bool = False
) -> tuple[TableShards, SavedRun, ExportConfig]:
    features = tuple(replace(feature, hashed=hashed and feature.table == table) for feature in SCHEMA.features)
    schema = replace(SCHEMA, features=features)
    catalog = Catalog(data, schema)
    assembler = BatchAssembler(schema, FEATURES, catalog, config().model)
    run = SavedRun(config(), schema, schema, str(data), path, catalog, assembler)
    asked = EmbeddingExportConfig(side="table", table=table, rows_per_shard=ROWS_PER_SHARD)
    asked = ExportConfig(CheckpointConfig(dir=str(run_dir)), asked)
    return TableShards(run, asked), run, asked


def export(processes: Processes, data: Path, path: Path, run_dir: Path, table: str, hashed: bool = False) -> None:
    shards, run, asked = open_shards(data, path, run_dir, table, hashed)
    write_shards(shards, run, asked, processes)


def read(folder: Path) -> pa.Table:
    return pq.read_table(folder)


@pytest.mark.parametrize("table", VOCABULARIES)
def test_rows_are_those_of_the_whole_table_beside_the_ids_that_they_are_of(
    ranks: RankPool, data: Path, saved: tuple[Path, dict[str, Tensor]], tmp_path: Path, table: str
) -> None:
    """And the files are the same bytes from any number of ranks; they begin elsewhere than the ranks' rows did."""
    path, tables = saved
    chunks = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    assert len(chunks[f"model.embeddings.embedding_bags.{table}.weight"].chunks) == SHARDED[table]
    files = []
    for world_size in (1, 2, 3):
        (tmp_path / str(world_size)).mkdir()
        ranks.run(world_size, export, data, path, tmp_path / str(world_size), table)
        folder = tmp_path / str(world_size) / f"table_{table}"
        files.append({file.name: file.read_bytes() for file in folder.iterdir()})
        assert list(folder.parent.iterdir()) == [folder]
    assert files[0] == files[1] == files[2]

    found, whole = read(folder), tables[f"embeddings.embedding_bags.{table}.weight"].numpy()
    ids = VOCABULARIES[table].to_pylist()
    assert found.schema.field(table).type == (pa.int64() if isinstance(ids[0], int) else pa.string())
    assert found[table].to_pylist() == [None, *ids]
    np.testing.assert_array_equal(np.stack(found["embedding"].to_numpy(zero_copy_only=False)), whole)
    assert len({row.tobytes() for row in whole}) == len(whole), "rows that could be confused"
    sizes = [min(ROWS_PER_SHARD, len(whole) - start) for start in range(0, len(whole), ROWS_PER_SHARD)]
    manifest = json.loads(files[0].pop("_manifest.json"))
    shards = {shard.pop("file"): shard for shard in manifest.pop("shards")}
    assert [shard.pop("num_rows") for shard in shards.values()] == sizes
    assert files[0].pop("_SUCCESS") == b""
    assert shards == {
        file: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for file, content in files[0].items()
    }
    assert len({manifest.pop(digest) for digest in ("model", "data")}) == 2
    assert manifest == {
        "format": 2, "checkpoint": checkpoint.name(3), "step": 3, "side": "table", "table": table, "metric": None,
        "dimension": whole.shape[1], "dtype": "float32", "num_rows": len(whole), "rows_per_shard": ROWS_PER_SHARD,
        "schema": {
            table: "int64" if isinstance(ids[0], int) else "string",
            "embedding": f"fixed_size_list<float32>[{whole.shape[1]}]",
        },
    }  # fmt: skip


def test_a_hashed_table_has_buckets(
    ranks: RankPool, prepared: Path, saved: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    """Without any vocabulary; rows are numbered as hashes are."""
    path, tables = saved
    ranks.run(2, export, prepared, path, tmp_path, "user_id", True)
    found, whole = read(tmp_path / "table_user_id"), tables["embeddings.embedding_bags.user_id.weight"].numpy()
    assert found.schema.field("bucket").type == pa.int64() and found["bucket"].to_pylist() == [*range(USERS + 1)]
    np.testing.assert_array_equal(np.stack(found["embedding"].to_numpy(zero_copy_only=False)), whole)


def test_what_cannot_be_exported_is_named(data: Path, saved: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="export.table=words: expected one of the tables .* genres, hour, item_id, use"):
        open_shards(data, saved[0], tmp_path, "words")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / ".metadata").write_bytes((saved[0] / ".metadata").read_bytes())
    with pytest.raises(UserError, match=r"run.checkpoint=.*broken: expected files that can be read \(.*No such file"):
        open_shards(data, broken, tmp_path, "user_id")
    for file in saved[0].glob("*.distcp"):
        (broken / file.name).write_bytes(file.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"run.checkpoint=.*broken: expected files that can be read"):
        open_shards(data, broken, tmp_path, "user_id")


def test_a_vocabulary_that_is_not_the_tables_is_named(
    data: Path, saved: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    for path in data.iterdir():
        if path.name != "vocabulary":
            (tmp_path / path.name).symlink_to(path.resolve())
    file = tmp_path / "vocabulary" / "hour.parquet"
    with pytest.raises(UserError, match=r"hour.parquet=0 ids: expected the 24 ids of table hour"):
        open_shards(tmp_path, saved[0], tmp_path, "hour")
    file.parent.mkdir()
    whole = pq.read_table(data / "vocabulary" / "hour.parquet")
    pq.write_table(whole.slice(1), file)
    with pytest.raises(UserError, match=r"hour.parquet=23 ids: expected the 24 ids of table hour"):
        open_shards(tmp_path, saved[0], tmp_path, "hour")
    pq.write_table(whole.take([1, 0, *range(2, 24)]), file)
    shards, _, _ = open_shards(tmp_path, saved[0], tmp_path, "hour")
    assert shards.identity(range(3, 6))["hour"].to_pylist() == [2, 3, 4]
    with pytest.raises(UserError, match="hour.parquet column index=others than 1 to 2: expected 1, 2, 3"):
        shards.identity(range(3))


@pytest.mark.parametrize(
    ("side", "table", "accelerator", "message"),
    [("table", None, "auto", "export.table=None: expected the name of a table for export.side=table"),
     ("item", "item_id", "auto", "export.table=item_id: expected null for export.side=item"),
     ("table", "item_id", "gpu", "run.accelerator=gpu: expected one of auto, cpu")],
)  # fmt: skip
def test_settings_that_contradict_one_another(side: str, table: str | None, accelerator: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_export_config(
            ExportConfig(CheckpointConfig("r", accelerator=accelerator), EmbeddingExportConfig(side=side, table=table))
        )


LARGE, WIDTH = 600_000, 64
"""A table of 154 MB."""


def save_large(processes: Processes, path: Path) -> None:
    """Two pieces, of unequal size."""
    first, last = (0, LARGE // 5) if processes.is_first else (LARGE // 5, LARGE)
    rows = torch.arange(first * WIDTH, last * WIDTH, dtype=torch.float32).reshape(-1, WIDTH)
    placement = ShardMetadata([first, 0], [*rows.shape], f"rank:{processes.rank}/cpu")
    table = ShardedTensor._init_from_local_shards([Shard(rows, placement)], LARGE, WIDTH)
    dcp.save({"model": {"embeddings.embedding_bags.user_id.weight": table}}, checkpoint_id=path)


def peak_of_reading(processes: Processes, path: Path) -> float:
    """MB that reading all of the table in stretches adds to the process's memory at its highest."""
    from trainer.runtime.saved_table import SavedTable

    table = SavedTable(path, "user_id")
    table.read(range(1000))
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    before, step = _highest(), 10_000
    for start in range(0, LARGE, step):
        stretch_RD = table.read(range(start, min(start + step, LARGE)))
        assert torch.equal(stretch_RD, torch.arange(start * WIDTH, (start + step) * WIDTH).reshape(-1, WIDTH).float())
    return _highest() - before


def _highest() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1000


def test_a_stretch_is_all_that_is_held(ranks: RankPool, tmp_path: Path) -> None:
    """Twice over: of 2.6 MB, in a table of 154, of which one rank has saved 123."""
    ranks.run(2, save_large, tmp_path / "large")
    assert ranks.run(1, peak_of_reading, tmp_path / "large")[0] < 40
