"""What a run may start from, and what is said where it may not."""

from dataclasses import replace

import pytest
import torch

from tests.prepared import SCHEMA
from tests.training import config
from trainer.config import StartConfig, TrainConfig
from trainer.data.schema import Feature, Schema
from trainer.errors import UserError
from trainer.model.two_tower import make_model
from trainer.runtime.differences import Trained, refuse_unasked


def trained(config: TrainConfig, schema: Schema = SCHEMA) -> Trained:
    features = schema.select(config.model.query.features, config.model.candidate.features)
    with torch.device("meta"):
        return Trained(config, schema, features, make_model(schema, features, config))


def feature(name: str, **changes: object) -> Schema:
    """The data with a feature changed, in a folder that extends the first."""
    features = tuple(replace(one, **changes) if one.name == name else one for one in SCHEMA.features)
    return replace(SCHEMA, features=features, fingerprint="later", extends=("first", SCHEMA.fingerprint))


def grown(rows: int = 50, **changes: object) -> Schema:
    later = feature("item_id", num_embeddings=rows)
    features = tuple(replace(f, num_embeddings=rows) if f.name == "history" else f for f in later.features)
    return replace(later, features=features, **changes)


def refusal(now: Trained, *changes: str, state: str = "all", before: Trained | None = None) -> str:
    start = StartConfig("RUN/checkpoints/step-9", state, list(changes))
    try:
        refuse_unasked(before or trained(config()), now, start)
    except UserError as error:
        return str(error)
    return ""


def changed(**fields: object) -> TrainConfig:
    """Fields by their path, with __ for a dot."""
    result = config()
    for path, value in fields.items():
        *parents, name = path.split("__")
        place = result
        for parent in parents:
            place = getattr(place, parent)
        assert getattr(place, name) != value
        setattr(place, name, value)
    return result


def test_the_same_model_starts_whatever_the_run_does() -> None:
    other = changed(data__dir="elsewhere", data__streams=3, run__dir="new", run__epochs=99, run__seed=7,
                    sharding__ids="table_wise", optimizer__schedule="cosine", optimizer__warmup_steps=0)  # fmt: skip
    assert refusal(trained(other)) == ""
    assert refusal(trained(config(), replace(SCHEMA, num_items=99, fingerprint="later", extends=("by hand",)))) == ""


def test_all_that_is_unasked_is_listed_with_what_would_allow_it() -> None:
    other = changed(optimizer__embedding="sgd", model__id_dropout=0.3, model__loss__temperature=0.5)
    other.model.query.features = ["user_id", "history"]
    other.model.candidate.features = [*other.model.candidate.features, "words"]
    now = trained(other, grown())
    told = refusal(now)
    for part in (
        "start.checkpoint=RUN/checkpoints/step-9: expected a checkpoint of this very model, but ",
        "feature age is gone (features)",
        "feature hour is gone (features)",
        "feature words is new (features)",
        "table item_id: rows were 41, are 50 (vocabulary)",
        "optimizer.embedding was rowwise_adagrad, is sgd (optimizer)",
        "model.id_dropout was 0.1, is 0.3 (settings)",
        "model.loss.temperature was 0.2, is 0.5 (settings)",
        "or set start.changes=[features,optimizer,settings,vocabulary].",
    ):
        assert part in told
    some = refusal(now, "features", "settings")
    assert "feature" not in some.partition("Remedy")[0]
    assert "rows were 41" in some and "optimizer.embedding was" in some and "id_dropout" not in some
    assert "start.changes=[features,optimizer,settings,vocabulary]" in some
    assert refusal(now, "features", "settings", "optimizer", "vocabulary") == ""
    alone = refusal(now, "features", "vocabulary", state="weights")
    assert "model.id_dropout was 0.1, is 0.3 (settings)" in alone
    assert "optimizer" not in alone and "temperature" not in alone


ALL = ("vocabulary", "features", "optimizer", "settings")


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (trained(changed(model__query__hidden=[32])), "model.query.hidden was [16], is [32]"),
        (trained(changed(model__candidate__hidden=None, model__candidate__features=["item_id"])),
         "model.candidate.hidden was [16], is None"),
        (trained(changed(model__embedding_dim=16)), "table item_id: width was 8, is 16"),
        (trained(changed(model__categorical_dim=8)), "table genres: width was 4, is 8"),
        (trained(changed(model__candidate__cross_layers=2)), "model.candidate.cross_layers was 0, is 2"),
        (trained(changed(model__history__encoder="attention")), "model.history.encoder was mean, is attention"),
        (trained(changed(model__loss__learn_temperature=True)), "model.loss.learn_temperature was False, is True"),
        (trained(config(), grown(30)), "table item_id: rows were 41, are 30"),
        (trained(config(), grown(extends=("another",))),
         "table item_id: the data does not continue its vocabulary by data.extends"),
        (trained(config(), replace(SCHEMA, fingerprint="later")), "table user_id: the data does not continue"),
        (trained(config(), feature("genres", since=2)), "table genres: the data does not continue its vocabulary"),
        (trained(config(), feature("price", mean=3.0)), "feature price: mean was 1.0, is 3.0"),
        (trained(config(), feature("text", dim=5)), "feature text: dim was 4, is 5"),
        (trained(config(), feature("genres", hashed=True, num_embeddings=9)),
         "table genres: rows were 6, are 9, and ids are hashed to them"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_over_is_refused_whatever_is_asked(now: Trained, message: str) -> None:
    for state in ("all", "weights"):
        told = refusal(now, *ALL, state=state)
        assert message in told and "(cannot be carried over)" in told
        assert "Remedy: take back what cannot be carried over, or train anew with start.checkpoint=null" in told


def test_a_feature_whose_vocabulary_is_as_old_as_the_run_goes_on() -> None:
    assert refusal(trained(config(), feature("genres", since=1))) == ""


def test_rows_of_hashed_ids_need_no_common_vocabulary() -> None:
    features = tuple(replace(f, hashed=True) if f.table else f for f in SCHEMA.features)
    before = trained(config(), replace(SCHEMA, features=features))
    assert refusal(trained(config(), replace(before.schema, fingerprint="other")), before=before) == ""
    strings = replace(before.schema, fingerprint="other", user_id_type="string")
    assert "ids are hashed to them" in refusal(trained(config(), strings), *ALL, before=before)


def test_a_sum_takes_no_new_feature_of_a_trained_table() -> None:
    def of(names: list[str]) -> Trained:
        other = changed(model__candidate__combine="sum", model__categorical_dim=8)
        other.model.candidate.features = names
        return trained(other)

    before = of(["item_id", "genres"])
    assert refusal(of(["item_id", "genres", "words"]), "features", before=before) == ""
    told = refusal(of(["item_id", "genres", "audience"]), "features", before=before)
    assert "feature audience has a place in the sum of model.candidate at once, of the trained table user_id" in told


def test_inputs_that_no_layer_weighs_stay_as_they_are() -> None:
    def of(names: list[str]) -> Trained:
        fields = {"hidden": None, "features": names}
        return trained(changed(model__embedding_dim=12, **{f"model__candidate__{k}": v for k, v in fields.items()}))

    schema = replace(SCHEMA, features=(*SCHEMA.features, Feature("brand", "candidate", "vector", dim=4)))
    before = of(["item_id"])
    assert refusal(of(["item_id"]), "features", before=before) == ""
    other = changed(model__candidate__hidden=None, model__candidate__features=["words", "text", "brand"],
                    model__embedding_dim=12)  # fmt: skip
    told = refusal(trained(other, schema), "features", before=before)
    assert "model.candidate.hidden=null has no layer that could weigh the inputs ['words', 'text', 'brand']" in told


def test_a_history_with_more_positions_is_refused() -> None:
    def of(length: int) -> Trained:
        later = feature("history", length=length)
        return trained(changed(model__history__encoder="attention"), replace(later, fingerprint=SCHEMA.fingerprint))

    told = refusal(of(9), *ALL, before=of(6))
    assert "encoder.input.position.weight [6, 8], are encoder.input.position.weight [9, 8]" in told
