"""Encoders of histories: what a state knows, and that both layouts and any padding agree."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer.config import HistoryConfig
from trainer.data.batch import EventHistories
from trainer.data.event_histories import event_histories
from trainer.data.layouts import EventRows, SequenceRows
from trainer.data.schema import HISTORY_AGE, ITEM_ROW, TIMESTAMP, Feature
from trainer.model.history import AttentionPooling, CausalTransformer, ItemMean, time_bucket

HISTORY = Feature("history", "query", "history", table="item_id", num_embeddings=9, length=12)
DIM, ITEMS = 8, 9
SEQUENCES = st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=2, max_size=12), min_size=1, max_size=6)


def sequence_rows(sequences: list[list[int]], times: list[list[int]], sees: str = "before") -> SequenceRows:
    return SequenceRows(pa.table({ITEM_ROW: sequences, TIMESTAMP: times}), sees)


def event_rows(sequences: list[list[int]], times: list[list[int]]) -> EventRows:
    """The same queries, each a row with the history that it has seen."""
    cut = [(items[:end], when[:end], items[end], when[end]) for items, when in zip(sequences, times, strict=True)
           for end in range(1, len(items))]  # fmt: skip
    ages = [[now - then for then in when] for _, when, _, now in cut]
    return EventRows(
        pa.table({"history": [items for items, *_ in cut], HISTORY_AGE: ages, ITEM_ROW: [item for *_, item, _ in cut]}),
        HISTORY,
    )


def laid_out(rows: SequenceRows | EventRows, sees_others: bool = False) -> EventHistories:
    return event_histories(rows, rows.histories().values, sees_gaps=not sees_others)


def encoder_of(kind: str, interests: int = 1) -> nn.Module:
    config = HistoryConfig(encoder=kind, interests=interests, layers=2, heads=2, dropout=0.0)
    torch.manual_seed(0)
    if kind == "item_mean":
        return ItemMean()
    encoder = (AttentionPooling if kind == "attention" else CausalTransformer)(DIM, config, 12, has_times=True)
    for parameter in encoder.parameters():  # also what begins at zero
        nn.init.normal_(parameter, std=0.5)
    return encoder


def times_of(sequences: list[list[int]], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [np.cumsum(rng.integers(0, 100_000, len(items))).tolist() for items in sequences]


def item_embeddings() -> Tensor:
    return torch.randn(ITEMS, DIM, generator=torch.Generator().manual_seed(1))


KINDS = [("item_mean", 1), ("attention", 1), ("attention", 3), ("transformer", 1)]


@pytest.mark.parametrize(("kind", "interests"), KINDS)
@given(sequences=SEQUENCES)
@settings(max_examples=20)
def test_a_query_is_the_same_in_a_sequence_as_in_a_row_of_its_own(
    kind: str, interests: int, sequences: list[list[int]]
) -> None:
    """So neither later events, nor other rows, nor padding change a query."""
    encoder, item, times = encoder_of(kind, interests), item_embeddings(), times_of(sequences)
    of_sequences = encoder(item, laid_out(sequence_rows(sequences, times)), False)
    of_events = encoder(item, laid_out(event_rows(sequences, times)), True)
    torch.testing.assert_close(of_sequences, of_events, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "interests"), KINDS)
def test_a_later_event_changes_no_earlier_query_and_an_earlier_one_does(kind: str, interests: int) -> None:
    encoder, item = encoder_of(kind, interests), item_embeddings()
    before = encoder(item, laid_out(sequence_rows([[1, 2, 3, 4, 5]], [[0, 9, 99, 999, 9999]])), False)
    after = encoder(item, laid_out(sequence_rows([[1, 2, 8, 4, 5]], [[0, 9, 99, 5000, 9999]])), False)
    torch.testing.assert_close(before[:2], after[:2])
    assert all((before[query] - after[query]).abs().max() > 1e-4 for query in (2, 3))


def test_item_mean_by_hand() -> None:
    item = torch.tensor([[1.0, 0], [0, 1], [4, 4]])
    history = laid_out(sequence_rows([[0, 1, 2, 2]], [[0] * 4]))
    expected = torch.tensor([[1.0, 0], [0.5, 0.5], [5 / 3, 5 / 3]])
    torch.testing.assert_close(ItemMean()(item, history, False), expected)


def test_a_query_that_sees_the_others_averages_all_but_its_own() -> None:
    item = item_embeddings()
    sequences = [[3, 1, 4], [5, 2], [6, 5, 3, 5, 8]]
    history = laid_out(sequence_rows(sequences, times_of(sequences), sees="others"), sees_others=True)
    expected = [
        torch.stack([item[other] for place, other in enumerate(items) if place != own]).mean(0)
        for items in sequences
        for own in range(len(items))
    ]
    torch.testing.assert_close(ItemMean()(item, history, False), torch.stack(expected))


def test_a_row_that_is_one_query_averages_all_events_and_is_to_find_each_again() -> None:
    item = item_embeddings()
    sequences = [[3, 1, 4], [5, 2], [6, 5, 3, 5, 8]]
    rows = sequence_rows(sequences, times_of(sequences), sees="all")
    assert rows.query_row is None and (rows.num_queries, rows.seen.tolist()) == (3, [3, 2, 5])
    assert rows.positive_row.tolist() == [3, 1, 4, 5, 2, 6, 5, 3, 5, 8]
    assert rows.positive_query.tolist() == [0] * 3 + [1] * 2 + [2] * 5
    expected = torch.stack([item[items].mean(0) for items in sequences])
    torch.testing.assert_close(ItemMean()(item, laid_out(rows, sees_others=True), True), expected)
    with_unknown = sequence_rows([[3, -1], [-1, -1]], [[0, 1], [0, 1]], sees="all")
    assert (with_unknown.num_queries, with_unknown.positive_row.tolist()) == (2, [3])


def test_attention_against_its_formula() -> None:
    encoder, item, times = encoder_of("attention", 2), item_embeddings(), [[0, 100, 350]]
    history = laid_out(sequence_rows([[4, 2, 7]], times))
    events = item[[4, 2]]
    seen = events * (0.5 * DIM**0.5) + encoder.input.position.weight[:2]
    seen = seen + encoder.input.gap.weight[[0, 7]]  # nothing before the first; 2^6 <= 100 < 2^7
    weight = encoder.weigh(torch.tanh(encoder.hidden(seen)))
    expected = torch.stack([events[:1].expand(2, -1), weight.softmax(0).T @ events])
    torch.testing.assert_close(encoder(item, history, False), expected)


def test_a_history_of_nothing_is_no_item_to_the_averages_and_a_start_to_the_transformer() -> None:
    rows = EventRows(pa.table({"history": pa.array([[], [2]], pa.list_(pa.int32())), HISTORY_AGE: [[], [5]],
                               ITEM_ROW: [0, 1]}), HISTORY)  # fmt: skip
    item = item_embeddings()
    for kind in ("item_mean", "attention"):
        assert torch.equal(encoder_of(kind)(item, laid_out(rows), True)[0], torch.zeros(DIM))
    transformer = encoder_of("transformer")
    assert torch.isfinite(transformer(item, laid_out(rows), True)).all()
    alone = replace_events(rows, 0)
    torch.testing.assert_close(
        transformer(item[:0], laid_out(alone), True)[0], transformer(item, laid_out(rows), True)[0]
    )


def replace_events(rows: EventRows, row: int) -> EventRows:
    return EventRows(rows._events.slice(row, 1), HISTORY)


def test_a_block_against_its_formulas() -> None:
    """Pairs of numbers as complex ones, which position p turns by p times an angle of their own; head by head."""
    torch.manual_seed(0)
    encoder = encoder_of("transformer")
    history = laid_out(sequence_rows([[4, 2, 7, 1]], [[0, 1, 2, 3]]))
    block, state, width = encoder.blocks[0], torch.randn(4, DIM), DIM // 2
    query, key, value = block.query_key_value(block.attention_norm(state)).chunk(3, dim=1)
    attended = torch.zeros(4, DIM)
    for head in range(2):
        part = slice(head * width, (head + 1) * width)
        turn = torch.polar(torch.ones(4, 2), torch.arange(4.0)[:, None] * torch.tensor([1.0, 1000.0**-0.5]))
        turned = [torch.complex(vector[:, part][:, :2], vector[:, part][:, 2:]) * turn for vector in (query, key)]
        for place in range(4):
            scores = torch.stack([(turned[0][place] * turned[1][seen].conj()).real.sum() for seen in range(place + 1)])
            attended[place, part] = (scores / width**0.5).softmax(0) @ value[: place + 1, part]
    added = state + block.attended(attended)
    up, gate = block.gate(block.mlp_norm(added)).chunk(2, dim=1)
    expected = added + block.down(nn.functional.silu(gate) * up)
    torch.testing.assert_close(block(state, history), expected)


def test_time_buckets_by_hand() -> None:
    assert time_bucket(torch.tensor([0, 1, 2, 3, 4, 86_400, 2**62])).tolist() == [0, 1, 2, 2, 3, 17, 35]
