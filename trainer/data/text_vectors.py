"""The vectors that a model makes of a feature's texts, each distinct text once."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from trainer.data.engine import Connection, first_row, stream
from trainer.data.inputs import Input
from trainer.data.prepared_files import regroup
from trainer.data.text_model import TextModel, find_model, model_name

CHUNK = 1 << 13  # texts that the model sorts by length together, so that its batches have little padding


class TextVectors:
    """Vectors of the rows of the engine's table texts_<feature>(id, index from 0), in a memory-mapped file.

    Args:
        connection: The engine, with the feature's texts; the table is made in it.
        feature: The feature.
        folder: For the file.

    Raises:
        UserError: the model cannot be loaded, or a vector is not finite.
    """

    def __init__(self, connection: Connection, feature: Input, folder: Path) -> None:
        where, self._dtype = f"data.features.{feature.name}.encoder", feature.config.dtype
        model_folder = find_model(where, feature.config.encoder or "")
        model = TextModel(where, model_folder)
        self.name, self.dim = model_name(model_folder), model.dim
        self.table = f"texts_{feature.name}"
        # A blank text has no vector. The order is total, so that the same texts are always encoded together.
        connection.execute(f"""
            CREATE TABLE {self.table} AS
            SELECT id, row_number() OVER (ORDER BY id) - 1 AS index
            FROM (SELECT DISTINCT {feature.column} AS id FROM {feature.table})
            WHERE regexp_matches(id, '\\S') ORDER BY index""")
        (count,) = first_row(connection, f"SELECT count(*) FROM {self.table}")
        self.note = f"feature {feature.name}: {count:,} distinct texts encoded"
        if model.max_tokens is not None:
            self.note += f", {model.max_tokens} tokens of each at most"
        # An empty file cannot be mapped.
        path, shape = folder / f"{self.table}.npy", (max(count, 1), self.dim)
        self._vectors = np.lib.format.open_memmap(path, mode="w+", dtype=self._dtype, shape=shape)
        texts = stream(connection, f"SELECT id FROM {self.table} ORDER BY index", CHUNK)
        with tqdm(total=count, desc=f"feature {feature.name}", unit="text") as progress:
            for batch in regroup(texts, CHUNK):
                vectors = model(batch["id"].to_pylist(), self._dtype)
                self._vectors[progress.n : progress.n + len(batch)] = vectors
                progress.update(len(batch))

    def __call__(self, index: pa.Array) -> NDArray[np.floating]:
        """[rows, dim] vectors of the texts with these indices, in the feature's dtype; zeros where an index is null."""
        present = index.is_valid().to_numpy(zero_copy_only=False)
        vectors = np.zeros((len(index), self.dim), self._dtype)
        vectors[present] = self._vectors[index.drop_null().to_numpy()]
        return vectors
