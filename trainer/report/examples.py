"""Some held-out queries as a reader sees them: what came before, what was held out, what the model lists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.data.row_groups import RowGroups, open_events
from trainer.data.schema import RAW_USER_ID, SEEN, TARGETS
from trainer.data.titles import read_titles
from trainer.runtime.loading import SavedRun

MOST_QUERIES, MOST_SHOWN = 5, 10


@dataclass(frozen=True)
class Item:
    """As it is shown.

    Attributes:
        item_id: the user's own, or None for an item that the catalogue lacks.
        title: or an empty text.
        place: from 1 in the model's list, or None where it is not in it.
        is_target: whether it was held out for this query.
    """

    item_id: int | str | None
    title: str
    place: int | None
    is_target: bool


@dataclass(frozen=True)
class Example:
    """One query.

    Attributes:
        user_id: the user's own.
        history: the last items before the query, oldest first, at most 10.
        targets: the items held out, at most 10.
        num_targets: how many there are.
        listed: the first of the model's list, at most 10.
        num_listed: how far the list goes in which targets were looked for.
    """

    user_id: int | str
    history: Sequence[Item]
    targets: Sequence[Item]
    num_targets: int
    listed: Sequence[Item]
    num_listed: int


def read_examples(run: SavedRun, split: str, lists: Mapping[int, Sequence[int]]) -> list[Example]:
    """Examples in the order of the split, with titles where the data has them.

    Args:
        run: with the data.
        split: whose queries they are.
        lists: catalogue rows of the model's lists, the best first, by row of the split.

    Raises:
        UserError: the split cannot be read.
    """
    history = run.schema.history.name if run.schema.history else SEEN
    files = open_events(run.data_dir, run.schema, split, {RAW_USER_ID, TARGETS, SEEN, history})
    rows = {query: _row(files, query) for query in sorted(lists)}
    shown = {item for query, row in rows.items() for items in (row[history][-MOST_SHOWN:], row[TARGETS][:MOST_SHOWN],
             lists[query][:MOST_SHOWN]) for item in items if item >= 0}  # fmt: skip
    titles = read_titles(run.data_dir, run.catalog.raw_ids(np.array(sorted(shown), np.int64)).to_pylist())
    return [_example(run, row, history, lists[query], titles) for query, row in rows.items()]


def _row(files: RowGroups, row: int) -> dict[str, Any]:
    [table] = files.batches(row, row + 1, 1)
    return table.to_pylist()[0]


def _example(
    run: SavedRun, row: Mapping[str, Any], history: str, listed: Sequence[int], titles: Mapping[int | str, str]
) -> Example:
    targets, before = row[TARGETS], row[history]
    places = {item: place for place, item in enumerate(listed, 1)}

    def items(rows: Sequence[int]) -> list[Item]:
        ids = run.catalog.raw_ids(np.maximum(np.array(rows, np.int64), 0)).to_pylist()
        known = [item_id if item >= 0 else None for item, item_id in zip(rows, ids, strict=True)]
        return [
            Item(item_id, titles.get(item_id, "") if item_id is not None else "", places.get(item), item in targets)
            for item, item_id in zip(rows, known, strict=True)
        ]

    return Example(
        row[RAW_USER_ID], items(before[-MOST_SHOWN:]), items(targets[:MOST_SHOWN]), len(targets),
        items(listed[:MOST_SHOWN]), len(listed),
    )  # fmt: skip
