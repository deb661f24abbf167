"""A prepared folder damaged at random is refused with one message, or read as it was: never misread, never a crash.

What may differ unnoticed are the floats of the catalogue, which nobody wants to read whole at every start, and what no
reader looks at.

    FUZZ_CASES=5000 FUZZ_FIRST=1000 pytest tests/test_fuzz_prepared.py      # for longer
"""

import json
import multiprocessing
import os
import random
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.damage import damage
from tests.shop import IDS, candidate, query
from trainer.config import GeneratedConfig, ModelConfig, PrepareConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.events import TrainingReader
from trainer.data.order import TrainingOrder
from trainer.data.row_groups import open_events
from trainer.data.schema import read_schema
from trainer.errors import UserError
from trainer.prepare import prepare

CASES, FIRST = int(os.environ.get("FUZZ_CASES", "60")), int(os.environ.get("FUZZ_FIRST", "0"))


def everything(folder: Path) -> list:
    """All that training and evaluation read of a folder, but for the catalogue's floats."""
    schema = read_schema(folder)
    catalog = Catalog(folder, schema)
    assembler = BatchAssembler(schema, schema.features, catalog, ModelConfig())
    files = open_events(folder, schema, "train", assembler.columns("event"))
    order = TrainingOrder(files.sizes, 100, 4, 0)
    read: list = [files.sizes, schema.num_events, schema.fingerprint, [f.name for f in schema.features]]
    for batch in islice(TrainingReader(files, "event", assembler, order, 0, 1).batches(0), order.steps(1)):
        read += [batch.sparse_features.values().tolist(), batch.item_row.tolist(), batch.query_dense.tolist()]
        read += [batch.train_share.tolist(), batch.positive.tolist()]
    for split in ("validation", "test"):
        rows = open_events(folder, schema, split)
        read += [rows.read(group).to_pydict() for group in range(len(rows.sizes))]
    read.append(catalog.raw_ids(np.arange(len(catalog))).to_pylist())
    return json.loads(json.dumps(read))


def outcome(folder: str) -> str | list:
    """What a user would see."""
    try:
        return everything(Path(folder))
    except UserError as error:
        return str(error)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "sound"
    features = IDS | {"age": query("numeric"), "category": candidate("categorical"), "tags": candidate("categorical"),
                      "title": candidate("text", dim=8)}  # fmt: skip
    config = GeneratedConfig(dir=str(folder), features=features, users=100, items=200, row_group_size=500)
    prepare(PrepareConfig(data=config))
    return folder


def test_a_damaged_folder_is_refused_or_read_as_it_was(sound: Path, tmp_path: Path) -> None:
    expected = everything(sound)
    files = [path for path in sorted(sound.rglob("*")) if path.is_file() and "vocabulary" not in path.parts]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    refused = 0
    with ProcessPoolExecutor(1, context) as pool:  # a crash breaks it, and so is an error here
        for case in range(FIRST, FIRST + CASES):
            rng = random.Random(case)
            folder = shutil.copytree(sound, tmp_path / f"case-{case}")
            spoiled = folder / rng.choice(files).relative_to(sound)
            spoiled.write_bytes(damage(spoiled.read_bytes(), rng))
            found = pool.submit(outcome, str(folder)).result(timeout=60)
            refused += isinstance(found, str)
            assert isinstance(found, str) or found == expected, f"case {case}: {spoiled.name} is misread"
            shutil.rmtree(folder)
    assert refused > 0.5 * CASES


def test_the_check_would_see_a_misreading(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "case")
    schema = replace(read_schema(folder), fingerprint="another")
    (folder / "schema.json").write_text(schema.to_json())
    assert outcome(str(folder)) != everything(sound)
    with pa.memory_map(str(folder / "catalog.arrow")) as file:
        assert pa.ipc.open_file(file).num_record_batches == 1
