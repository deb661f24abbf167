"""What can be switched in the model, the loss and the optimizers: each trains, and on two ranks as on one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from tests.commands import REPOSITORY
from tests.ranks import RankPool
from tests.training import config, trained, whole_tables
from trainer.checks import check_train_config
from trainer.config import CONFIG_DIR, HistoryConfig, TowerConfig, TrainConfig, register_configs, typed
from trainer.runtime.processes import Processes

STEPS = 6

register_configs()


def model(**changes: object) -> Callable[[TrainConfig], None]:
    def change(train: TrainConfig) -> None:
        train.model = replace(train.model, **changes)

    return change


def loss(**changes: object) -> Callable[[TrainConfig], None]:
    return lambda train: model(loss=replace(train.model.loss, **changes))(train)


def towers(**changes: object) -> Callable[[TrainConfig], None]:
    return lambda train: model(
        query=replace(train.model.query, **changes), candidate=replace(train.model.candidate, **changes)
    )(train)


def optimizer(**changes: object) -> Callable[[TrainConfig], None]:
    def change(train: TrainConfig) -> None:
        train.optimizer = replace(train.optimizer, **changes)

    return change


def sequences(history: HistoryConfig) -> Callable[[TrainConfig], None]:
    def change(train: TrainConfig) -> None:
        train.data.layout = "sequence"
        train.model = replace(train.model, history=history)

    return change


SWITCHES: dict[str, list[Callable[[TrainConfig], None]]] = {
    "streaming log q, uniform negatives": [loss(log_q="streaming", uniform_negatives=12, learn_temperature=True)],
    "streaming log q in few buckets": [loss(log_q="streaming", streaming_buckets=16)],
    "the whole catalogue": [loss(uniform_negatives=40, in_batch_negatives=False, log_q="none", sample_weights=True)],
    "known positives": [loss(remove_known_positives="user")],
    "accidental hits": [loss(remove_accidental_hits=False)],
    "item_mean of events": [model(history=HistoryConfig(encoder="item_mean"))],
    "interests": [model(history=HistoryConfig(encoder="attention", interests=3, dropout=0.0))],
    "attention over sequences": [sequences(HistoryConfig(encoder="attention", dropout=0.0))],
    "transformer over events": [model(history=HistoryConfig(encoder="transformer", dropout=0.0))],
    "transformer over sequences": [
        sequences(HistoryConfig(encoder="transformer", dropout=0.0)), loss(remove_known_positives="history"),
    ],
    "sets": [sequences(HistoryConfig(encoder="item_mean", sees="others")), loss(sample_weights=True)],
    "a sum": [model(categorical_dim=8), towers(combine="sum", hidden=None)],
    "crossed, residual, normed": [towers(cross_layers=2, hidden=[16, 16], residual=True, layer_norm=True)],
    "weighted lists, thinned": [
        lambda train: model(candidate=replace(train.model.candidate, features=["item_id", "words", "text"]))(train),
        model(list_dropout=0.3),
    ],
    "several positives a query": [
        sequences(HistoryConfig(encoder="item_mean", sees="all")),
        lambda train: model(query=replace(train.model.query, features=["user_id", "age", "history"]))(train),
        loss(remove_known_positives="history", sample_weights=True),
    ],
    "audiences": [
        sequences(HistoryConfig(encoder="item_mean", sees="others")),
        lambda train: model(
            query=TowerConfig(features=["user_id", "history"], combine="sum", hidden=None),
            candidate=TowerConfig(features=["item_id", "audience"], combine="sum", hidden=None), list_dropout=0.3,
        )(train),
    ],
    "schedule, decay": [
        optimizer(schedule="cosine", dense_weight_decay=0.1, embedding_weight_decay=0.01, warmup_steps=0),
    ],
}  # fmt: skip


def after_steps(processes: Processes, train: TrainConfig, folder: Path) -> tuple[dict[str, Tensor], list[float]]:
    sharded, losses = trained(processes, train, folder, STEPS)
    return whole_tables(sharded), losses


@pytest.mark.parametrize("name", SWITCHES)
def test_two_ranks_equal_one_with(ranks: RankPool, prepared: Path, name: str) -> None:
    train = config()
    for change in SWITCHES[name]:
        change(train)
    ((alone, alone_losses),) = ranks.run(1, after_steps, train, prepared)
    together, losses = ranks.run(2, after_steps, train, prepared)[0]
    assert losses == pytest.approx(alone_losses, abs=5e-5)
    assert alone_losses[-1] < alone_losses[0]
    for parameter, value in alone.items():
        torch.testing.assert_close(together[parameter], value, atol=1e-4, rtol=0)


def test_every_switch_changes_what_is_learned(ranks: RankPool, prepared: Path) -> None:
    """None of them is declared and then forgotten: the loss after a step is that of no other."""
    seen: dict[float, str] = {}
    for name in ("plain", *SWITCHES):
        train = config()
        for change in SWITCHES.get(name, []):
            change(train)
        last = ranks.run(1, after_steps, train, prepared)[0][1][-1]
        assert last not in seen, f"{name} and {seen.get(last)}"
        seen[last] = name


ROUNDED = ["plain", "interests", "transformer over sequences", "several positives a query", "crossed, residual, normed"]


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_matrix_products_learn_the_same(ranks: RankPool, prepared: Path, name: str) -> None:
    """To the precision that bfloat16 has, 1/256; on two ranks too."""
    train = config()
    for change in SWITCHES.get(name, []):
        change(train)
    exact = ranks.run(1, after_steps, train, prepared)[0][1]
    train.run.matrix_products = "bfloat16"
    for world_size in (1, 2):
        rounded = ranks.run(world_size, after_steps, train, prepared)[0][1]
        assert rounded == pytest.approx(exact, rel=0.01) and rounded != exact


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise"])
@pytest.mark.parametrize("name", ["plain", "interests", "weighted lists, thinned"])
def test_embeddings_exchanged_in_half_teach_the_same(ranks: RankPool, prepared: Path, name: str, sharding: str) -> None:
    """To the precision that float16 has, 1/2048, step after step; one rank exchanges nothing."""
    train = config(sharding)
    for change in SWITCHES.get(name, []):
        change(train)
    if name == "weighted lists, thinned" and sharding == "table_wise":
        train.sharding.tables = {"words": "table_wise"}
    exact, losses = ranks.run(2, after_steps, train, prepared)[0]
    alone = ranks.run(1, after_steps, train, prepared)[0][1]
    train.sharding.exchange = "float16"
    rounded, rounded_losses = ranks.run(2, after_steps, train, prepared)[0]
    assert rounded_losses == pytest.approx(losses, rel=0.003) and rounded_losses != losses
    for parameter, value in exact.items():
        assert (rounded[parameter] - value).abs().mean() < 0.002, parameter
    assert ranks.run(1, after_steps, train, prepared)[0][1] == alone


@pytest.mark.parametrize("name", sorted(path.stem for path in (REPOSITORY / "configs" / "model").glob("*.yaml")))
def test_each_model_that_comes_ready_made_trains_on_two_ranks(ranks: RankPool, prepared: Path, name: str) -> None:
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        composed = compose("train", ["data.dir=x", "run.dir=y", f"model={name}"])
    train = typed(composed, TrainConfig)
    check_train_config(train)
    train.optimizer.warmup_steps = 0
    losses = [loss for _, loss in ranks.run(2, after_steps, train, prepared)]
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]
