"""What a report tells of a split, against plain Python over its rows."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.prepared import ITEMS, SCHEMA
from tests.ranks import RankPool
from trainer.config import EvaluationConfig, ModelConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.events import HeldOutReader
from trainer.data.row_groups import open_events
from trainer.data.schema import RAW_USER_ID, SEEN, TARGETS, TRAIN_COUNT, VALIDATION_COUNT
from trainer.data.shares import share_of_rank, steps_of_all
from trainer.data.slices import HeldOutLabels, check_slices, read_labels
from trainer.errors import UserError
from trainer.model.exposure import gini, popularity_percentile
from trainer.model.metrics import ranking_metrics, sliced_metrics
from trainer.runtime import report
from trainer.runtime.evaluation import evaluate_popularity
from trainer.runtime.processes import Processes

KS = [1, 5, 10]
ASKED = EvaluationConfig(k=KS, bootstrap=50, slices=["hour"])
Row = dict[str, Any]


@pytest.fixture(scope="module")
def data(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared folder, with unknown users and one of a long history, and a vocabulary of hours."""
    folder = tmp_path_factory.mktemp("slices") / "data"
    shutil.copytree(prepared, folder)
    for number, path in enumerate(sorted((folder / "events" / "test").glob("part-*"))):
        table = pq.read_table(path)
        rows = table.to_pylist()
        for row in rows:
            row["user_id"] *= row[RAW_USER_ID] % 5 > 0
            row["hour"] = row["hour"] if row["hour"] % 7 else 0
        rows[0][SEEN] = [(3 * place + number) % ITEMS for place in range(25)]
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path, row_group_size=13)
    (folder / "vocabulary").mkdir()
    hours = {"id": range(100, 124), "index": range(1, 25), "count": [1] * 24}
    types = pa.schema([("id", pa.int64()), ("index", pa.int32()), ("count", pa.int64())])
    pq.write_table(
        pa.table({name: list(values) for name, values in hours.items()}, types), folder / "vocabulary" / "hour.parquet"
    )
    return folder


def percentile(folder: Path) -> np.ndarray:
    return popularity_percentile(torch.tensor(Catalog(folder, SCHEMA).train_counts())).numpy()


def labels(folder: Path) -> HeldOutLabels:
    return read_labels(folder, SCHEMA, "test", ["hour"], percentile(folder))


def bucket(events: int) -> str:
    return next(label for label, most in {"0": 0, "1-5": 5, "6-20": 20, ">20": 99}.items() if events <= most)


def parts(row: Row, target: int, events: list[int]) -> dict[str, str]:
    """Which part of each slicing a target of a row is in."""
    less, same = (
        sum(compare) for compare in ([e < events[target] for e in events], [e == events[target] for e in events])
    )
    place = (less + (same - 1) / 2) / (ITEMS - 1)
    return {
        "user id": "known" if row["user_id"] else "cold",
        "history length": bucket(len(row[SEEN])),
        "hour": str(row["hour"] + 99) if row["hour"] else "(unknown)",
        "popularity decile": str(min(int(10 * place) + 1, 10)),
    }


def test_every_target_is_in_its_parts(data: Path) -> None:
    rows = pq.read_table(data / "events" / "test").to_pylist()
    events = Catalog(data, SCHEMA).train_counts().tolist()
    expected = [parts(row, target, events) for row in rows for target in row[TARGETS]]
    found = labels(data)
    assert found.slicings.keys() == expected[0].keys()
    for name, slicing in found.slicings.items():
        assert [slicing.labels[number] for number in slicing.label_T] == [of[name] for of in expected]
        assert len({of[name] for of in expected}) >= (2 if name == "user id" else 4)
    of_user: dict[int, int] = {}
    for row, user in zip(rows, found.user_Q.tolist(), strict=True):
        assert of_user.setdefault(row[RAW_USER_ID], user) == user
    assert sorted(of_user.values()) == list(range(len(of_user))) and len(of_user) < len(rows)


def test_without_a_vocabulary_parts_are_rows_and_hashed_users_are_never_known(data: Path, prepared: Path) -> None:
    assert set(read_labels(prepared, SCHEMA, "test", ["hour"], percentile(prepared)).slicings["hour"].labels) <= {
        f"row {row}" for row in range(25)
    }
    hashed = replace(SCHEMA, features=tuple(replace(f, hashed=f.kind == "id") for f in SCHEMA.features))
    assert "user id" not in read_labels(data, hashed, "test", [], percentile(data)).slicings


@pytest.mark.parametrize(
    ("columns", "message"),
    [(["minute"], "evaluate.slices=minute: expected categorical features of the query, one value a row: hour"),
     (["genres"], "evaluate.slices=genres"), (["age"], "evaluate.slices=age"), (["hour", "hour"], "every name once")],
)  # fmt: skip
def test_columns_that_divide_nothing_are_refused(columns: list[str], message: str) -> None:
    check_slices(SCHEMA, ["hour"])
    with pytest.raises(UserError, match=message):
        check_slices(SCHEMA, columns)


TARGET_OF_PART = st.tuples(st.integers(1, 20), st.integers(0, 3))


@given(st.lists(st.lists(TARGET_OF_PART, min_size=1, max_size=4), min_size=1, max_size=6))
def test_a_part_is_as_if_its_targets_were_all(queries: list[list[tuple[int, int]]]) -> None:
    flat = [(rank, query, label) for query, targets in enumerate(queries) for rank, label in targets]
    found = sliced_metrics(*(torch.tensor(column) for column in zip(*flat, strict=True)), [1, 5])
    assert list(found) == sorted({label for _, _, label in flat})
    for label, metrics in found.items():
        of_label = [[rank for rank, its in targets if its == label] for targets in queries]
        kept = [its for its in of_label if its]
        ranks = torch.tensor([rank for its in kept for rank in its])
        expected = ranking_metrics(ranks, torch.tensor([*map(len, kept)]), [1, 5])
        assert metrics.pop("queries") == len(kept)
        assert metrics == pytest.approx({name: expected[name] for name in metrics}) and len(metrics) == 4


def reported(processes: Processes, folder: Path) -> tuple[str, str]:
    """Of popularity, as model and as baseline."""
    catalog, files = Catalog(folder, SCHEMA), open_events(folder, SCHEMA, "test")
    assembler = BatchAssembler(SCHEMA, [SCHEMA.item_id], catalog, ModelConfig())
    evaluations = {of: evaluate_popularity(catalog, "test", processes, KS) for of in ("", "popularity/")}
    share = share_of_rank(files.num_rows, processes.rank, processes.world_size)
    for batch in HeldOutReader(files, assembler, 8, share, steps_of_all(files.num_rows, 8, processes.world_size)):
        for evaluation in evaluations.values():
            evaluation.update(batch)
    metrics = {f"test/{of}{name}": value for of, evaluation in evaluations.items()
               for name, value in evaluation.metrics(KS).items()}  # fmt: skip
    made = report.make("step-1", evaluations, metrics, labels(folder), ASKED)
    return made.to_json(), made.tables()


def test_a_report_by_brute_force_from_any_number_of_ranks(data: Path, ranks: RankPool) -> None:
    told = [of_rank for world_size in (1, 2, 3) for of_rank in ranks.run(world_size, reported, data)]
    assert len(set(told)) == 1
    text, tables = told[0]
    found = json.loads(text)

    catalog = pa.ipc.open_file(data / "catalog.arrow").read_all().to_pydict()
    events = catalog[TRAIN_COUNT]
    counts = [sum(both) for both in zip(events, catalog[VALIDATION_COUNT], strict=True)]
    rows = pq.read_table(data / "events" / "test").to_pylist()
    recall: dict[tuple[str, str], dict[int, list[float]]] = {}
    listed: list[list[int]] = []
    for number, row in enumerate(rows):
        kept = [item for item in range(ITEMS) if item in row[TARGETS] or item not in row[SEEN]]
        listed.append(sorted(kept, key=lambda item: (-counts[item], item)))
        as_given = {target: 1 + place for place, target in enumerate(row[TARGETS])}  # after others of the same score
        against = sorted(kept, key=lambda item: (-counts[item], as_given.get(item, 0)))
        places = {item: place for place, item in enumerate(against, 1)}
        for target in row[TARGETS]:
            for part in parts(row, target, events).items():
                recall.setdefault(part, {}).setdefault(number, []).append(places[target])
    for (slicing, label), of_query in recall.items():
        for of in ("model", "popularity"):
            part = found["slices"][of][slicing][label]
            assert part["queries"] == len(of_query)
            for k in KS:
                shares = [sum(place <= k for place in its) / len(its) for its in of_query.values()]
                assert part[f"recall@{k}"] == pytest.approx(np.mean(shares))
                gains = [
                    sum(1 / math.log2(1 + place) for place in its if place <= k)
                    / sum(1 / math.log2(1 + place) for place in range(1, min(k, len(its)) + 1))
                    for its in of_query.values()
                ]
                assert part[f"ndcg@{k}"] == pytest.approx(np.mean(gains))
    for k in KS:
        shown = [item for items in listed for item in items[:k]]
        assert found["metrics"][f"test/coverage@{k}"] == pytest.approx(len(set(shown)) / ITEMS)
        popular = np.mean(percentile(data)[shown])
        assert found["metrics"][f"test/popularity/popularity_percentile@{k}"] == pytest.approx(popular)
        counted = torch.bincount(torch.tensor(shown), minlength=ITEMS)
        assert found["metrics"][f"test/gini@{k}"] == pytest.approx(gini(counted))
    of_lists = ("coverage", "popularity_percentile", "gini")
    assert found["intervals"].keys() == {
        name for name in found["metrics"] if not name.rpartition("/")[2].startswith(of_lists)
    }
    for name, (low, high) in found["intervals"].items():
        assert -1e-9 <= low <= found["metrics"][name] + 1e-9 and found["metrics"][name] - 1e-9 <= high <= 1 + 1e-9
    low, high = found["intervals"]["test/recall@10"]
    assert f"[{low:.4f}, {high:.4f}]" in tables and "history length 6-20" in tables
    assert tables.count("\nhour ") == 10 and "more, of fewer queries, in the file" in tables
    assert tables.splitlines()[-1].split()[0] == "gini@10"


def test_what_one_target_makes_equal_is_shown_once() -> None:
    def shown(found: dict[str, float]) -> list[str]:
        metrics = {f"test/{of}{name}@10": value for of in ("", "popularity/") for name, value in found.items()}
        parts = {"history length": {"0": {"queries": 4, "recall@10": 0.5, "ndcg@10": 0.4}}}
        sizes = {"all": {"queries": 4, "items": 9}}
        of = {"model": parts, "popularity": parts}
        made = report.Report("step-1", "test", sizes, metrics, 0.95, 0, {}, of)
        return [line.split("@")[0] if "@" in line else line for line in made.tables().splitlines()[6:]]

    single = {"recall": 0.5, "mrr": 0.25, "hit_rate": 0.5, "map": 0.25}
    assert shown(single) == ["recall", "mrr", "hit_rate is recall at every k", "map is mrr at every k"]
    assert shown(single | {"map": 0.2, "hit_rate": 0.75}) == ["recall", "mrr", "hit_rate", "map"]
