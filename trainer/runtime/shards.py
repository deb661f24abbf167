"""What is exported, stretch by stretch: embeddings of the catalogue, of a split's queries, or the rows of a table."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.config import ExportConfig
from trainer.data.contract import list_parts
from trainer.data.events import HeldOutReader
from trainer.data.item_digests import item_digests
from trainer.data.lists import lists_of
from trainer.data.row_groups import one_array, open_events
from trainer.data.schema import RAW_ITEM_ID, RAW_USER_ID, TARGETS
from trainer.data.shares import steps_of_all
from trainer.data.table_ids import TableIds
from trainer.errors import UserError
from trainer.runtime.fingerprint import digest
from trainer.runtime.in_place import load_in_place
from trainer.runtime.loading import SavedRun, refuse_damaged
from trainer.runtime.processes import Processes
from trainer.runtime.saved_table import SavedTable


class Shards(Protocol):
    """Rows, each with an embedding or several.

    Attributes:
        folder: name of the folder for them.
        told: what they are, in words.
        num_rows: of all.
        interests: embeddings of each row.
        dimension: of each embedding.
        columns: what says whose embeddings they are, with the type of each.
        facts: what else the manifest tells.
        data_fingerprint: SHA-256 of what is known of the data that the rows are made from.
    """

    folder: str
    told: str
    num_rows: int
    interests: int
    dimension: int
    columns: Mapping[str, str]
    facts: dict[str, Any]
    data_fingerprint: str

    def load(self, processes: Processes) -> None:
        """Loads what the embeddings are made of, unless it is there; all processes of the group together."""
        ...

    def identity(self, rows: range) -> dict[str, pa.Array]:
        """`columns`, with a value for each embedding."""
        ...

    def embeddings(self, rows: range) -> Iterator[Tensor]:
        """float32 [embeddings, D] bit by bit."""
        ...


class _Embedded:
    """Rows that go through the model's towers."""

    def __init__(self, run: SavedRun, config: ExportConfig, interests: int) -> None:
        side = config.export.side
        self._run, self._batch_size = run, config.export.batch_size_per_rank
        self._model: nn.Module | None = None
        self.folder, self.told, self.interests = f"{side}_embeddings", f"{side} embeddings", interests
        self.dimension = run.config.model.embedding_dim
        self.facts: dict[str, Any] = {
            "split": config.export.split if side == "query" else None,
            "metric": "inner_product",
            "normalized": run.config.model.normalize,
            "interests": interests,
        }

    def load(self, processes: Processes) -> None:
        """The model, all but its tables."""
        if self._model is None:
            self._model, self._device = load_in_place(self._run, processes.device), processes.device


class ItemShards(_Embedded):
    """The whole catalogue, in its order, with digests of what the model sees of each item.

    Args:
        run: whose they are.
        config: of the export.
        catalog_rows: where it is not the whole catalogue.
    """

    def __init__(self, run: SavedRun, config: ExportConfig, catalog_rows: NDArray[np.int64] | None = None) -> None:
        super().__init__(run, config, interests=1)
        self._chosen = catalog_rows
        self.num_rows = run.schema.num_items if catalog_rows is None else len(catalog_rows)
        self.columns: Mapping[str, str] = {"item_id": run.schema.item_id_type, "digest": "int64"}
        self._features = features = [feature for feature in run.assembler.features if feature.side == "candidate"]
        read = {RAW_ITEM_ID, *(f.name for f in features), *(f.weight_column for f in features if f.weighted)}
        checksums = {name: crc for name, crc in run.catalog.checksums().items() if name in read}
        self.data_fingerprint = digest(run.schema.fingerprint, checksums)

    def identity(self, rows: range) -> dict[str, pa.Array]:
        """The user's own ids, and the digests."""
        here, catalog = self._here(rows), self._run.catalog
        return {"item_id": catalog.raw_ids(here), "digest": pa.array(item_digests(catalog, self._features, here))}

    @torch.no_grad()
    def embeddings(self, rows: range) -> Iterator[Tensor]:
        """Through the item tower."""
        assert self._model is not None
        for start in range(rows.start, rows.stop, self._batch_size):
            here = self._here(range(start, min(start + self._batch_size, rows.stop)))
            _, item_UD = self._model(self._run.assembler.candidate_batch(here).to(self._device))
            yield item_UD

    def _here(self, rows: range) -> NDArray[np.int64]:
        return np.arange(rows.start, rows.stop) if self._chosen is None else self._chosen[rows.start : rows.stop]


class QueryShards(_Embedded):
    """The queries of a held-out split, in its order.

    Raises:
        UserError: it has none.
    """

    def __init__(self, run: SavedRun, config: ExportConfig) -> None:
        super().__init__(run, config, run.config.model.history.interests)
        split = config.export.split
        self._files = open_events(run.data_dir, run.schema, split)
        self._identities = open_events(run.data_dir, run.schema, split, [RAW_USER_ID, TARGETS])
        self.num_rows = self._files.num_rows
        if not self.num_rows:
            raise UserError("export.split", split, "a split with queries", "prepare the data with one")
        self.columns: Mapping[str, str] = {
            "user_id": run.schema.user_id_type,
            "row": "int64",
            **({"interest": "int64"} if self.interests > 1 else {}),
            "target_item_ids": f"list<{run.schema.item_id_type}>",
        }
        parts = {path: crc for path, crc in run.schema.footers.items() if path.startswith(f"events/{split}/")}
        self.data_fingerprint = digest(run.schema.fingerprint, run.catalog.checksums(), parts)

    def identity(self, rows: range) -> dict[str, pa.Array]:
        """Of each query in turn, its interests."""
        events = pa.concat_tables(self._identities.batches(rows.start, rows.stop, len(rows)))
        targets, offsets = list_parts(one_array(events, TARGETS))
        query = pa.array(np.repeat(np.arange(len(rows)), self.interests))
        columns = {
            "user_id": one_array(events, RAW_USER_ID).take(query),
            "row": pa.array(np.arange(rows.start, rows.stop)).take(query),
            "interest": pa.array(np.tile(np.arange(self.interests), len(rows))),
            "target_item_ids": lists_of(offsets, self._run.catalog.raw_ids(targets.to_numpy())).take(query),
        }
        return {name: columns[name] for name in self.columns}

    @torch.no_grad()
    def embeddings(self, rows: range) -> Iterator[Tensor]:
        """Through the query tower."""
        assert self._model is not None
        steps = steps_of_all(len(rows), self._batch_size)
        for batch in HeldOutReader(self._files, self._run.assembler, self._batch_size, rows, steps):
            query_BD, _ = self._model(batch.batch.to(self._device))
            yield query_BD[: int((batch.row >= 0).sum())].reshape(-1, query_BD.shape[-1])


class TableShards:
    """The rows of an embedding table, from the out-of-vocabulary row 0 on.

    Raises:
        UserError: there is no such table, or its checkpoint or its vocabulary cannot be read.
    """

    interests = 1

    def __init__(self, run: SavedRun, config: ExportConfig) -> None:
        table = config.export.table
        assert table is not None, "check_export_config"
        self._path, self._saved = run.checkpoint, SavedTable(run.checkpoint, table)
        self._ids = TableIds(run.data_dir, run.schema, table)
        self.folder, self.told, self.num_rows = f"table_{table}", f"rows of table {table}", self._saved.num_rows
        self.dimension = self._saved.dim
        self.columns: Mapping[str, str] = {self._ids.column: self._ids.type}
        self.facts, self.data_fingerprint = {"table": table, "metric": None}, digest(run.schema.fingerprint)
        if self._ids.column in ("embedding", "scale"):
            raise UserError("export.table", table, "a table of another name than the columns of its embeddings",
                            "prepare the data with another name for that feature")  # fmt: skip
        assert self.num_rows == self._ids.num_rows, "a checkpoint of another schema"

    def load(self, processes: Processes) -> None:
        """Nothing, for each process reads the files; these must be as they were written."""
        refuse_damaged(self._path)

    def identity(self, rows: range) -> dict[str, pa.Array]:
        """The user's own ids, or the buckets to which they are hashed."""
        return {self._ids.column: self._ids.of(rows)}

    def embeddings(self, rows: range) -> Iterator[Tensor]:
        """As they are in the checkpoint."""
        yield self._saved.read(rows)


def named(shards: Shards, row: int) -> str:
    """A row, by its number and the first of the columns that say whose it is."""
    name, ids = next(iter(shards.identity(range(row, row + 1)).items()))
    return f"row {row}, {name} {ids[0]},"
