import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.prepared import FEATURES, ITEMS, ROWS, SCHEMA
from tests.ranks import RankPool
from tests.training import config, metrics, sharded_model, write_checkpoint
from trainer.config import CheckpointConfig, EmbeddingExportConfig, ExportConfig, HistoryConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.schema import SEEN, TARGETS
from trainer.runtime import checkpoint
from trainer.runtime.loading import SavedRun
from trainer.runtime.processes import Processes
from trainer.runtime.shard_files import write_shards
from trainer.runtime.shards import ItemShards, QueryShards

INTERESTS = 3


def exported(processes: Processes, folder: Path, run_dir: Path) -> dict[str, float]:
    settings = config()
    settings.model.history = HistoryConfig(encoder="attention", interests=INTERESTS, dropout=0.0)
    model = sharded_model(processes, settings).eval()
    catalog = Catalog(folder, SCHEMA)
    assembler = BatchAssembler(SCHEMA, FEATURES, catalog, settings.model)
    path = run_dir / "checkpoints" / checkpoint.name(0)
    write_checkpoint(model, path)
    run = SavedRun(settings, SCHEMA, SCHEMA, str(folder), path, catalog, assembler)
    for side, shards in (("item", ItemShards), ("query", QueryShards)):
        export = EmbeddingExportConfig(side=side, rows_per_shard=25, batch_size_per_rank=16)
        asked = ExportConfig(CheckpointConfig(dir=str(run_dir)), export)
        write_shards(shards(run, asked), run, asked, processes)
    return metrics(processes, folder, model, settings)


def test_exported_interests_reproduce_the_metrics(ranks: RankPool, prepared: Path, tmp_path: Path) -> None:
    """The best of a query's rows, multiplied and sorted in numpy, gives what evaluation says."""
    told = ranks.run(2, exported, prepared, tmp_path)[0]
    items, queries = (pq.read_table(tmp_path / f"{side}_embeddings") for side in ("item", "query"))
    events = pq.read_table(prepared / "events" / "test").to_pylist()
    assert queries.column_names == ["user_id", "row", "interest", "target_item_ids", "embedding"]
    assert queries["row"].to_pylist() == [row for row in range(ROWS["test"]) for _ in range(INTERESTS)]
    assert queries["interest"].to_pylist() == [*range(INTERESTS)] * ROWS["test"]
    assert queries["user_id"].to_pylist() == [event["raw_user_id"] for event in events for _ in range(INTERESTS)]
    named = [[f"item-{row}" for row in event[TARGETS]] for event in events for _ in range(INTERESTS)]
    assert queries["target_item_ids"].to_pylist() == named
    manifest = json.loads((tmp_path / "query_embeddings" / "_manifest.json").read_text())
    assert (manifest["interests"], manifest["num_rows"]) == (INTERESTS, INTERESTS * ROWS["test"])
    assert [shard["num_rows"] for shard in manifest["shards"]] == [75, 75, 30]

    item_ND, query_QD = (np.stack(table["embedding"].to_numpy(zero_copy_only=False)) for table in (items, queries))
    score_QKN = (query_QD @ item_ND.T).reshape(ROWS["test"], INTERESTS, ITEMS)
    assert len(np.unique(score_QKN.argmax(1))) == INTERESTS, "one interest is best for all"
    for k in (1, 5, 10):
        found = []
        for event, scores in zip(events, score_QKN.max(1), strict=True):
            left_out = set(event[SEEN]) - set(event[TARGETS])
            listed = [item for item in np.argsort(-scores) if item not in left_out]
            found.append(len(set(listed[:k]) & set(event[TARGETS])) / len(event[TARGETS]))
        assert told[f"recall@{k}"] == pytest.approx(np.mean(found))
