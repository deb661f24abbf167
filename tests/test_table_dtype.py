"""Tables of float16: what their kernels do to them, and that all else takes them as it takes those of float32."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.ranks import RankPool
from tests.training import config, sharded_model, trained, whole_tables, write_checkpoint
from trainer.config import TrainConfig
from trainer.runtime import checkpoint, saved_model
from trainer.runtime.processes import Processes
from trainer.runtime.saved_table import SavedTable

TABLES = {f"embeddings.embedding_bags.{name}.weight": name for name in ("user_id", "item_id", "hour", "genres")}
STEPS = 6


def half(sharding: str = "row_wise") -> TrainConfig:
    train = config(sharding)
    train.model.table_dtype = "float16"
    return train


def tables_of(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those at hand: only the first rank gets them whole."""
    return {name: parameters[long] for long, name in TABLES.items() if long in parameters}


def after_a_step(processes: Processes, folder: Path, path: Path) -> tuple[dict[str, Tensor], ...]:
    """Of the same first rows, as float16 and as float32; and these rows."""
    model = sharded_model(processes, half())
    write_checkpoint(model, path)
    first = whole_tables(model)
    found = whole_tables(trained(processes, half(), folder, 1, model=model)[0])
    exact = sharded_model(processes, config())
    saved_model.load(exact, path)
    expected = whole_tables(trained(processes, config(), folder, 1, model=exact)[0])
    return tuple(tables_of(each) for each in (found, expected, first))


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_row_is_rounded_to_the_nearest_after_its_update(
    ranks: RankPool, prepared: Path, tmp_path: Path, world_size: int
) -> None:
    found, expected, first = ranks.run(world_size, after_a_step, prepared, tmp_path / "step-0")[0]
    for name, rows in found.items():
        assert rows.dtype == torch.float16 and expected[name].dtype == torch.float32
        assert torch.equal(rows, expected[name].half()), name
        assert not torch.equal(rows, first[name])


def after_steps(processes: Processes, train: TrainConfig, folder: Path) -> tuple[dict[str, Tensor], list[float]]:
    model, losses = trained(processes, train, folder, STEPS)
    return tables_of(whole_tables(model)), losses


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise"])
def test_half_tables_learn_nearly_the_same(ranks: RankPool, prepared: Path, sharding: str) -> None:
    """To the precision that float16 has, 1/2048, step after step."""
    exact, losses = ranks.run(1, after_steps, config(sharding), prepared)[0]
    for world_size in (1, 2):
        rounded, rounded_losses = ranks.run(world_size, after_steps, half(sharding), prepared)[0]
        assert rounded_losses == pytest.approx(losses, rel=0.003) and rounded_losses != losses
        for name, rows in exact.items():
            assert (rounded[name].float() - rows).abs().mean() < 0.002, name


def saved_and_gone_on(processes: Processes, folder: Path, path: Path) -> tuple[dict[str, Tensor], ...]:
    model, _ = trained(processes, half(), folder, 5)
    write_checkpoint(model, path)
    saved = whole_tables(model)
    return saved, whole_tables(trained(processes, half(), folder, 3, start=5, model=model)[0])


def loaded_and_gone_on(processes: Processes, folder: Path, path: Path) -> tuple[dict[str, Tensor], ...]:
    model = sharded_model(processes, half(), seed=1)
    saved_model.load(model, path)
    loaded = whole_tables(model)
    return loaded, whole_tables(trained(processes, half(), folder, 3, start=5, model=model)[0])


def test_a_checkpoint_goes_on_with_other_ranks_and_bit_for_bit_with_as_many(
    ranks: RankPool, prepared: Path, tmp_path: Path
) -> None:
    path = tmp_path / checkpoint.name(5)
    saved, gone_on = ranks.run(2, saved_and_gone_on, prepared, path)[0]
    for world_size in (1, 2, 3):
        loaded, later = ranks.run(world_size, loaded_and_gone_on, prepared, path)[0]
        assert all(torch.equal(loaded[name], rows) for name, rows in saved.items())
        tolerance = 0 if world_size == 2 else 2e-3  # a number that lies between two of float16 may go to either
        for name, rows in gone_on.items():
            torch.testing.assert_close(later[name], rows, atol=tolerance, rtol=0)


def test_saved_tables_are_read_as_float32(ranks: RankPool, prepared: Path, tmp_path: Path) -> None:
    path = tmp_path / checkpoint.name(5)
    saved = tables_of(ranks.run(3, saved_and_gone_on, prepared, path)[0][0])
    for name, rows in saved.items():
        table, expected = SavedTable(path, name), rows.float()
        assert torch.equal(table.read(range(len(rows))), expected)
        row_R = torch.randint(len(rows), (200,))
        assert torch.equal(table.take(row_R), expected[row_R])
