"""The query tower in service: features in, embeddings out, by torch alone.

    tower = QueryTower("RUN/query_tower.pt2")
    tower.embed([{"user_id": 17, "history": ["a", "b"]}])                # float32 [1, D]

The file is one of torch.export, which is unpickled: load only such as you have made. Beside the program it holds

    tower.json            checkpoint, fingerprint, features and how they are given
    schema.json           of the prepared folder
    vocabularies.json     ids of the tables inside, in the order of their rows from 1 on
    items.json            ids of the catalogue likewise, where an encoder sees the items of histories
"""

import json
import zipfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.data.schema import Schema
from trainer.errors import UserError
from trainer.serving.columns import Query
from trainer.serving.query_encoding import QueryEncoder
from trainer.serving.vocabulary import Hash, Rows, Vocabulary

VERSION = 1
FACTS, SCHEMA, VOCABULARIES, ITEMS = "tower.json", "schema.json", "vocabularies.json", "items.json"


class QueryTower:
    """A query tower, loaded.

    Args:
        path: of the file.

    Attributes:
        facts: checkpoint, fingerprint, features, dimension, metric, normalized, interests, dtype and others.
        schema: of the prepared folder.
        encode: queries to the inputs of the program, by name.

    Raises:
        UserError: there is no such file, or it is none of this version.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        program, files = _load(Path(path))
        self.facts: dict[str, Any] = json.loads(files[FACTS])
        self.schema = Schema.from_json(files[SCHEMA])
        by_name = {feature.name: feature for feature in self.schema.side("query")}
        features = [by_name[name] for name in self.facts["features"]]
        rows: dict[str, Rows] = {f.table: Hash(f.num_embeddings - 1) for f in features if f.is_sparse and f.hashed}
        rows |= {table: Vocabulary(**known) for table, known in json.loads(files[VOCABULARIES]).items()}
        items = Vocabulary(**json.loads(files[ITEMS])) if ITEMS in files else None
        self.encode = QueryEncoder(features, rows, items, self.facts["outside"], self.facts["has_ages"])
        self._program = program.module()

    def embed(self, queries: Sequence[Query]) -> Tensor:
        """Embeddings of B queries, float32 [B, D], or [B, K, D] for K interests.

        Args:
            queries: values by name of their feature, as JSON has them; see query_encoding.py.

        Raises:
            UserError: a ValueError, which names query, feature and value, and says what is expected.
        """
        if not queries:
            raise UserError("queries", "none", "one or more", "leave the call out")
        return self.run(self.encode(queries))

    @torch.inference_mode()
    def run(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embeddings of inputs that are encoded."""
        return self._program(inputs)


def _load(path: Path) -> tuple[torch.export.ExportedProgram, dict[str, str]]:
    """The program and the files beside it.

    Raises:
        UserError: see QueryTower.
    """
    if not path.is_file():
        raise UserError("path", path, "a file written by trainer.query_tower", "write it, or name another")
    here = torch.__version__.split("+")[0]
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            facts = json.loads(archive.read(next(name for name in archive.namelist() if name.endswith(f"/{FACTS}"))))
        made = facts["torch"]
        if facts["version"] != VERSION:
            raise KeyError(f"version {facts['version']}")
    except (zipfile.BadZipFile, StopIteration, ValueError, KeyError) as error:
        raise UserError("path", path, f"a whole query tower of version {VERSION} ({type(error).__name__}: {error})",
                        "write it anew with trainer.query_tower") from None  # fmt: skip
    files: dict[str, str] = {FACTS: ""}  # which load() fills with all there are
    try:
        return torch.export.load(path, extra_files=files), files
    except Exception as error:
        raise UserError("path", path, f"a program that torch {here} can read; torch {made} wrote it ({error})",
                        f"install torch {made}") from error  # fmt: skip
