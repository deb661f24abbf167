"""Rows of Parquet joined with the catalogue and laid out as the towers' inputs."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trainer.data.batch import QueryBatch, RetrievalBatch
from trainer.data.catalog import Catalog
from trainer.data.contract import UNKNOWN_ITEM, list_parts
from trainer.data.row_groups import one_array
from trainer.data.schema import ITEM_ROW, SEEN, TARGETS, Feature, Schema

DROPPED = "dropped:"
"""Prefix of the boolean columns that say for which rows an id is replaced by the out-of-vocabulary row."""

Ragged = tuple[np.ndarray, np.ndarray]  # values end to end, and how many each row has


class BatchAssembler:
    """Builds batches for the chosen features.

    Args:
        schema: of the prepared folder.
        features: inputs of both towers, in the order in which the model looks them up and concatenates them.
        catalog: the items.
    """

    def __init__(self, schema: Schema, features: Sequence[Feature], catalog: Catalog) -> None:
        self._item_id, self.features, self._catalog = schema.item_id, tuple(features), catalog

    @property
    def event_columns(self) -> list[str]:
        """Columns of the events that a training batch is made from."""
        return [ITEM_ROW, *(feature.name for feature in self.features if feature.side == "query")]

    def training_batch(self, events: pa.Table) -> RetrievalBatch:
        """One query and its positive a row; boolean columns named DROPPED + id hide that id."""
        return self._batch(events, _scalars(events, ITEM_ROW), len(events))

    def query_batch(self, events: pa.Table, row: np.ndarray) -> QueryBatch:
        """Held-out events as queries; `row` int64 [B] is as in QueryBatch."""
        target_rows, target_lengths = _lists(events, TARGETS)
        seen_rows, seen_lengths = _lists(events, SEEN)
        return QueryBatch(
            self._batch(events, None, len(events)),
            row=torch.from_numpy(row),
            target_rows=_int64(target_rows),
            target_lengths=_int64(target_lengths),
            seen_rows=_int64(seen_rows),
            seen_lengths=_int64(seen_lengths),
        )

    def candidate_batch(self, item_rows: np.ndarray) -> RetrievalBatch:
        """Catalogue rows as candidates, without queries."""
        return self._batch(None, item_rows, len(item_rows))

    def _batch(self, events: pa.Table | None, item_rows: np.ndarray | None, num_rows: int) -> RetrievalBatch:
        sparse = [feature for feature in self.features if feature.is_sparse]
        candidates = np.empty(0, np.int64) if item_rows is None else item_rows
        columns = [self._sparse(feature, events, item_rows, num_rows) for feature in sparse]
        return RetrievalBatch(
            KeyedJaggedTensor(
                keys=[feature.name for feature in sparse],
                values=_int64(np.concatenate([values for values, _ in columns])),
                lengths=torch.from_numpy(np.concatenate([lengths for _, lengths in columns]).astype(np.int32)),
            ),
            query_dense=None if events is None else self._query_dense(events),
            candidate_dense=None if item_rows is None else self._candidate_dense(item_rows),
            candidate_row=_int64(candidates),
            candidate_log_q=torch.from_numpy(self._catalog.log_q(candidates)),
        )

    def _sparse(self, feature: Feature, events: pa.Table | None, item_rows: np.ndarray | None, num_rows: int) -> Ragged:
        values, lengths = np.empty(0, np.int64), np.zeros(num_rows, np.int64)
        if feature.side == "candidate" and item_rows is not None:
            values, lengths = self._catalog.sparse(feature, item_rows)
        elif feature.side == "query" and events is not None:
            values, lengths = self._query_sparse(feature, events)
        if events is not None and DROPPED + feature.name in events.column_names:
            values = np.where(_scalars(events, DROPPED + feature.name), 0, values)
        return values, lengths

    def _query_sparse(self, feature: Feature, events: pa.Table) -> Ragged:
        if feature.kind == "history":
            rows, lengths = _lists(events, feature.name)
            return np.where(rows == UNKNOWN_ITEM, 0, self._catalog.sparse(self._item_id, rows)[0]), lengths
        if feature.multi_valued:
            return _lists(events, feature.name)
        return _scalars(events, feature.name), np.ones(len(events), np.int64)

    def _query_dense(self, events: pa.Table) -> Tensor:
        dense = [feature for feature in self.features if feature.side == "query" and not feature.is_sparse]
        return _side_by_side([_numbers(events, feature) for feature in dense], len(events))

    def _candidate_dense(self, item_rows: np.ndarray) -> Tensor:
        dense = [feature for feature in self.features if feature.side == "candidate" and not feature.is_sparse]
        return _side_by_side([self._catalog.dense(feature, item_rows) for feature in dense], len(item_rows))


def _side_by_side(columns: list[np.ndarray], num_rows: int) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty((num_rows, 0), np.float32), *columns], axis=1, dtype=np.float32))


def _scalars(events: pa.Table, name: str) -> np.ndarray:
    return one_array(events, name).to_numpy(zero_copy_only=False)


def _lists(events: pa.Table, name: str) -> Ragged:
    values, offsets = list_parts(one_array(events, name))
    return values.to_numpy(), np.diff(offsets)


def _numbers(events: pa.Table, feature: Feature) -> np.ndarray:
    column = one_array(events, feature.name)
    values = list_parts(column)[0] if feature.kind == "vector" else column
    return values.to_numpy(zero_copy_only=False).reshape(-1, feature.dim)


def _int64(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
