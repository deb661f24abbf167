"""From what the engine gives for a feature to the column the contract asks for."""

from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.engine import Connection, first_row, stream
from trainer.data.hashing import hashed_row
from trainer.data.inputs import Input
from trainer.data.lists import fixed_size_lists, list_offsets, lists_of
from trainer.data.moments import Moments
from trainer.data.schema import HASHED_WORDS, Feature, VectorType, weight_column
from trainer.data.text import TextHasher
from trainer.data.text_vectors import TextVectors
from trainer.data.vocabulary import training_values, vocabulary_table
from trainer.data.weights import Bags, TfIdf

FIT_BATCH = 1 << 12


class ColumnEncoder:
    """Encodes one feature's column batch by batch, and in passing takes the statistics the schema has of it.

    Args:
        connection: The engine, with the vocabularies.
        feature: The feature.
        table_input: The feature whose table it shares, as a history does the item id's; or itself.
        table_rows: Rows of each embedding table.
        folder: For what is not kept.

    Raises:
        UserError: a text's encoder cannot be loaded.
    """

    def __init__(
        self, connection: Connection, feature: Input, table_input: Input, table_rows: dict[str, int], folder: Path
    ) -> None:
        self.input, self.notes, self._text_encoder = feature, list[str](), ""
        self._moments = Moments(feature.config.log1p)
        self._table_input, self._table_rows = table_input, table_rows
        match feature.kind:
            case "text" if feature.config.encoder is not None:
                self._texts = TextVectors(connection, feature, folder)
                self._dim, self._text_encoder, self.notes = self._texts.dim, self._texts.name, [self._texts.note]
            case "text":
                self._dim, self._text_encoder = feature.config.dim, HASHED_WORDS
                self._hasher = TextHasher(self._dim)
            case "vector":
                longest = f"SELECT coalesce(max(len({feature.column})), 1) FROM {feature.table}"
                (self._dim,) = first_row(connection, longest)
            case _ if feature.multi_valued and feature.has_vocabulary:
                query = f"SELECT id FROM {vocabulary_table(feature.name)} ORDER BY index"
                self._vocabulary = connection.sql(query).to_arrow_table()["id"].combine_chunks()
        self._tf_idf = TfIdf(table_rows[feature.name]) if feature.config.weighting == "tf_idf" else None
        if self._tf_idf is not None:
            selected = ", ".join(f"{sql} AS {name}" for name, sql in self.selected.items())
            for batch in stream(connection, training_values(feature, selected), FIT_BATCH):
                self._tf_idf.fit(*self._bags_of(batch))

    @property
    def selected(self) -> dict[str, str]:
        """SQL of each column to encode, by its name, where the table that `join` names is joined.

        A history and an audience have none: they are cut out of flat arrays instead.
        """
        if self.input.kind in ("history", "audience"):
            return {}
        weights = {self.input.weights_column: self.input.weights_column} if self.input.weights else {}
        return {self.input.column: self._value} | weights

    @property
    def _value(self) -> str:
        column, buckets = self.input.column, self.input.config.hash_buckets
        if buckets is not None and self.input.multi_valued:
            return f"list_transform({column}, lambda x: {hashed_row('x', buckets)})"
        if buckets is not None:
            return f"coalesce({hashed_row(column, buckets)}, 0)"
        if self.input.has_vocabulary and not self.input.multi_valued:
            return f"coalesce(lookup_{self.input.name}.index, 0)"
        if self.input.config.encoder is not None:
            return f"lookup_{self.input.name}.index"
        return column

    @property
    def join(self) -> str:
        """SQL that joins the vocabulary, or the indices of texts, where there are such."""
        name, column = f"lookup_{self.input.name}", self.input.column
        if self.input.config.encoder is not None:
            table = self._texts.table
        elif self.input.has_vocabulary and not self.input.multi_valued:
            table = vocabulary_table(self.input.name)
        else:
            return ""
        return f"LEFT JOIN {table} AS {name} ON {name}.id = {column}"

    def encode(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        """The contract's columns of a batch of those that `selected` names."""
        if not self.selected:
            return {}
        if not self.input.weights:
            return {self.input.name: self._encoded(batch[self.input.column])}
        rows, weights, offsets = self._bags_of(batch)
        if self._tf_idf is not None:
            rows, weights, offsets = self._tf_idf(rows, weights, offsets)
        return {
            self.input.name: lists_of(offsets, pa.array(rows)),
            weight_column(self.input.name): lists_of(offsets, pa.array(weights.astype(np.float32))),
        }

    def _bags_of(self, batch: pa.RecordBatch) -> Bags:
        values, weights = batch[self.input.column], batch[self.input.weights_column]
        rows = self._table_rows_of(values.flatten()).to_numpy()
        return rows, weights.flatten().to_numpy(zero_copy_only=False), list_offsets(values)

    def _encoded(self, column: pa.Array) -> pa.Array:
        match self.input.kind:
            case "numeric":
                values = pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False)
                self._moments.update(values)
                return pa.array(values, pa.float32())
            case "text" if self.input.config.encoder is not None:
                return fixed_size_lists(self._texts(column))
            case "text":
                return fixed_size_lists(self._hasher(column.to_pylist()).astype(self.input.config.dtype))
            case "vector":
                vectors = np.zeros((len(column), self._dim), self.input.config.dtype)
                present = pc.is_valid(column).to_numpy(zero_copy_only=False)
                vectors[present] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self._dim)
                return fixed_size_lists(vectors)
            case _ if self.input.multi_valued:
                return lists_of(list_offsets(column), self._table_rows_of(column.flatten()))
            case _:
                return column.cast(pa.int32())

    def _table_rows_of(self, values: pa.Array) -> pa.Array:
        """Rows of the values of lists: the engine has hashed them already, or the vocabulary knows them, else 0."""
        if self.input.hashed:
            return values.cast(pa.int32())
        positions = pc.fill_null(pc.index_in(values, value_set=self._vocabulary), -1)
        return pc.add(positions, pa.scalar(1, pa.int32()))

    def feature(self) -> Feature:
        """The schema's entry, once every batch has been encoded."""
        config, table = self.input.config, self._table_input.name
        entry = partial(Feature, self.input.name, self.input.side, per_event=self.input.per_event)
        match self.input.kind:
            case "numeric":
                return entry("numeric", log1p=config.log1p, mean=self._moments.mean, std=self._moments.std)
            case "text" | "vector":
                return entry("vector", dim=self._dim, dtype=cast(VectorType, config.dtype), encoder=self._text_encoder)
        sparse = partial(entry, table=table, num_embeddings=self._table_rows[table], hashed=self._table_input.hashed)
        match self.input.kind:
            case "id":
                return sparse("id")
            case "history" | "audience" as kind:
                return sparse(kind, length=config.length)
            case _ if self.input.multi_valued:
                weighted = bool(self.input.weights)
                return sparse("categorical", multi_valued=True, weighted=weighted, length=config.max_values)
            case _:
                return sparse("categorical")
