"""From what the engine gives for a feature to the column the contract asks for."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainer.data.engine import Connection, first_row
from trainer.data.inputs import Input
from trainer.data.moments import Moments
from trainer.data.schema import Feature
from trainer.data.text import TextHasher
from trainer.data.vocabulary import encode_lists, vocabulary_table


class ColumnEncoder:
    """Encodes one feature's column batch by batch, and in passing takes the statistics the schema has of it."""

    def __init__(self, connection: Connection, feature: Input, item_table: str, table_rows: dict[str, int]) -> None:
        self.input = feature
        self.moments = Moments(feature.config.log1p)
        self.table = item_table if feature.kind == "history" else feature.name
        self._table_rows = table_rows
        match feature.kind:
            case "text":
                self.dim = feature.config.dim
                self._hasher = TextHasher(self.dim)
            case "vector":
                table = "catalog" if feature.side == "candidate" else feature.relation.replace("source", "read")
                (self.dim,) = first_row(connection, f"SELECT coalesce(max(len({feature.column})), 1) FROM {table}")
            case _ if feature.multi_valued:
                query = f"SELECT id FROM {vocabulary_table(feature.name)} ORDER BY index"
                self._vocabulary = connection.sql(query).to_arrow_table()["id"].combine_chunks()

    @property
    def is_stored(self) -> bool:
        """Whether the files have a column of this name; a history is cut out of the flat array instead."""
        return self.input.kind != "history"

    @property
    def select(self) -> str:
        """SQL of the value, where the table that `join` names is joined."""
        if self.input.has_vocabulary and not self.input.multi_valued:
            return f"coalesce(lookup_{self.input.name}.index, 0) AS {self.input.column}"
        return self.input.column

    @property
    def join(self) -> str:
        """SQL that joins the vocabulary, where there is one to join."""
        if not self.input.has_vocabulary or self.input.multi_valued:
            return ""
        name, column = f"lookup_{self.input.name}", self.input.column
        return f"LEFT JOIN {vocabulary_table(self.input.name)} AS {name} ON {name}.id = {column}"

    def encode(self, column: pa.Array) -> pa.Array:
        """The contract's column of a batch."""
        match self.input.kind:
            case "numeric":
                values = pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False)
                self.moments.update(values)
                return pa.array(values, pa.float32())
            case "text":
                return _fixed_size_lists(self._hasher(column.to_pylist()))
            case "vector":
                vectors = np.zeros((len(column), self.dim), np.float32)
                present = pc.is_valid(column).to_numpy(zero_copy_only=False)
                vectors[present] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)
                return _fixed_size_lists(vectors)
            case _ if self.input.multi_valued:
                return encode_lists(column, self._vocabulary)
            case _:
                return column.cast(pa.int32())

    def feature(self) -> Feature:
        """The schema's entry, once every batch has been encoded."""
        name, side, kind = self.input.name, self.input.side, self.input.kind
        match kind:
            case "numeric":
                log1p = self.input.config.log1p
                return Feature(name, side, kind, log1p=log1p, mean=self.moments.mean, std=self.moments.std)
            case "text" | "vector":
                return Feature(name, side, "vector", dim=self.dim)
            case "id" | "history":
                return Feature(name, side, kind, table=self.table, num_embeddings=self._table_rows[self.table])
            case _:
                return Feature(name, side, "categorical", table=name, num_embeddings=self._table_rows[name],
                               multi_valued=self.input.multi_valued)  # fmt: skip


def _fixed_size_lists(vectors: NDArray[np.float32]) -> pa.Array:
    """float32 [rows, dim] as a column of fixed-size lists."""
    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), vectors.shape[1])
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind)
