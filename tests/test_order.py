from collections import Counter
from itertools import islice, takewhile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.order import TrainingOrder, streams_of_rank
from trainer.errors import UserError

Row = tuple[int, int, int]  # epoch, row group, row


def rows_of(order: TrainingOrder, stream: int, count: int, step: int = 0) -> list[Row]:
    """The next rows of a stream from a step on, shuffled as the reader does."""
    rows: list[Row] = []
    for piece, skip in order.stream(stream, step):
        epoch = piece.rng_key[1]
        rows += [(epoch, piece.row_group, piece.start + int(row)) for row in piece.rng().permutation(len(piece))[skip:]]
        if len(rows) >= count:
            return rows[:count]
    return rows


def batches_of(order: TrainingOrder, steps: int) -> list[list[Row]]:
    """Global batches from the first on."""
    rows = [rows_of(order, stream, steps * order.rows_per_step) for stream in range(order.streams)]
    take = order.rows_per_step
    return [[row for of in rows for row in of[step * take : (step + 1) * take]] for step in range(steps)]


@st.composite
def orders(draw: st.DrawFn) -> TrainingOrder:
    streams = draw(st.sampled_from([1, 2, 3, 4, 6]))
    rows_per_step = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    missing = streams * rows_per_step - sum(sizes)
    sizes = [*sizes, *([missing] if missing > 0 else [])]
    return TrainingOrder(tuple(sizes), streams * rows_per_step, streams, draw(st.integers(0, 9)))


@given(orders(), st.integers(1, 5))
def test_every_row_is_trained_exactly_once_an_epoch(order: TrainingOrder, epochs: int) -> None:
    trained = [row for batch in batches_of(order, order.steps(epochs)) for row in batch]
    everything = {(group, row) for group, size in enumerate(order.row_group_sizes) for row in range(size)}
    counts = Counter(trained)
    assert {(epoch, *row) for epoch in range(epochs) for row in everything} <= set(counts)
    assert set(counts.values()) == {1}
    begun = len(trained) - epochs * order.num_rows  # of the epoch after: less than a batch
    assert 0 <= begun < order.global_batch_size
    assert begun == sum(epoch == epochs for epoch, _, _ in trained)


@given(orders(), st.integers(1, 4))
def test_epochs_mix_in_the_batch_between_them_alone(order: TrainingOrder, epochs: int) -> None:
    for step, batch in enumerate(batches_of(order, order.steps(epochs))):
        first, last = step * order.global_batch_size, (step + 1) * order.global_batch_size - 1
        # streams are a row apart at most, so the change may show one row a stream early
        allowed = {
            place // order.num_rows
            for place in range(max(0, first - order.streams), last + order.streams + 1)
        }  # fmt: skip
        assert {epoch for epoch, _, _ in batch} <= allowed


@given(orders(), st.integers(0, 60))
def test_a_stream_resumed_at_any_step_goes_on_with_the_rows_not_yet_seen(order: TrainingOrder, step: int) -> None:
    for stream in range(order.streams):
        behind, count = step * order.rows_per_step, 3 * order.rows_per_step
        assert rows_of(order, stream, count, step) == rows_of(order, stream, behind + count)[behind:]


def test_epochs_and_seeds_differ() -> None:
    order, other = TrainingOrder((50, 50), 10, 2, seed=0), TrainingOrder((50, 50), 10, 2, seed=1)
    first, second = (rows_of(order, 0, 50, step=step) for step in (0, 10))
    assert [row[1:] for row in first] != [row[1:] for row in second]
    assert first != rows_of(other, 0, 50)
    assert first == rows_of(TrainingOrder((50, 50), 10, 2, seed=0), 0, 50)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_share_the_streams_out_in_order(world_size: int) -> None:
    assert [stream for rank in range(world_size) for stream in streams_of_rank(6, rank, world_size)] == list(range(6))


def test_a_batch_larger_than_the_data_is_refused_with_a_remedy() -> None:
    with pytest.raises(UserError, match=r"data.global_batch_size=64: expected at most the 50 training rows.*=48"):
        TrainingOrder((50,), 64, 4, seed=0)


def test_steps_of_part_of_an_epoch() -> None:
    order = TrainingOrder((100,), 8, 4, seed=0)
    assert [order.steps(epochs) for epochs in (0.25, 0.5, 1, 2, 3)] == [4, 7, 13, 25, 38]


def test_a_step_far_into_a_large_data_set_is_found_at_once() -> None:
    order = TrainingOrder((16_384,) * 5_000 + (77,), 4096, 64, seed=0)
    piece, skip = next(order.stream(63, step=10**7))
    expected = 10**7 * 64 * 64 // order.num_rows
    assert piece.rng_key[1] in (expected, expected - 1)
    assert 0 <= skip < len(piece)


# --- the quality of the shuffle, on files that nobody shuffled -------------------------------------------------------

ROWS, USER_EVENTS, ROW_GROUP = 400_000, 20, 2_000


def shuffled_rows(seed: int) -> np.ndarray:
    """An epoch of files sorted by user: row numbers in the order in which they are trained."""
    order = TrainingOrder((ROW_GROUP,) * (ROWS // ROW_GROUP), 1_600, 16, seed)
    streams = []
    for stream in range(order.streams):
        pieces = takewhile(lambda entry: entry[0].rng_key[1] == 0, order.stream(stream))
        rows = [piece.row_group * ROW_GROUP + piece.start + piece.rng().permutation(len(piece)) for piece, _ in pieces]
        streams.append(np.concatenate(rows).reshape(-1, order.rows_per_step))
    return np.stack(streams, axis=1).reshape(-1)


def mean_run_length(users: np.ndarray) -> float:
    return len(users) / (1 + np.count_nonzero(np.diff(users)))


def test_position_in_the_file_says_nothing_about_position_in_the_epoch() -> None:
    correlations = [np.corrcoef(np.arange(ROWS), shuffled_rows(seed))[0, 1] for seed in range(8)]
    # Row groups move as a whole, so 200 of them are what chance has to work with: a standard deviation of 200^-1/2,
    # here of the 12 or 13 row groups that each of 16 streams goes through side by side.
    assert np.abs(correlations).max() < 4 / np.sqrt(ROWS / ROW_GROUP)
    assert abs(np.mean(correlations)) < 4 / np.sqrt(8 * ROWS / ROW_GROUP)


def test_runs_of_one_user_are_as_short_as_in_a_full_shuffle() -> None:
    rows = shuffled_rows(0)
    assert np.array_equal(np.sort(rows), np.arange(ROWS))
    full = mean_run_length(np.random.default_rng(0).permutation(ROWS) // USER_EVENTS)
    assert mean_run_length(np.arange(ROWS) // USER_EVENTS) == USER_EVENTS
    assert mean_run_length(rows // USER_EVENTS) < 1.02 * full


def test_a_batch_is_drawn_from_all_over_the_file() -> None:
    batches = shuffled_rows(0).reshape(-1, 1_600)
    assert min(len(np.unique(batch // ROW_GROUP)) for batch in batches) >= 14  # of 16 streams
    users = [len(np.unique(batch // USER_EVENTS)) for batch in islice(batches, 50)]
    # 100 rows drawn from the 100 users of each of 16 row groups: 1 - (1 - 1/100)^100 of those users come up
    assert np.mean(users) > 0.6 * 1_600
