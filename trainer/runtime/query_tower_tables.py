"""Which tables of a run go into the file of its query tower, what they take, and their rows and ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from trainer.config import ServedTowerConfig
from trainer.data.schema import Feature
from trainer.data.table_ids import TableIds
from trainer.errors import UserError
from trainer.model.query_program import Table, int8_rows
from trainer.model.two_tower import make_model
from trainer.runtime.loading import SavedRun
from trainer.runtime.saved_table import SavedTable

# R rows, D embedding dim

_BYTES_AN_ID = 100
"""Of a vocabulary in a serving process: an entry of a dict, and the id."""
_STRETCH = 100_000
"""Rows read at a time, so that what is to be int8 is never whole in float32."""
_ITEMS = "embeddings of all items"


class QueryTowerTables:
    """Tables of the query's features.

    Args:
        run: whose they are.
        settings: of the command.

    Attributes:
        features: of the query, in the tower's order.
        sees_events: whether an encoder sees the embeddings of a history's items, in place of rows of a table.
        inside: a feature of each table inside, by the table's name.
        outside: features whose rows are inputs.

    Raises:
        UserError: `without` names no table that can stay outside, or what is inside would be too large.
    """

    def __init__(self, run: SavedRun, settings: ServedTowerConfig) -> None:
        model = make_model(run.schema, run.assembler.features, run.config)
        self._run, self._settings = run, settings
        self.features = [feature for feature in run.assembler.features if feature.side == "query"]
        self.sees_events = model.history_name is not None
        looked_up = [f for f in self.features if f.is_sparse and f.name != model.history_name]
        _check_without(settings.without, looked_up)
        self.outside = [feature for feature in looked_up if feature.table in settings.without]
        self.inside = {feature.table: feature for feature in looked_up if feature not in self.outside}
        self.hashed = [f for f in looked_up if f.hashed and f.table in self.inside and f.kind != "history"]
        """Features inside of which rows alone are known, and not what was hashed to them."""
        widths = {table.name: table.embedding_dim for table in model.embeddings.embedding_bag_configs()}
        self._shapes = {table: (feature.num_embeddings, widths[table]) for table, feature in self.inside.items()}
        if self.sees_events:
            self._shapes[_ITEMS] = (run.schema.num_items + 1, run.config.model.embedding_dim)
        self._check_size()

    def tables(self) -> dict[str, Table]:
        """Those inside, whole, by name."""
        return {name: self.table(SavedTable(self._run.checkpoint, name)) for name in self.inside}

    def table(self, rows_RD: Tensor | SavedTable) -> Table:
        """Rows in the type that is asked for."""
        num_rows = len(rows_RD) if isinstance(rows_RD, Tensor) else rows_RD.num_rows
        stretches = [range(start, min(start + _STRETCH, num_rows)) for start in range(0, num_rows, _STRETCH)]
        read = (rows_RD[r.start : r.stop] if isinstance(rows_RD, Tensor) else rows_RD.read(r) for r in stretches)
        if self._settings.dtype == "float32":
            return Table(torch.cat([*read]))
        rows, scales = zip(*map(int8_rows, read), strict=True)
        return Table(torch.cat(rows), torch.cat(scales))

    def rows(self, table: str, rows: Sequence[int]) -> Tensor:
        """Single rows of a table, inside or outside: float32 [R, D]."""
        saved = SavedTable(self._run.checkpoint, table)
        return torch.cat([saved.read(range(row, row + 1)) for row in rows])

    def ids(self) -> dict[str, dict[str, Any]]:
        """Type and ids of the tables inside that have a vocabulary, as serving.vocabulary has them."""
        found = {name: TableIds(self._run.data_dir, self._run.schema, name) for name, feature in self.inside.items()
                 if not feature.hashed}  # fmt: skip
        return {name: _vocabulary(ids.of(range(1, ids.num_rows))) for name, ids in found.items()}

    def item_ids(self) -> dict[str, Any]:
        """Likewise of the catalogue."""
        return _vocabulary(self._run.catalog.raw_ids(np.arange(self._run.schema.num_items)))

    def _check_size(self) -> None:
        taken = self._sizes(self._settings.dtype)
        if sum(taken.values()) <= self._settings.max_gb * 1e9:
            return
        told = ", ".join(f"{table} {_gb(size)}" for table, size in sorted(taken.items(), key=lambda entry: -entry[1]))
        remedies = []
        if self._settings.dtype == "float32":
            remedies.append(f"set tower.dtype=int8, which takes {_gb(sum(self._sizes('int8').values()))}")
        single = [table for table, feature in self.inside.items() if not feature.is_list]
        if single:
            table = max(single, key=lambda name: taken[name])
            without = ",".join([*self._settings.without, table])
            remedies.append(f"set tower.without=[{without}] and serve {table} from a key-value store, filled by "
                            f"trainer.export export.side=table export.table={table}")  # fmt: skip
        raise UserError("tower.max_gb", self._settings.max_gb,
                        f"room for tables and ids, which take {_gb(sum(taken.values()))} ({told})",
                        "; or ".join([*remedies, "raise tower.max_gb"]))  # fmt: skip

    def _sizes(self, dtype: str) -> dict[str, int]:
        """Bytes by table."""
        return {
            table: rows * ((4 * width if dtype == "float32" else width + 4) + _BYTES_AN_ID * self._has_ids(table))
            for table, (rows, width) in self._shapes.items()
        }

    def _has_ids(self, table: str) -> bool:
        return table == _ITEMS or not self.inside[table].hashed


def _vocabulary(ids: pa.Array) -> dict[str, Any]:
    return {"kind": "int64" if pa.types.is_integer(ids.type) else "string", "ids": ids.to_pylist()}


def _check_without(tables: list[str], looked_up: list[Feature]) -> None:
    for table in tables:
        sharing = [feature for feature in looked_up if feature.table == table]
        if not sharing or any(feature.is_list for feature in sharing):
            single = {f.table for f in looked_up} - {f.table for f in looked_up if f.is_list}
            raise UserError("tower.without", table, f"tables of which a query looks up one row: {sorted(single)}",
                            "correct or remove it; tower.dtype=int8 makes those inside smaller")  # fmt: skip


def _gb(size: float) -> str:
    return f"{size / 1e9:,.3g} GB"
