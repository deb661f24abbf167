"""Whose rows an embedding table has: the user's own ids, by row."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.data.row_groups import one_array, open_vocabulary
from trainer.data.schema import Schema
from trainer.errors import UserError


class TableIds:
    """Ids of the rows of a table that has a vocabulary, or numbers of one that is hashed.

    Args:
        data_dir: prepared folder.
        schema: of that folder.
        table: one of its embedding tables.

    Raises:
        UserError: the table's vocabulary is missing, cannot be read, or is not the one of the schema.
    """

    def __init__(self, data_dir: str | Path, schema: Schema, table: str) -> None:
        feature = next(feature for feature in schema.features if feature.table == table)
        self.num_rows = feature.num_embeddings
        self.column = "bucket" if feature.hashed else table
        """`bucket` where the table is hashed, else the table's name."""
        self._vocabulary = None if feature.hashed else open_vocabulary(data_dir, schema, feature)
        kind = pa.int64() if self._vocabulary is None else self._vocabulary.kind("id")
        self.type = "string" if pa.types.is_large_string(kind) else str(kind)
        self._path = Path(data_dir) / "vocabulary" / f"{table}.parquet"

    def of(self, rows: range) -> pa.Array:
        """Int64 or string, as the user's ids are: null for row 0, which is everybody's whom the vocabulary lacks.

        Of a hashed table, the row itself, int64: that to which values are hashed, and 0 for those that are missing.

        Raises:
            UserError: a part of the vocabulary cannot be read or does not number its ids from 1 on.
        """
        if self._vocabulary is None:
            return pa.array(np.arange(rows.start, rows.stop))
        known = range(max(rows.start, 1), rows.stop)
        batches = self._vocabulary.batches(known.start - 1, known.stop - 1, len(known)) if known else ()
        kind = self._vocabulary.kind("id")
        result = [pa.nulls(len(rows) - len(known), kind)]
        for table in batches:  # one at most
            if not np.array_equal(one_array(table, "index").to_numpy(), np.arange(known.start, known.stop)):
                raise UserError(f"{self._path} column index", f"others than {known.start} to {known.stop - 1}",
                                "1, 2, 3, ... in the order of the rows", "take back the file as it was")  # fmt: skip
            result.append(one_array(table, "id"))
        ids = pa.concat_arrays(result)
        return ids.cast(pa.string()) if pa.types.is_large_string(kind) else ids
