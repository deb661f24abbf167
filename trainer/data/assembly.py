"""Rows of Parquet joined with the catalogue and laid out as the towers' inputs."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trainer.config import ModelConfig
from trainer.data.batch import QueryBatch, RetrievalBatch, int64_tensor
from trainer.data.catalog import Catalog
from trainer.data.distinct import DistinctItems, distinct_items
from trainer.data.event_histories import event_histories
from trainer.data.id_dropout import hidden_ids
from trainer.data.layouts import EventRows, Rows, SequenceRows, lists
from trainer.data.negatives import uniform_rows
from trainer.data.ragged import Ragged
from trainer.data.schema import HISTORY_AGE, ITEM_ROW, SEEN, TARGETS, TIMESTAMP, WEIGHT, Feature, Schema
from trainer.data.shares import share_of_rank
from trainer.errors import UserError

_NONE = np.empty(0, np.int64)


class BatchAssembler:
    """Builds batches for the chosen features.

    Args:
        schema: of the prepared folder.
        features: inputs of both towers, in the order in which the model looks them up and concatenates them.
        catalog: the items.
        model: whose history encoder, id dropout and loss say what else goes into a batch.
        seed: of the ids that are hidden.
    """

    def __init__(
        self, schema: Schema, features: Sequence[Feature], catalog: Catalog, model: ModelConfig, seed: int = 0
    ) -> None:
        self.features, self._schema, self._catalog = tuple(features), schema, catalog
        self._model, self._seed = model, seed
        self._history = next((feature for feature in features if feature.kind == "history"), None)
        self._sees_events = model.history.encoder != "mean"
        # one whose events the encoder sees is no feature to look up
        self._sparse = [f for f in features if f.is_sparse and not (f.kind == "history" and self._sees_events)]
        self._dense = [feature for feature in features if not feature.is_sparse]
        self._is_weighted = any(feature.weighted for feature in self._sparse)
        knows_times = self._history is not None and schema.timestamps
        self._sees_gaps = knows_times and model.history.encoder in ("attention", "transformer")
        self._user = next((f for f in features if (f.side, f.kind, f.per_event) == ("query", "id", False)), None)

    def columns(self, layout: str) -> list[str]:
        """Columns of the training rows that a batch is made from.

        Raises:
            UserError: the loss asks for what these rows do not tell.
        """
        loss = self._model.loss
        if loss.sample_weights and not self._schema.sample_weights:
            raise UserError("model.loss.sample_weights", True, "data with weights of its events",
                            "prepare it with data.columns.weight, or set model.loss.sample_weights=false")  # fmt: skip
        known = loss.remove_known_positives
        tells = {"none": True, "history": bool(self._history), "user": bool(self._history or self._user)}
        if layout == "event" and not tells[known]:
            raise UserError("model.loss.remove_known_positives", known,
                            f"a {known} among the query's features, which tells them",
                            "name it in model.query.features, or set it to none")  # fmt: skip
        of_query = [feature for feature in self.features if feature.side == "query"]
        of_events = [feature.name for feature in of_query if feature.per_event]
        if self._model.history.sees == "all" and of_events:
            raise UserError("model.history.sees", "all", f"before or others for {of_events}, which each event has anew",
                            "set it so, or leave them out of model.query.features")  # fmt: skip
        names = [feature.name for feature in of_query] + [f.weight_column for f in of_query if f.weighted]
        if loss.sample_weights:
            names.append(WEIGHT)
        if layout == "event":
            return [ITEM_ROW, *names, *([HISTORY_AGE] if self._sees_gaps else [])]
        history = self._history.name if self._history else None
        return [ITEM_ROW, *(n for n in names if n != history), *([TIMESTAMP] if self._sees_gaps else [])]

    def uniform_rows(self, step: int, rank: int, world_size: int) -> np.ndarray:
        """Catalogue rows of a rank's share of a step's uniform draws."""
        drawn = self._model.loss.uniform_negatives
        if not drawn:
            return _NONE
        share = share_of_rank(drawn, rank, world_size)
        rows = uniform_rows(self._seed, step, len(self._catalog), drawn)[share.start : share.stop]
        return rows if self._model.loss.cold_negatives else rows[self._catalog.train_counts()[rows] > 0]

    def training_batch(
        self, table: pa.Table, layout: str, step: int, uniform_row: np.ndarray = _NONE
    ) -> RetrievalBatch:
        """Queries with their positives, and uniform draws.

        Args:
            table: training rows of the layout.
            layout: event or sequence.
            step: for which ids are hidden.
            uniform_row: catalogue rows of this rank's draws.
        """
        rows = EventRows(table, self._history) if layout == "event" else SequenceRows(table, self._model.history.sees)
        batch = self._batch(rows, rows.positive_row, uniform_row, step)
        batch.step = step
        if self._model.loss.sample_weights:
            batch.weight = torch.from_numpy(rows.weight().astype(np.float32))
        self._add_known(batch, rows)
        return batch

    def query_batch(self, events: pa.Table, row: np.ndarray) -> QueryBatch:
        """Held-out events as queries; `row` int64 [B] is as in QueryBatch."""
        rows, targets, seen = EventRows(events, self._history), lists(events, TARGETS), lists(events, SEEN)
        return QueryBatch(
            self._batch(rows, _NONE, _NONE),
            row=torch.from_numpy(row),
            target_rows=int64_tensor(targets.values),
            target_lengths=int64_tensor(targets.lengths),
            seen_rows=int64_tensor(seen.values),
            seen_lengths=int64_tensor(seen.lengths),
        )

    def candidate_batch(self, item_rows: np.ndarray) -> RetrievalBatch:
        """Catalogue rows as candidates, in their order, without queries."""
        count = np.zeros(len(item_rows), np.float32)
        return self._lay_out(None, DistinctItems(item_rows, _NONE, _NONE, count, count))

    def _batch(
        self, rows: Rows, positive_row: np.ndarray, uniform_row: np.ndarray, step: int | None = None
    ) -> RetrievalBatch:
        histories = rows.histories() if self._sees_events else Ragged(_NONE, _NONE)
        items = distinct_items(positive_row, uniform_row, histories.values)
        batch = self._lay_out(rows, items, step)
        if self._sees_events:
            batch.history = event_histories(rows, items.history, self._sees_gaps)
        return batch

    def _add_known(self, batch: RetrievalBatch, rows: Rows) -> None:
        """What the loss leaves out of the negatives."""
        which = self._model.loss.remove_known_positives
        if which == "none":
            return
        known = rows.known()
        batch.known_row, batch.known_length = int64_tensor(known.values), int64_tensor(known.lengths)
        if which == "history":
            batch.known_seen = int64_tensor(rows.seen)
        elif self._user is not None:
            batch.user = int64_tensor(rows.sparse(self._user).values)

    def _lay_out(self, rows: Rows | None, items: DistinctItems, step: int | None = None) -> RetrievalBatch:
        has_items, num_candidates = len(items.row) > 0, len(items.positive_count)
        return RetrievalBatch(
            self._looked_up(rows, items.row, step),
            query_dense=None if rows is None else self._query_dense(rows),
            item_dense=self._item_dense(items.row) if has_items else None,
            item_row=int64_tensor(items.row),
            positive_count=torch.from_numpy(items.positive_count),
            uniform_count=torch.from_numpy(items.uniform_count),
            train_share=torch.from_numpy(self._catalog.train_share(items.row[:num_candidates])),
            positive=int64_tensor(items.positive),
            shared=None if self._model.loss.in_batch_negatives else int64_tensor(items.uniform_count.nonzero()[0]),
            query_row=_optional(rows.query_row if rows else None),
            positive_query=_optional(rows.positive_query if rows else None),
        )

    def _looked_up(self, rows: Rows | None, item_row: np.ndarray, step: int | None) -> KeyedJaggedTensor:
        columns = [self._column(feature, rows, item_row, step) for feature in self._sparse]
        slots = max([len(item_row)] + ([rows.num_rows, rows.num_queries] if rows else []))
        lengths = np.zeros((len(columns), slots), np.int32)
        for place, column in zip(lengths, columns, strict=True):
            place[: len(column.lengths)] = column.lengths
        return KeyedJaggedTensor(
            keys=[feature.name for feature in self._sparse],
            values=int64_tensor(np.concatenate([column.values for column in columns])),
            lengths=torch.from_numpy(lengths.reshape(-1)),
            weights=torch.from_numpy(np.concatenate([*map(_weights, columns)])) if self._is_weighted else None,
        )

    def _column(self, feature: Feature, rows: Rows | None, item_row: np.ndarray, step: int | None) -> Ragged:
        if feature.side == "candidate":
            column = self._catalog.sparse(feature, item_row)
            if feature.is_list and step is not None and self._model.list_dropout:
                column = self._thinned(column, feature, item_row, step)
        elif rows is None:
            return Ragged(_NONE, _NONE)
        else:
            column = rows.sparse(feature)
        if feature.kind == "history":
            return replace(column, values=self._catalog.sparse(self._schema.item_id, column.values).values)
        if feature.kind == "id" and step is not None and self._model.id_dropout:
            hidden = hidden_ids(self._seed, step, feature.name, column.values, self._model.id_dropout)
            return replace(column, values=np.where(hidden, 0, column.values))
        return column

    def _thinned(self, column: Ragged, feature: Feature, item_row: np.ndarray, step: int) -> Ragged:
        """Without the values that a step leaves out; given weights make up for them."""
        share = self._model.list_dropout
        value_of_item = item_row[column.owner] * feature.num_embeddings + column.values
        kept = ~hidden_ids(self._seed, step, feature.name, value_of_item, share)
        weights = None if column.weights is None else column.weights[kept] / (1 - share)
        return Ragged(column.values[kept], np.bincount(column.owner[kept], minlength=len(item_row)), weights)

    def _query_dense(self, rows: Rows) -> Tensor:
        columns = [rows.dense(feature) for feature in self._dense if feature.side == "query"]
        return _side_by_side(columns, rows.num_queries)

    def _item_dense(self, item_row: np.ndarray) -> Tensor:
        columns = [self._catalog.dense(feature, item_row) for feature in self._dense if feature.side == "candidate"]
        return _side_by_side(columns, len(item_row))


def _optional(values: np.ndarray | None) -> Tensor | None:
    return None if values is None else int64_tensor(values)


def _weights(column: Ragged) -> np.ndarray:
    """What a looked-up value counts for in the sum: given, or else its share of a mean."""
    if column.weights is not None:
        return column.weights.astype(np.float32)
    return np.repeat(1 / np.maximum(column.lengths, 1), column.lengths).astype(np.float32)


def _side_by_side(columns: list[np.ndarray], num_rows: int) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty((num_rows, 0), np.float32), *columns], axis=1, dtype=np.float32))
