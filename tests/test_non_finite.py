"""A user whose row of the table is not a number, among others that are."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from tests.prepared import ITEMS, SCHEMA
from tests.ranks import RankPool
from tests.training import BATCH, STREAMS, config, features_of, sharded_model, trained, whole_tables, write_checkpoint
from trainer.config import CheckpointConfig, TrainConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.events import TrainingReader
from trainer.data.order import TrainingOrder
from trainer.data.row_groups import open_events
from trainer.errors import UserError
from trainer.runtime import checkpoint, run_directory
from trainer.runtime.loading import load_model, open_run
from trainer.runtime.non_finite import IN_A_ROW, offending_rows
from trainer.runtime.processes import Processes
from trainer.runtime.replay import read_rows, replay
from trainer.runtime.sharding import local_shards
from trainer.runtime.training_loss import TrainingLoss


def settings(run_dir: Path, on_non_finite: str, optimizer: str = "rowwise_adagrad") -> TrainConfig:
    result = config(optimizer=optimizer)
    result.model.id_dropout = 0.0
    result.run.dir, result.run.on_non_finite = str(run_dir), on_non_finite
    return result


def reader(folder: Path, rank: int = 0, world_size: int = 1) -> TrainingReader:
    chosen = config()
    assembler = BatchAssembler(SCHEMA, features_of(chosen), Catalog(folder, SCHEMA), chosen.model)
    files = open_events(folder, SCHEMA, "train", columns=assembler.columns("event"))
    return TrainingReader(files, "event", assembler, TrainingOrder(files.sizes, BATCH, STREAMS, 0), rank, world_size)


def with_bad_user(processes: Processes, chosen: TrainConfig, user: int) -> DistributedModelParallel:
    """What a bit that flips in memory can make of a model."""
    model = sharded_model(processes, chosen)
    for table, rows, (first, _), _ in local_shards(model):
        if table == "user_id" and first <= user < first + len(rows):
            rows[user - first, 2] = torch.nan
    return model


@pytest.fixture(scope="module")
def place(prepared: Path) -> tuple[int, int, int]:
    """A user, and the first step and the rank of two at which it trains: not the first step, and one rank alone."""
    trained_by: dict[int, list[tuple[int, int]]] = {}
    for step in range(20):
        for rank in range(2):
            for user in set(reader(prepared, rank, 2).rows(step)["user_id"].to_pylist()):
                trained_by.setdefault(user, []).append((step, rank))
    return next(
        (user, *places[0])
        for user, places in sorted(trained_by.items())
        if user and 0 < places[0][0] < places[1][0] - 1
    )


def train(processes: Processes, folder: Path, chosen: TrainConfig, user: int, steps: int) -> dict[str, Tensor]:
    model, _ = trained(processes, chosen, folder, steps, model=with_bad_user(processes, chosen, user))
    return whole_tables(model)


def end(processes: Processes, folder: Path, chosen: TrainConfig, user: int, steps: int) -> str:
    with pytest.raises(UserError) as error:
        train(processes, folder, chosen, user, steps)
    return str(error.value)


def test_such_a_step_is_left_out_on_all_ranks_and_its_rows_are_written(
    ranks: RankPool, prepared: Path, tmp_path: Path, place: tuple[int, int, int]
) -> None:
    user, step, rank = place
    before, after, later = (
        ranks.run(2, train, prepared, settings(tmp_path, "leave_out"), user, step + more)[0] for more in (0, 1, 2)
    )
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True)
        assert not torch.equal(later[name].nan_to_num(), value.nan_to_num())
        assert later[name].isnan().sum() == ("user_id" in name)  # the one that was there
    (path,) = (tmp_path / "non_finite").iterdir()
    assert path.name == f"step-{step:09d}-rank-{rank}.parquet"
    expected = reader(prepared, rank, 2).rows(step)
    assert pq.read_table(path).equals(expected.filter(pc.field("user_id") == user))


def test_or_the_run_ends_and_tells_where(
    ranks: RankPool, prepared: Path, tmp_path: Path, place: tuple[int, int, int]
) -> None:
    user, step, rank = place
    told = ranks.run(2, end, prepared, settings(tmp_path, "stop"), user, step + 1)
    assert told[0] == told[1]
    for part in (f"training=step {step}", f"not finite on ranks [{rank}]", f"step-{step:09d}-rank-", "leave_out"):
        assert part in told[0]
    rows = tmp_path / "non_finite" / f"step-{step:09d}-rank-{rank}.parquet"
    for world_size in (1, 2):
        told = ranks.run(world_size, replay_with_bad_user, prepared, tmp_path / f"run{world_size}", rows, user)
        assert all(lines[0] == f"table user_id itself: row {user}" for lines in told)
        assert [line.partition(":")[0] for line in told[0][1:]][:3] == [
            "lookup of user_id", "output of query_tower.mlp.0", "output of query_tower.mlp.1"
        ]  # fmt: skip
        assert any(line.startswith("loss: ") for line in told[0]) and told[0] == told[-1]


def replay_with_bad_user(processes: Processes, folder: Path, run_dir: Path, rows: Path, user: int) -> list[str]:
    """From what a run leaves behind."""
    chosen = settings(run_dir, "stop")
    chosen.data.dir = str(folder)
    if processes.is_first:
        run_directory.claim(chosen, SCHEMA, TrainingOrder((BATCH,), BATCH, STREAMS, 0))
    loss = TrainingLoss(chosen.model.loss, ITEMS, processes).state_dict()
    write_checkpoint(
        with_bad_user(processes, chosen, user), run_dir / "checkpoints" / checkpoint.name(3), {"loss": loss}
    )
    run = open_run(CheckpointConfig(dir=str(run_dir), checkpoint="last"))
    model = load_model(run, BATCH, processes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.runtime.replay._ROWS_AT_ONCE", 3)
        return replay(run, model, read_rows(run, str(rows)), processes)


def test_a_file_that_holds_no_rows_is_named(prepared: Path, tmp_path: Path) -> None:
    assembler = BatchAssembler(SCHEMA, features_of(config()), Catalog(prepared, SCHEMA), config().model)
    run = SimpleNamespace(assembler=assembler, config=config())
    with pytest.raises(UserError, match="replay.rows=.*missing.parquet: expected a file of RUN/non_finite"):
        read_rows(run, str(tmp_path / "missing.parquet"))
    pq.write_table(reader(prepared).rows(0).slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(UserError, match="at least one row"):
        read_rows(run, str(tmp_path / "empty.parquet"))


def test_a_model_that_has_diverged_does_not_leave_out_all_the_rest(
    ranks: RankPool, prepared: Path, tmp_path: Path
) -> None:
    chosen = settings(tmp_path, "leave_out", optimizer="sgd")
    chosen.optimizer.embedding_learning_rate, chosen.model.normalize = 1e30, False
    told = ranks.run(1, end, prepared, chosen, 0, 60)[0]
    assert f"{IN_A_ROW} steps in a row" in told
    assert len(list((tmp_path / "non_finite").iterdir())) > IN_A_ROW


def test_offending_rows_by_embedding_then_by_gradient_then_all(prepared: Path) -> None:
    batch = next(islice(reader(prepared).batches(0), 1))
    query, item = torch.ones(BATCH, 8), torch.ones(len(batch.item_row), 8)
    query[5, 3], item[batch.positive[9], 0] = torch.nan, torch.inf
    sharing = (batch.positive == batch.positive[9]).nonzero().flatten().tolist()
    assert offending_rows(batch, query, item).nonzero().flatten().tolist() == sorted({5, *sharing})
    query, item = (torch.ones_like(value, requires_grad=True) for value in (query, item))
    assert offending_rows(batch, query, item).all()
    query.grad, item.grad = torch.zeros_like(query), torch.zeros_like(item)
    query.grad[7] = torch.nan
    assert offending_rows(batch, query, item).nonzero().flatten().tolist() == [7]
