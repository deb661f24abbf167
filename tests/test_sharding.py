from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.prepared import FEATURES, ITEMS, USERS
from tests.ranks import RankPool
from tests.training import config, sharded_model, trained, whole_tables
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.model.two_tower import TwoTower
from trainer.runtime.initialization import initialize_rows
from trainer.runtime.placement import check_tables
from trainer.runtime.processes import Processes
from trainer.runtime.sharding import sharded_rows

STEPS = 6


def after_steps(processes: Processes, train: TrainConfig, folder: Path) -> tuple[dict[str, Tensor], list[float], Any]:
    model, losses = trained(processes, train, folder, STEPS)
    return whole_tables(model), losses, sharded_rows(model)


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])
@pytest.mark.parametrize(("sharding", "world_size"), [
    ("row_wise", 2), ("table_wise", 2), ("row_wise", 3), ("row_wise, lists table_wise", 2),
])  # fmt: skip
def test_two_ranks_equal_one(ranks: RankPool, prepared: Path, sharding: str, optimizer: str, world_size: int) -> None:
    """Parameters after six steps of the same global batch agree to 2e-5, whatever the sharding.

    The tolerance covers sums taken in another order; the steps themselves move every id table by more than 0.1.
    """
    train = config(sharding.split(",")[0], optimizer)
    if "lists" in sharding:
        train.sharding.tables = {"genres": "table_wise"}
    ((alone, alone_losses, _),) = ranks.run(1, after_steps, train, prepared)
    several = ranks.run(world_size, after_steps, train, prepared)
    assert several[0][1] == pytest.approx(alone_losses, abs=2e-5)
    for name, value in alone.items():
        torch.testing.assert_close(several[0][0][name], value, atol=2e-5, rtol=0)
    (start,) = ranks.run(1, at_start, train)
    for table in ("user_id", "item_id"):
        name = f"embeddings.embedding_bags.{table}.weight"
        assert float((start[name] - alone[name]).abs().max()) > 0.1


def at_start(processes: Processes, train: TrainConfig) -> dict[str, Tensor]:
    return whole_tables(sharded_model(processes, train))


def test_row_wise_tables_are_really_split(ranks: RankPool, prepared: Path) -> None:
    held = [rows for _, _, rows in ranks.run(2, after_steps, config("row_wise"), prepared)]
    for table, rows in (("user_id", USERS + 1), ("item_id", ITEMS + 1)):
        by_rank = [rank[table][0] for rank in held]
        assert sum(by_rank) == rows and max(by_rank) < rows


def test_first_rows_do_not_depend_on_the_shards(ranks: RankPool) -> None:
    starts = [ranks.run(size, at_start, config(sharding)) [0] for size, sharding in
              ((1, "row_wise"), (2, "row_wise"), (3, "row_wise"), (2, "table_wise"))]  # fmt: skip
    for other in starts[1:]:
        assert all(torch.equal(other[name], value) for name, value in starts[0].items())
    users = starts[0]["embeddings.embedding_bags.user_id.weight"]
    assert torch.all(users[0] == 0) and 0.04 < float(users[1:].std()) < 0.06


def test_initialize_rows_of_a_part_are_those_of_the_whole() -> None:
    whole, part = torch.empty(10_000, 6), torch.empty(5_000, 2)
    initialize_rows(whole, "t", row=0, column=0, width=6, std=1.0, seed=4)
    initialize_rows(part, "t", row=3_000, column=2, width=6, std=1.0, seed=4)
    assert torch.equal(part, whole[3_000:8_000, 2:4])


def test_an_unknown_table_in_the_sharding_is_named() -> None:
    train = config()
    train.sharding.tables = {"items": "row_wise"}
    with pytest.raises(UserError, match=r"sharding.tables=items: expected one of the tables \['user_id'"):
        check_tables(train.sharding, TwoTower(FEATURES, train.model))


def looked_up(processes: Processes, types: dict[str, str], lists: list[list[int]]) -> Tensor:
    """What the model looks up of each list of genres."""
    train = config()
    train.sharding.tables = types
    model = sharded_model(processes, train)
    lengths = [len(one) if name == "genres" else 0 for name in ORDER for one in lists]
    values = torch.tensor([value for one in lists for value in one])
    features = KeyedJaggedTensor(ORDER, values, lengths=torch.tensor(lengths, dtype=torch.int32))
    batch = SimpleNamespace(sparse_features=features, item_dense=(), query_dense=None)
    return model.module.look_up(batch)["genres"].detach()


ORDER = ["user_id", "hour", "history", "item_id", "genres"]


@pytest.mark.parametrize("others", ["row_wise", "table_wise"])
@pytest.mark.parametrize("own", ["row_wise", "table_wise"])
def test_a_list_is_averaged_however_tables_are_sharded(ranks: RankPool, own: str, others: str) -> None:
    lists = [[1], [1, 2, 3], [], [4, 4, 5, 2]]
    types = {"user_id": others, "item_id": others, "genres": own, "hour": "table_wise"}
    (start,) = ranks.run(1, at_start, config())
    table = start["embeddings.embedding_bags.genres.weight"]
    expected = torch.stack([table[one].mean(0) if one else torch.zeros(table.shape[1]) for one in lists])
    for found in ranks.run(2, looked_up, types, lists):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
