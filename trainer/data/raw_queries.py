"""Held-out rows as the queries that they were made of, in the user's own ids."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.data.catalog import Catalog
from trainer.data.row_groups import one_array
from trainer.data.schema import HISTORY_AGE, Feature

Ids = Sequence[int | str]


def raw_queries(
    events: pa.Table, features: Sequence[Feature], ids: Mapping[str, Ids], catalog: Catalog, has_ages: bool
) -> list[dict[str, Any]]:
    """Values by the name of their feature, as JSON would have them.

    Args:
        events: of a split.
        features: of the query; those looked up in a table without ids are left out.
        ids: of tables, in the order of their rows from 1 on.
        catalog: the items.
        has_ages: whether to tell how long ago the events of a history were.
    """
    columns: dict[str, list[Any]] = {}
    for feature in features:
        rows = one_array(events, feature.name).to_pylist()
        if feature.kind == "history":
            columns[feature.name] = [item_ids(catalog, of_event) for of_event in rows]
        elif not feature.is_sparse:
            columns[feature.name] = rows
        elif feature.table in ids:
            known = ids[feature.table]
            columns[feature.name] = [
                [_id(known, row) for row in of_event] if feature.is_list else _id(known, of_event) for of_event in rows
            ]
        if feature.weighted and feature.name in columns:
            columns[feature.weight_column] = one_array(events, feature.weight_column).to_pylist()
    if has_ages:
        columns[HISTORY_AGE] = one_array(events, HISTORY_AGE).to_pylist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _id(known: Ids, row: int) -> int | str | None:
    return known[row - 1] if row else None


def item_ids(catalog: Catalog, rows: list[int]) -> list[int | str | None]:
    """The user's own ids of catalogue rows; none of -1."""
    there = iter(catalog.raw_ids(np.array([row for row in rows if row >= 0], np.int64)).to_pylist())
    return [None if row < 0 else next(there) for row in rows]
