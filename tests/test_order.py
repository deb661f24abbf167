from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.order import EpochOrder, streams_of_rank
from trainer.errors import UserError


def rows_of(order: EpochOrder, stream: int, epoch: int, step: int = 0) -> list[tuple[int, int]]:
    """(row group, row) in the order in which a stream takes them, shuffled as the reader does."""
    rows = []
    for piece, skip in order.stream(stream, epoch, step):
        shuffled = [(piece.row_group, piece.start + int(row)) for row in piece.rng().permutation(len(piece))]
        rows += shuffled[skip:]
    return rows[: (order.steps_per_epoch - step) * order.rows_per_step]


@st.composite
def orders(draw: st.DrawFn) -> EpochOrder:
    streams = draw(st.sampled_from([1, 2, 3, 4, 6]))
    rows_per_step = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    missing = streams * rows_per_step - sum(sizes)
    return EpochOrder(
        (*sizes, *([missing] if missing > 0 else [])), streams * rows_per_step, streams, draw(st.integers(0, 9))
    )


@given(orders(), st.integers(0, 3))
def test_every_row_is_trained_at_most_once_an_epoch_and_all_but_the_rest_of_a_batch(
    order: EpochOrder, epoch: int
) -> None:
    rows = [row for stream in range(order.streams) for row in rows_of(order, stream, epoch)]
    everything = {(group, row) for group, size in enumerate(order.row_group_sizes) for row in range(size)}
    assert len(set(rows)) == len(rows) and set(rows) <= everything
    assert len(rows) == order.steps_per_epoch * order.global_batch_size
    assert len(everything) - len(rows) < order.global_batch_size + order.streams


@given(orders(), st.integers(0, 3), st.data())
def test_a_stream_resumed_at_any_step_goes_on_with_the_rows_not_yet_seen(
    order: EpochOrder, epoch: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    for stream in range(order.streams):
        assert rows_of(order, stream, epoch, step) == rows_of(order, stream, epoch)[step * order.rows_per_step :]


def test_epochs_and_seeds_differ() -> None:
    order, other = EpochOrder((50, 50), 10, 2, seed=0), EpochOrder((50, 50), 10, 2, seed=1)
    assert rows_of(order, 0, epoch=0) != rows_of(order, 0, epoch=1)
    assert rows_of(order, 0, epoch=0) != rows_of(other, 0, epoch=0)
    assert rows_of(order, 0, epoch=0) == rows_of(EpochOrder((50, 50), 10, 2, seed=0), 0, epoch=0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_share_the_streams_out_in_order(world_size: int) -> None:
    assert [stream for rank in range(world_size) for stream in streams_of_rank(6, rank, world_size)] == list(range(6))


def test_a_batch_larger_than_the_data_is_refused_with_a_remedy() -> None:
    with pytest.raises(UserError, match=r"data.global_batch_size=64: expected at most the 50 training rows.*=48"):
        EpochOrder((50,), 64, 4, seed=0)


def test_an_epoch_of_one_step_takes_that_step() -> None:
    order = EpochOrder((7,), 4, 2, seed=0)
    assert order.steps_per_epoch == 1
    assert [len(list(islice(rows_of(order, stream, 0), 9))) for stream in range(2)] == [2, 2]
