"""Which item users chose after which, counted over the training rows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy import sparse
from tqdm import tqdm

from trainer.data.contract import list_parts
from trainer.data.row_groups import one_array, open_events, open_sequences
from trainer.data.schema import ITEM_ROW, Schema
from trainer.errors import UserError

# N items, M of them from a stretch of the catalogue, P pairs

PAIRS_AT_ONCE = 1 << 24


def check_transitions(schema: Schema) -> None:
    """Refuses data that does not tell which item came before which.

    Raises:
        UserError: it has neither sequences nor a history.
    """
    if not schema.num_sequences and schema.history is None:
        raise UserError("evaluate.baselines", "markov", "data with sequences or a history of items",
                        "leave markov out, or prepare the data with data.layouts=[event,sequence]")  # fmt: skip


def transition_shares(
    data_dir: str | Path, schema: Schema, items: range, show_progress: bool = False
) -> sparse.csr_array:
    """Of what followed each item in training, the share that was each of some items.

    Args:
        data_dir: prepared folder.
        schema: of that folder.
        items: catalogue rows of those that follow.
        show_progress: on stderr.

    Returns:
        float64 [N, M]; rows sum to 1 over all items that follow, and an item that none follows has none.

    Raises:
        UserError: see `check_transitions`; or the training rows cannot be read.
    """
    check_transitions(schema)
    followed_N = np.zeros(schema.num_items, np.int64)
    pairs, times, pending = np.empty(0, np.int64), np.empty(0, np.int64), list[np.ndarray]()
    for before_P, after_P in _pairs(data_dir, schema, show_progress):
        followed_N += np.bincount(before_P, minlength=schema.num_items)
        here = (after_P >= items.start) & (after_P < items.stop)
        pending.append(before_P[here] * len(items) + after_P[here] - items.start)
        if sum(map(len, pending)) > PAIRS_AT_ONCE:
            pairs, times = _counted(pairs, times, pending)
            pending = []
    pairs, times = _counted(pairs, times, pending)
    before, after = np.divmod(pairs, max(1, len(items)))
    return sparse.csr_array((times / followed_N[before], (before, after)), shape=(schema.num_items, len(items)))


def _pairs(data_dir: str | Path, schema: Schema, show_progress: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Int64 [P] each: an item, and the next of the same user; a row group at a time."""
    history = schema.history.name if schema.history else ""
    if schema.num_sequences:
        files = open_sequences(data_dir, schema, [ITEM_ROW])
    else:
        files = open_events(data_dir, schema, "train", [ITEM_ROW, history])
    for group in tqdm(range(len(files.sizes)), desc="transitions", unit="row group", disable=not show_progress):
        table = files.read(group)
        before_P, after_P = _in_sequences(table) if schema.num_sequences else _after_histories(table, history)
        known_P = (before_P >= 0) & (after_P >= 0)
        yield before_P[known_P].astype(np.int64), after_P[known_P].astype(np.int64)


def _in_sequences(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    values, offsets = list_parts(one_array(table, ITEM_ROW))
    rows = values.to_numpy()
    is_last = np.zeros(len(rows), bool)
    is_last[offsets[1:] - 1] = True
    place_P = np.flatnonzero(~is_last)
    return rows[place_P], rows[place_P + 1]


def _after_histories(table: pa.Table, history: str) -> tuple[np.ndarray, np.ndarray]:
    values, offsets = list_parts(one_array(table, history))
    has_any = np.diff(offsets) > 0
    return values.to_numpy()[offsets[1:][has_any] - 1], one_array(table, ITEM_ROW).to_numpy()[has_any]


def _counted(pairs: np.ndarray, times: np.ndarray, more: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Each pair once, with how often it was."""
    every = np.concatenate([pairs, *more])
    found, place = np.unique(every, return_inverse=True)
    weights = np.concatenate([times, np.ones(len(every) - len(times), np.int64)])
    return found, np.bincount(place, weights, minlength=len(found)).astype(np.int64)
