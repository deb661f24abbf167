from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from tests.prepared import AUDIENCE, FEATURES, SCHEMA
from trainer.config import HistoryConfig, ModelConfig, TowerConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.batch import RetrievalBatch
from trainer.data.catalog import Catalog
from trainer.data.schema import Feature
from trainer.errors import UserError
from trainer.model.tower import Standardize, Tower
from trainer.model.two_tower import TwoTower


def batch_of(folder: Path, features: tuple[Feature, ...], rows: int = 50) -> RetrievalBatch:
    events = pq.read_table(folder / "events" / "train" / "part-00000.parquet").slice(0, rows)
    assembler = BatchAssembler(SCHEMA, features, Catalog(folder, SCHEMA), ModelConfig(id_dropout=0.0))
    return assembler.training_batch(events, "event", step=0)


def on_cpu(model: TwoTower) -> TwoTower:
    """The plain model with real tables, as no shard would ever hold them."""
    model.embeddings.to_empty(device="cpu")
    for table in model.embeddings.embedding_bags.values():
        torch.nn.init.normal_(table.weight)
    return model


def test_matrix_factorization_is_the_dot_product_of_two_rows(prepared: Path) -> None:
    features = SCHEMA.select(["user_id"], ["item_id"])
    ids_only = TowerConfig(hidden=None)
    model = on_cpu(
        TwoTower(features, ModelConfig(embedding_dim=8, query=ids_only, candidate=ids_only, normalize=False))
    )
    batch = batch_of(prepared, features)
    query, candidate = model(batch)
    users, items = (model.embeddings.embedding_bags[name].weight for name in ("user_id", "item_id"))
    user, item = (batch.sparse_features[name].values() for name in ("user_id", "item_id"))
    assert torch.equal(query @ candidate.T, users[user] @ items[item].T)
    assert torch.equal(candidate[batch.positive], items[item[batch.positive]])


def test_both_towers_against_their_formula(prepared: Path) -> None:
    config = ModelConfig(
        embedding_dim=8, categorical_dim=4, query=TowerConfig(hidden=[5]), candidate=TowerConfig(hidden=[])
    )
    model = on_cpu(TwoTower(FEATURES, config))
    batch = batch_of(prepared, FEATURES)
    query, candidate = model(batch)
    weight = {name: table.weight for name, table in model.embeddings.embedding_bags.items()}
    for row in range(len(query)):
        values = {name: jagged.to_dense()[row] for name, jagged in batch.sparse_features.to_dict().items()}
        history = weight["item_id"][values["history"]]
        age = (batch.query_dense[row] - 40) / 10
        user = torch.cat(
            [
                weight["user_id"][values["user_id"][0]],
                weight["hour"][values["hour"][0]],
                history.mean(0) if len(history) else torch.zeros(8),
                torch.zeros(1) if age.isnan() else age,
            ]
        )
        expected = F.normalize(model.query_tower.mlp(user), dim=0)
        torch.testing.assert_close(query[row], expected)

        own = batch.positive[row]
        of_item = {name: jagged.to_dense()[own] for name, jagged in batch.sparse_features.to_dict().items()}
        genres = weight["genres"][of_item["genres"]]
        price, text = batch.item_dense[own, :1], batch.item_dense[own, 1:]
        item = torch.cat(
            [
                weight["item_id"][of_item["item_id"][0]],
                genres.mean(0) if len(genres) else torch.zeros(4),
                (torch.log1p(price) - 1) / 0.5,
                text,
            ]
        )
        torch.testing.assert_close(candidate[own], F.normalize(model.candidate_tower.mlp(item), dim=0))


def test_an_audience_is_the_mean_of_its_users_in_their_own_table(prepared: Path) -> None:
    features = SCHEMA.select(["user_id"], ["item_id", "audience"])
    summed = TowerConfig(combine="sum", hidden=None)
    model = on_cpu(TwoTower(features, ModelConfig(embedding_dim=8, query=summed, candidate=summed, normalize=False)))
    assert model.id_tables == {"user_id", "item_id"}
    batch = batch_of(prepared, features)
    _, item_UD = model(batch)
    users, items = (model.embeddings.embedding_bags[name].weight for name in ("user_id", "item_id"))
    catalog = Catalog(prepared, SCHEMA)
    lists = catalog.sparse(AUDIENCE, batch.item_row.numpy())
    own = catalog.sparse(SCHEMA.item_id, batch.item_row.numpy()).values
    for number, audience in enumerate(np.split(lists.values, lists.offsets[1:-1])):
        mean = users[audience].mean(0) if len(audience) else torch.zeros(8)
        torch.testing.assert_close(item_UD[number], items[own[number]] + mean)


def test_history_and_candidate_share_one_table() -> None:
    model = TwoTower(FEATURES, ModelConfig())
    tables = {table.name: table.feature_names for table in model.embeddings.embedding_bag_configs()}
    assert tables["item_id"] == ["history", "item_id"]
    assert all(parameter.device.type == "meta" for parameter in model.embeddings.parameters())


def test_a_tower_that_has_no_input_does_not_run(prepared: Path) -> None:
    model = on_cpu(TwoTower(FEATURES, ModelConfig()))
    batch = BatchAssembler(SCHEMA, FEATURES, Catalog(prepared, SCHEMA), ModelConfig()).candidate_batch(np.arange(5))
    query, candidate = model(batch)
    assert query is None and candidate.shape == (5, 64)
    assert model(replace(batch_of(prepared, FEATURES), item_dense=None))[1] is None


def test_standardize_by_hand() -> None:
    columns = Standardize([Feature("a", "query", "numeric", mean=2.0, std=4.0),
                           Feature("b", "query", "numeric", log1p=True, mean=1.0, std=0.5),
                           Feature("c", "query", "vector", dim=2)])  # fmt: skip
    result = columns(torch.tensor([[6.0, np.e - 1, 7.0, 8.0], [torch.nan, torch.nan, 0.0, 1.0]]))
    torch.testing.assert_close(result, torch.tensor([[1.0, 0.0, 7.0, 8.0], [0.0, 0.0, 0.0, 1.0]]))


def test_a_tower_without_layers_wants_inputs_of_the_embedding_width() -> None:
    with pytest.raises(UserError, match=r"model.query.hidden=None: expected inputs of width 64.*not 80"):
        TwoTower(SCHEMA.select(["user_id", "hour"], None), ModelConfig(query=TowerConfig(hidden=None)))


def test_a_tower_without_features_is_refused() -> None:
    with pytest.raises(UserError, match=r"model.query.features=\[\]"):
        Tower("query", [], {}, TowerConfig(features=[]), 8, True)


def test_features_that_share_a_table_must_agree_on_its_size() -> None:
    smaller = tuple(replace(f, num_embeddings=9) if f.name == "history" else f for f in FEATURES)
    with pytest.raises(UserError, match="num_embeddings of table item_id=.*'history': 9, 'item_id': 41"):
        TwoTower(smaller, ModelConfig())


def test_a_width_for_a_table_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="model.table_dims=itm_id: expected one of the tables"):
        TwoTower(FEATURES, ModelConfig(table_dims={"itm_id": 32}))


def test_a_model_without_any_looked_up_feature_is_refused() -> None:
    with pytest.raises(UserError, match="expected an id or a categorical in either tower"):
        TwoTower(SCHEMA.select(["age"], ["price"]), ModelConfig())


def test_an_unknown_feature_is_named_beside_those_there_are() -> None:
    with pytest.raises(UserError, match=r"model.query.features=.*'hour', 'history'\].*leave country out"):
        SCHEMA.select(["user_id", "country"], None)


def test_an_encoder_wants_a_history_no_longer_than_what_is_trained() -> None:
    config = ModelConfig(history=HistoryConfig(encoder="transformer"))
    with pytest.raises(UserError, match=r"encoder=transformer: expected a history among the query's \['user_id'\]"):
        TwoTower(SCHEMA.select(["user_id"], None), config)
    with pytest.raises(UserError, match="rows with the 6 events of a history, not 5.*data.sequence_length=7"):
        TwoTower(FEATURES, config, max_events=5)


def test_towers_that_cannot_be_built_say_why() -> None:
    for tower, message in (
        (TowerConfig(combine="sum", hidden=None), r"query.combine=sum of widths \{'hour': 16\}.*categorical_dim=64"),
        (TowerConfig(hidden=[8, 4], residual=True), r"query.hidden=\[8, 4\]: expected equal widths"),
    ):
        with pytest.raises(UserError, match=message):
            TwoTower(FEATURES, ModelConfig(query=tower))


def test_cross_layers_against_their_formula() -> None:
    """DCN-v2: what enters, times a linear layer of what has come so far, added to that."""
    features = SCHEMA.select(["user_id", "age"], None)[:2]
    tower = Tower("query", features, {"user_id": 3}, TowerConfig(cross_layers=2, hidden=None), 4, False)
    user, age = torch.randn(5, 3), torch.randn(5, 1)
    start = torch.cat([user, (age - 40) / 10], dim=1)
    once = start * (start @ tower.cross[0].weight.T + tower.cross[0].bias) + start
    expected = start * (once @ tower.cross[1].weight.T + tower.cross[1].bias) + once
    torch.testing.assert_close(tower({"user_id": user}, age), expected)


def test_a_sum_of_features_is_a_sum() -> None:
    features = SCHEMA.select(["user_id", "age"], None)[:2]
    tower = Tower("query", features, {"user_id": 4}, TowerConfig(combine="sum", hidden=None), 4, False)
    user, age = torch.randn(5, 4), torch.tensor([[30.0], [50.0], [40.0], [torch.nan], [70.0]])
    scaled = torch.tensor([[-1.0], [1.0], [0.0], [0.0], [3.0]])
    expected = user + scaled @ tower.dense_term.weight.T + tower.dense_term.bias
    torch.testing.assert_close(tower({"user_id": user}, age), expected)


def test_residual_layers_with_norms_against_their_formula() -> None:
    features = SCHEMA.select(["user_id"], None)[:1]
    config = TowerConfig(hidden=[6, 6], residual=True, layer_norm=True)
    tower = Tower("query", features, {"user_id": 3}, config, 4, True)
    first, first_norm, _, block, last = tower.mlp
    user = torch.randn(5, 3)
    hidden = F.relu(F.layer_norm(user @ first.weight.T + first.bias, (6,), first_norm.weight, first_norm.bias))
    second, norm = block[0], block[1]
    hidden = hidden + F.relu(F.layer_norm(hidden @ second.weight.T + second.bias, (6,), norm.weight, norm.bias))
    expected = F.normalize(hidden @ last.weight.T + last.bias, dim=1)
    torch.testing.assert_close(tower({"user_id": user}, torch.empty(5, 0)), expected)
