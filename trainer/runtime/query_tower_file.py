"""The query tower of a trained model as one file of torch.export, with all that serves it: see serving/query_tower.py.

It is written beside its place, loaded as a server would, compared with the model, and renamed.
"""

import copy
import io
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from trainer.config import QueryTowerConfig
from trainer.model.query_program import QueryProgram, exported
from trainer.runtime.embedding import embed_catalogue
from trainer.runtime.fingerprint import model_fingerprint
from trainer.runtime.held_out_queries import HeldOutQueries, difference, latency
from trainer.runtime.loading import SavedRun
from trainer.runtime.processes import Processes
from trainer.runtime.query_tower_tables import QueryTowerTables
from trainer.runtime.whole_files import removed_unless_whole
from trainer.serving.query_tower import FACTS, ITEMS, SCHEMA, VERSION, VOCABULARIES, QueryTower

BATCH = 1024
"""Rows that a rank embeds at a time."""
_FILE, _PARTIAL = "query_tower.pt2", "query_tower.partial.pt2"  # torch.export wants the suffix


class QueryTowerFile:
    """RUN/query_tower.pt2.

    Args:
        run: whose tower it is.
        config: of the command.

    Raises:
        UserError: `without` names no table that can stay outside, what is inside would be too large, or the split has
            no rows.
    """

    def __init__(self, run: SavedRun, config: QueryTowerConfig) -> None:
        self._run, self._settings, self._path = run, config.tower, Path(config.run.dir) / _FILE
        self._tables = QueryTowerTables(run, config.tower)
        encoder = run.config.model.history.encoder
        self._has_ages = self._tables.sees_events and run.schema.timestamps and encoder in ("attention", "transformer")
        self._held_out = HeldOutQueries(run, config.tower.split)

    def write(self, model: DistributedModelParallel, processes: Processes) -> list[str]:
        """Writes the file; all ranks together, since embedding items and queries is an exchange.

        Args:
            model: the run's, in evaluation mode.
            processes: this process's place.

        Returns:
            Lines that tell of it, on the first rank.

        Raises:
            UserError: the file's embeddings are not those of the model.
        """
        item_UD = None
        if self._tables.sees_events:
            item_UD = embed_catalogue(model, self._run.assembler, self._run.schema.num_items, BATCH, processes)
        expected = self._held_out.embed(model, processes.device)
        told = self._write(model.module, item_UD, expected) if processes.is_first else []
        dist.barrier()
        return told

    def _write(self, model: Any, item_UD: Tensor | None, expected: Tensor) -> list[str]:
        known, facts = self._tables.ids(), self._facts()
        files = {FACTS: json.dumps(facts), SCHEMA: self._run.schema.to_json(), VOCABULARIES: json.dumps(known)}
        if item_UD is not None:
            files[ITEMS] = json.dumps(self._tables.item_ids())
        ids = {table: entry["ids"] for table, entry in known.items()}
        partial = self._path.with_name(_PARTIAL)
        try:
            # into memory first: PyTorch's own file ends the process where there is no room for it
            content = io.BytesIO()
            torch.export.save(exported(self._program(model, item_UD)), content, extra_files=files)
            with removed_unless_whole(partial, self._path):
                partial.write_bytes(content.getbuffer())
            del content
            tower = QueryTower(partial)
            queries = self._held_out.raw(self._tables.features, ids, self._has_ages)
            found = tower.run(tower.encode(queries) | self._inputs_without_ids())
            furthest = difference(found, expected, self._settings.dtype)
            measured = latency(tower, queries)
            partial.rename(self._path)
        finally:
            partial.unlink(missing_ok=True)
        return [
            f"query tower of checkpoint {self._run.checkpoint.name} written to {self._path}: "
            f"{self._path.stat().st_size / 1e6:,.1f} MB, fingerprint {facts['fingerprint']}",
            f"largest difference from the model over {len(found)} queries of {self._settings.split}: {furthest:.1e}",
            *measured,
        ]

    def _program(self, model: Any, item_UD: Tensor | None) -> QueryProgram:
        tower, encoder = (copy.deepcopy(part) for part in (model.query_tower, model.encoder))
        items = None if item_UD is None else self._tables.table(item_UD)
        program = QueryProgram(self._tables.features, self._tables.tables(), items, tower, encoder, self._has_ages)
        return program.cpu()

    def _inputs_without_ids(self) -> dict[str, Tensor]:
        """Of the held-out queries, what hashed ids and tables outside are given: their rows are all that is known."""
        inputs = self._held_out.rows([*self._tables.hashed, *self._tables.outside])
        for feature in self._tables.outside:
            inputs[feature.name] = self._tables.rows(feature.table, inputs[feature.name].tolist())
        return inputs

    def _facts(self) -> dict[str, Any]:
        model = self._run.config.model
        return {
            "fingerprint": model_fingerprint(self._run),
            "version": VERSION,
            "torch": torch.__version__.split("+")[0],
            "checkpoint": self._run.checkpoint.name,
            "features": [feature.name for feature in self._tables.features],
            "has_ages": self._has_ages,
            "outside": {f.name: self._tables.rows(f.table, [0])[0].tolist() for f in self._tables.outside},
            "dimension": model.embedding_dim,
            "interests": model.history.interests,
            "metric": "inner_product",
            "normalized": model.normalize,
            "dtype": self._settings.dtype,
        }
