"""The README's commands on the real MovieLens 100K, and its figures worked out anew from u.data."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.commands import REPOSITORY
from tests.forked import succeed

SOURCE = REPOSITORY.parent / "shared" / "data" / "ml-100k"


@pytest.mark.slow
@pytest.mark.skipif(not SOURCE.is_dir(), reason=f"MovieLens 100K is not in {SOURCE}; its licence forbids a copy here")
def test_metrics_follow_from_the_two_exports_and_the_raw_events(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    succeed("trainer.prepare", "data=movielens", f"data.source={SOURCE}", f"data.dir={data}")
    arguments = ("experiment=movielens_100k", "run.epochs=3")
    succeed("trainer.train", f"data.dir={data}", f"run.dir={run}", *arguments, ranks=2)
    succeed("trainer.evaluate", f"run.dir={run}", ranks=2)
    for side in ("item", "query"):
        succeed("trainer.export", f"run.dir={run}", f"export.side={side}", ranks=2)

    seen = defaultdict(list)
    for line in (SOURCE / "u.data").read_text().splitlines():
        user, item, _, timestamp = map(int, line.split("\t"))
        seen[user].append((timestamp, item))
    items, queries = (
        pq.read_table(sorted((run / f"{side}_embeddings").glob("part-*.parquet"))) for side in ("item", "query")
    )
    item_vectors, query_vectors = (np.stack(table["embedding"].to_numpy()) for table in (items, queries))
    row_of = {item: row for row, item in enumerate(items["item_id"].to_pylist())}
    ranks = []
    for query, user, (target,) in zip(
        query_vectors, queries["user_id"].to_pylist(), queries["target_item_ids"].to_pylist(), strict=True
    ):
        events = seen[user]
        assert (max(events)[0], target) in events  # the last event; several may share its second
        scores = item_vectors @ query
        left_out = [row_of[item] for _, item in events if item != target]
        ranks.append(1 + sum(np.delete(scores, [*left_out, row_of[target]]) >= scores[row_of[target]]))
    ranks = np.array(ranks)
    assert len(ranks) == 943 == len(seen)
    metrics = json.loads((run / "metrics.json").read_text())
    tolerance = 1.01 / len(ranks)  # one near-tie may fall the other way
    for k in (10, 100):
        assert metrics[f"test/recall@{k}"] == pytest.approx((ranks <= k).mean(), abs=tolerance)
        expected = ((ranks <= k) / np.log2(ranks + 1)).mean()
        assert metrics[f"test/ndcg@{k}"] == pytest.approx(expected, abs=tolerance)
    assert metrics["test/recall@10"] > 1.2 * metrics["test/popularity/recall@10"]
