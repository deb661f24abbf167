"""Ranks that differ in configuration or data are told so before they work together."""

import socket
import subprocess
from pathlib import Path
from shutil import copytree

import pyarrow.parquet as pq
import pytest

from tests.commands import command, environment
from tests.prepared import ITEMS, SCHEMA
from tests.ranks import RankPool
from trainer.config import TrainConfig
from trainer.data.catalog import Catalog
from trainer.data.order import TrainingOrder
from trainer.errors import UserError
from trainer.runtime import checkpoint
from trainer.runtime.agreement import check_alike, fields
from trainer.runtime.processes import Processes


def told(processes: Processes, of_ranks: list[dict[str, object]]) -> str | None:
    try:
        check_alike(of_ranks[processes.rank])
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("of_ranks", "message"),
    [
        ([{"a": 1, "b": None}, {"a": 1, "b": None}, {"b": None, "a": 1}], None),
        ([{"a": 1, "b": 2.0}, {"a": 1, "b": 0.5}, {"a": 1, "b": 2.0}], "b=0.5 on rank 1, 2.0 on ranks 0, 2: expected"),
        ([{"a": 1}, {"a": 1, "b": 2}, {"a": 3}], "a=3 on rank 2, 1 on ranks 0, 1; b=2 on rank 1, absent on ranks 0, 2"),
        ([{f"f{n}": rank for n in range(11)} for rank in range(3)], "1 on rank 1, 2 on rank 2; and 3 more"),
    ],
)  # fmt: skip
def test_every_rank_says_who_has_what(ranks: RankPool, of_ranks: list[dict[str, object]], message: str | None) -> None:
    first, *others = ranks.run(3, told, of_ranks)
    assert others == [first, first]
    assert first is None if message is None else message in first


def test_what_a_machine_may_have_of_its_own_is_left_out(prepared: Path) -> None:
    here, there = TrainConfig(), TrainConfig()
    for config in (here, there):
        config.run.dir, config.data.dir = "run", "a"
    there.data.dir, there.data.memory_gb, there.run.threads = "b", 1.0, 3
    order, catalog = TrainingOrder((60, 40), 10, 2, seed=0), Catalog(prepared, SCHEMA)
    assert fields(here, SCHEMA, catalog, order) == fields(there, SCHEMA, catalog, order)
    alike = fields(here, SCHEMA, catalog, order)
    assert alike["model.embedding_dim"] == 64 and alike["schema.json num_items"] == ITEMS
    assert alike["schema.json features.age.mean"] == 40.0
    other = fields(here, SCHEMA, catalog, TrainingOrder((40, 60), 10, 2, seed=0))
    assert [name for name in alike if alike[name] != other[name]] == ["training rows"]


def other_row_groups(prepared: Path, folder: Path) -> Path:
    """The same rows, cut into row groups of another size."""
    copytree(prepared, folder)
    for part in (folder / "events" / "train").iterdir():
        pq.write_table(pq.read_table(part), part, row_group_size=100)
    return folder


@pytest.mark.slow
def test_two_machines_with_another_command_and_other_data(prepared: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = (f"run.dir={tmp_path / 'run'}", "data.global_batch_size=48", "data.streams=6", "model.categorical_dim=4")
    own = [
        (f"data.dir={prepared}", "model.embedding_dim=64"),
        (f"data.dir={other_row_groups(prepared, tmp_path / 'data')}", "model.embedding_dim=32", "run.threads=1"),
    ]
    machines = [
        subprocess.Popen(
            command("trainer.train", *common, *own[rank]),
            env=environment() | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
                                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        errors = [machine.communicate(timeout=120)[1] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    for machine, error in zip(machines, errors, strict=True):
        assert machine.returncode == 2, error
        assert error.startswith("error: model.embedding_dim=64 on rank 0, 32 on rank 1; training rows=1000 in "), error
        assert "in 10 row groups" in error and "in 8 row groups" in error
        assert error.count("\n") == 1 and "Traceback" not in error
    assert checkpoint.newest(tmp_path / "run") is None
    assert not (tmp_path / "run" / "stalls").exists()
