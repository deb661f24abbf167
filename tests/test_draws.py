"""What a step draws besides its rows: uniform negatives, hidden ids, thinned lists."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.prepared import ITEMS, SCHEMA, WORDS
from trainer.config import HistoryConfig, LossConfig, ModelConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.id_dropout import hidden_ids
from trainer.errors import UserError


def test_hidden_ids_are_a_function_of_seed_step_name_and_id_in_the_share_asked_for() -> None:
    ids = np.arange(20_000)
    hidden = hidden_ids(1, 2, "user_id", ids, 0.3)
    assert np.array_equal(hidden[5_000:], hidden_ids(1, 2, "user_id", ids[5_000:], 0.3))
    assert abs(hidden.mean() - 0.3) < 0.012  # four standard deviations
    for other in (hidden_ids(0, 2, "user_id", ids, 0.3), hidden_ids(1, 3, "user_id", ids, 0.3),
                  hidden_ids(1, 2, "item_id", ids, 0.3)):  # fmt: skip
        assert abs((hidden & other).mean() - 0.09) < 0.008  # independent
    assert not hidden_ids(1, 2, "user_id", ids, 0.0).any()


def test_ranks_share_the_uniform_draws_out(prepared: Path) -> None:
    assembler = BatchAssembler(
        SCHEMA, SCHEMA.features, Catalog(prepared, SCHEMA), ModelConfig(loss=LossConfig(uniform_negatives=13))
    )
    alone = assembler.uniform_rows(7, 0, 1)
    assert len(set(alone.tolist())) == 13 and alone.min() >= 0 and alone.max() < ITEMS
    together = [assembler.uniform_rows(7, rank, 3) for rank in range(3)]
    assert np.array_equal(np.concatenate(together), alone)
    assert not np.array_equal(assembler.uniform_rows(8, 0, 1), alone)


def test_draws_of_items_without_training_events_can_be_dropped(prepared: Path) -> None:
    catalog = Catalog(prepared, SCHEMA)
    counts = catalog.train_counts().copy()
    counts[::3] = 0
    catalog.train_counts = lambda: counts  # type: ignore[method-assign]
    loss = LossConfig(uniform_negatives=ITEMS, cold_negatives=False)
    assembler = BatchAssembler(SCHEMA, SCHEMA.features, catalog, ModelConfig(loss=loss))
    drawn = np.concatenate([assembler.uniform_rows(0, rank, 2) for rank in range(2)])
    assert drawn.tolist() == np.flatnonzero(counts).tolist()


def test_thinned_lists_keep_their_share_with_weights_that_make_up_for_the_rest(prepared: Path) -> None:
    catalog = Catalog(prepared, SCHEMA)
    plain, thinned = (
        BatchAssembler(SCHEMA, SCHEMA.features, catalog, ModelConfig(id_dropout=0.0, list_dropout=share))
        for share in (0.0, 0.5)
    )
    row = np.arange(ITEMS)
    whole = plain._column(WORDS, None, row, step=0)
    kept = total = 0
    for step in range(20):
        part = thinned._column(WORDS, None, row, step)
        kept, total = kept + len(part.values), total + len(whole.values)
        for item in row:
            values, weights = (list(getattr(part, name)[part.owner == item]) for name in ("values", "weights"))
            pairs = list(zip(whole.values[whole.owner == item], 2 * whole.weights[whole.owner == item], strict=True))
            assert all((value, weight) in pairs for value, weight in zip(values, weights, strict=True))
    assert 0.42 < kept / total < 0.58
    assert np.array_equal(thinned._column(WORDS, None, row, step=None).values, whole.values)  # in evaluation


@pytest.mark.parametrize(
    ("loss", "query", "message"),
    [
        ({"sample_weights": True}, None, "model.loss.sample_weights=True: expected data with weights"),
        ({"remove_known_positives": "history"}, ["user_id"], "known_positives=history: expected a history among"),
        ({"remove_known_positives": "user"}, ["age"], "known_positives=user: expected a user among"),
    ],
)
def test_a_loss_that_asks_for_what_the_rows_do_not_tell(
    prepared: Path, loss: dict[str, object], query: list[str] | None, message: str
) -> None:
    schema = replace(SCHEMA, sample_weights=False)
    features = schema.select(query, None)
    assembler = BatchAssembler(schema, features, Catalog(prepared, SCHEMA), ModelConfig(loss=LossConfig(**loss)))
    with pytest.raises(UserError, match=message):
        assembler.columns("event")


def test_a_row_that_is_one_query_has_no_features_of_single_events(prepared: Path) -> None:
    model = ModelConfig(history=HistoryConfig(encoder="item_mean", sees="all"))
    for query, refused in ((["history", "hour"], True), (["history", "age"], False)):
        assembler = BatchAssembler(SCHEMA, SCHEMA.select(query, None), Catalog(prepared, SCHEMA), model)
        if refused:
            with pytest.raises(UserError, match=r"sees=all: expected before or others for \['hour'\]"):
                assembler.columns("sequence")
        else:
            assembler.columns("sequence")
