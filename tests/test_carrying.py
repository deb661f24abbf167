"""Layers of a model whose features came or went, against the scores of the model they come from."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.prepared import SCHEMA
from trainer.config import LossConfig, ModelConfig, TowerConfig, TrainConfig
from trainer.model.carrying import carried
from trainer.model.tower import Tower
from trainer.model.two_tower import TwoTower, dense_parameters, make_model

FEW, MORE = ["price", "item_id", "genres"], ["genres", "words", "item_id", "text", "price"]
TOWERS = {
    "hidden": TowerConfig(hidden=[16]),
    "one layer": TowerConfig(hidden=[]),
    "deep": TowerConfig(hidden=[16, 16], residual=True, layer_norm=True),
    "crossed": TowerConfig(hidden=[16], cross_layers=2),
    "sum": TowerConfig(combine="sum", hidden=[16], cross_layers=1),
    "bare sum": TowerConfig(combine="sum", hidden=None),
}


def model(tower: TowerConfig, names: Sequence[str], seed: int) -> TwoTower:
    torch.manual_seed(seed)
    chosen = replace(tower, features=list(names))
    loss = LossConfig(learn_temperature=True)
    config = TrainConfig(model=ModelConfig(embedding_dim=8, categorical_dim=8, candidate=chosen, loss=loss))
    result = make_model(SCHEMA, SCHEMA.select(config.model.query.features, chosen.features), config).eval()
    for parameter in dense_parameters(result).values():  # a norm's weights too say something of their own
        torch.nn.init.normal_(parameter)
    return result


def fill(before: TwoTower, now: TwoTower) -> None:
    old, new, how = dense_parameters(before), dense_parameters(now), carried(before, now)
    for name, parameter in new.items():
        if name in how:
            how[name].fill(parameter, old[how[name].name])
        else:
            torch.nn.init.zeros_(parameter)


def inputs(names: Sequence[str]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    widths = {"item_id": 8, "genres": 8, "words": 8, "price": 1, "text": 4}
    values = {name: torch.rand(5, width, generator=generator) for name, width in widths.items()}
    return {name: values[name] for name in names}


def embed(tower: Tower, values: dict[str, Tensor]) -> Tensor:
    dense = [values[name] for name in tower.widths if name not in tower.sparse_names]
    return tower(values, torch.cat(dense, dim=1) if dense else torch.zeros(5, 0))


@pytest.mark.parametrize("name", TOWERS)
def test_new_features_leave_the_scores_as_they_were_and_then_learn(name: str) -> None:
    before, now = model(TOWERS[name], FEW, seed=1), model(TOWERS[name], MORE, seed=2)
    fill(before, now)
    values = inputs(MORE)
    if TOWERS[name].combine == "sum":  # a new table of a sum begins at zero
        values["words"] = torch.zeros(5, 8)
    expected = embed(before.candidate_tower, values)
    found = embed(now.candidate_tower, values)
    torch.testing.assert_close(found, expected)
    values["text"].requires_grad_()
    (embed(now.candidate_tower, values)[:, 0].sum()).backward()
    first = now.candidate_tower.dense_term or (now.candidate_tower.cross or now.candidate_tower.mlp)[0]
    assert (first.weight.grad != 0).any(0).all(), "a column that nothing trains"
    assert torch.equal(now.query_tower.mlp[0].weight, before.query_tower.mlp[0].weight)
    assert torch.equal(now.temperature.place, before.temperature.place)


@pytest.mark.parametrize("name", TOWERS)
def test_without_a_feature_it_scores_as_where_that_says_nothing(name: str) -> None:
    before, now = model(TOWERS[name], MORE, seed=1), model(TOWERS[name], FEW, seed=2)
    fill(before, now)
    silent = inputs(MORE)
    silent["words"], silent["text"] = torch.zeros(5, 8), torch.zeros(5, 4)
    torch.testing.assert_close(embed(now.candidate_tower, silent), embed(before.candidate_tower, silent))


def test_a_sum_gets_its_first_dense_feature() -> None:
    before, now = model(TOWERS["sum"], ["item_id"], seed=1), model(TOWERS["sum"], ["item_id", "price"], seed=2)
    fill(before, now)
    values = inputs(["item_id", "price"])
    torch.testing.assert_close(embed(now.candidate_tower, values), embed(before.candidate_tower, values))


def test_dropout_numbers_the_layers_anew() -> None:
    tower = TowerConfig(hidden=[16, 16, 16])
    before, now = model(tower, MORE, seed=1), model(replace(tower, dropout=0.5), MORE, seed=2)
    assert dense_parameters(before).keys() != dense_parameters(now).keys()
    fill(before, now)
    values = inputs(MORE)
    assert torch.equal(embed(now.candidate_tower, values), embed(before.candidate_tower, values))


def test_moments_of_new_columns_are_zero() -> None:
    before, now = model(TOWERS["crossed"], FEW, seed=1), model(TOWERS["crossed"], MORE, seed=2)
    name = "candidate_tower.cross.0.weight"
    moment, of_before = torch.zeros(29, 29), torch.rand(17, 17)
    carried(before, now)[name].fill(moment, of_before)
    # price, item_id, genres stood at 16, 0 to 7 and 8 to 15; they stand at 28, 16 to 23 and 0 to 7
    places = [*range(16, 24), *range(8), 28]
    assert torch.equal(moment[places][:, places], of_before)
    assert moment.count_nonzero() == of_before.count_nonzero()
