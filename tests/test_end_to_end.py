"""The main job over two processes with sharded tables, on generated data, as a user runs it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests import commands
from tests.commands import command, environment
from tests.contents import assert_same_contents
from tests.forked import run, succeed
from trainer.data.schema import SEEN, read_schema
from trainer.runtime import checkpoint
from trainer.serving.query_tower import QueryTower

SMALL = (
    "data.global_batch_size=256",
    "run.validation_batch_size_per_rank=256",
    "run.monitor=val/recall@10",
    "run.log_every=5",
)
EPOCHS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "data"
    succeed("trainer.prepare", "data=generated", f"data.dir={folder}", "data.users=2500", "data.items=2000")
    return folder


def train(data: Path, run_dir: Path, *more: str, ranks: int = 2) -> str:
    return succeed("trainer.train", f"data.dir={data}", f"run.dir={run_dir}", *SMALL, *more, ranks=ranks)


@pytest.fixture(scope="module")
def two_tower(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and evaluated run, by torchrun as a user starts it."""
    folder = tmp_path_factory.mktemp("runs") / "two_tower"
    arguments = (f"data.dir={data}", f"run.dir={folder}", *SMALL, f"run.epochs={EPOCHS}")
    commands.succeed("trainer.train", *arguments, ranks=2)
    commands.succeed("trainer.evaluate", f"run.dir={folder}", ranks=2)
    return folder


def metrics(run_dir: Path) -> dict[str, float]:
    return json.loads((run_dir / "metrics.json").read_text())


def evaluation(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "evaluation.json").read_text())


@pytest.mark.parametrize("module", ["trainer.evaluate", "trainer.export"])
def test_no_thread_of_the_group_outlives_a_command(two_tower: Path, module: str) -> None:
    """Else one that lets go of a tensor while the interpreter ends aborts it, where the machine is busy."""
    stdout = commands.succeed("tests.threads_left", module, f"run.dir={two_tower}", ranks=2)
    assert stdout.count("threads left: 0\n") == 2, stdout


def test_no_rank_holds_a_whole_id_table(two_tower: Path) -> None:
    tables = json.loads((two_tower / "sharding.json").read_text())
    for table in ("user_id", "item_id"):
        rows = tables[table]
        assert len(rows["rows_by_rank"]) == 2
        assert sum(rows["rows_by_rank"]) == rows["num_embeddings"]
        assert max(rows["rows_by_rank"]) <= rows["num_embeddings"] // 2 + 1


def test_the_planted_structure_is_learned(data: Path, two_tower: Path, tmp_path: Path) -> None:
    """Features and history reach what neither popularity nor ids alone can."""
    train(data, tmp_path / "ids", f"run.epochs={EPOCHS}", "model=matrix_factorization")
    succeed("trainer.evaluate", f"run.dir={tmp_path / 'ids'}", ranks=2)
    features, ids = metrics(two_tower), metrics(tmp_path / "ids")
    assert features["test/recall@10"] > 0.21
    assert features["test/recall@10"] > 1.2 * ids["test/recall@10"]
    assert features["test/popularity/recall@10"] == ids["test/popularity/recall@10"] < 0.05


@pytest.mark.parametrize("ranks", [0, 1, 3])
def test_evaluation_is_the_same_on_other_numbers_of_ranks(two_tower: Path, ranks: int) -> None:
    """To the last digits but where two items score alike to theirs, which depend on how ranks share sums and batches.

    Then two neighbours may swap places in one query's list, which some of the metrics see.
    """
    before, told = metrics(two_tower), evaluation(two_tower)
    succeed("trainer.evaluate", f"run.dir={two_tower}", ranks=ranks)
    sizes = evaluation(two_tower)["sizes"]
    assert sizes == told["sizes"]
    after = metrics(two_tower)
    assert after == pytest.approx(before, rel=1e-12, abs=1 / sizes["all"]["queries"])
    swapped = [name for name, value in before.items() if after[name] != pytest.approx(value, rel=1e-12)]
    assert len(swapped) <= len(before) // 10, swapped


def test_everything_is_told_beside_the_metrics(two_tower: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(two_tower, tmp_path / "two_tower")
    stdout = succeed("trainer.evaluate", f"run.dir={run_dir}", "evaluate.slices=[hour]",
                     "evaluate.baselines=[popularity,markov]", ranks=2)  # fmt: skip
    told = evaluation(run_dir)
    assert told["metrics"] == metrics(run_dir)
    assert told["slices"].keys() == {"model", "popularity", "markov"}
    assert told["slices"]["model"].keys() == {"user id", "history length", "hour", "popularity decile"}
    for of in told["slices"].values():  # a query has one target
        for parts in of.values():
            assert sum(part["queries"] for part in parts.values()) == told["sizes"]["all"]["queries"]
    low, high = told["intervals"]["test/recall@10"]
    assert low < told["metrics"]["test/recall@10"] < high
    assert told["metrics"]["test/popularity/recall@10"] < told["metrics"]["test/markov/recall@10"]
    last = f"written to {run_dir / 'metrics.json'}, with intervals and all slices to {run_dir / 'evaluation.json'}"
    told_last = [last, f"report: {run_dir / 'report' / 'report.html'}"]
    assert stdout.splitlines()[-2:] == told_last and f"[{low:.4f}, {high:.4f}]" in stdout


def test_the_exported_embeddings_reproduce_the_metrics(data: Path, two_tower: Path) -> None:
    """Dot products of the two files, ranked over the catalogue in numpy, give the figures of metrics.json."""
    stdout = succeed("trainer.export", f"run.dir={two_tower}", "export.rows_per_shard=700", ranks=2)
    assert stdout.splitlines()[-1].startswith("2000 item embeddings")
    succeed("trainer.export", f"run.dir={two_tower}", "export.side=query", "export.split=test", ranks=2)
    items, queries = (
        pq.read_table(sorted((two_tower / f"{side}_embeddings").glob("part-*.parquet"))) for side in ("item", "query")
    )
    assert items.schema.field("item_id").type == "string" and queries.schema.field("user_id").type == "int64"
    assert str(items.schema.field("embedding").type).startswith("fixed_size_list<")

    row_of = {item: row for row, item in enumerate(items["item_id"].to_pylist())}
    item_vectors, query_vectors = (
        np.stack(table["embedding"].to_numpy(zero_copy_only=False)) for table in (items, queries)
    )
    events = pq.read_table(data / "events" / "test").to_pylist()
    assert queries["row"].to_pylist() == list(range(len(events)))
    scores = query_vectors @ item_vectors.T
    ranks, listed = [], set()
    for row, (target_id,) in enumerate(queries["target_item_ids"].to_pylist()):
        target = row_of[target_id]
        left_out = np.array([item for item in events[row][SEEN] if item != target], dtype=int)
        at_least = scores[row] >= scores[row, target]
        ranks.append(at_least.sum() - at_least[left_out].sum())
        scores[row, left_out] = -np.inf
        listed.update(np.argsort(-scores[row])[:10].tolist())
    ranks = np.array(ranks)
    saved, tolerance = metrics(two_tower), 1.01 / len(ranks)  # one near-tie may fall the other way
    for k in (1, 10, 100):
        hit = ranks <= k
        assert saved[f"test/recall@{k}"] == pytest.approx(hit.mean(), abs=tolerance)
        assert saved[f"test/ndcg@{k}"] == pytest.approx((hit / np.log2(ranks + 1)).mean(), abs=tolerance)
        assert saved[f"test/mrr@{k}"] == saved[f"test/map@{k}"] == pytest.approx((hit / ranks).mean(), abs=tolerance)
    assert saved["test/coverage@10"] == pytest.approx(len(listed) / len(items), abs=2.01 / len(items))


def test_shards_are_the_same_bytes_from_any_number_of_ranks(two_tower: Path) -> None:
    folder, files = two_tower / "item_embeddings", {}
    for ranks in (1, 2, 3):
        succeed("trainer.export", f"run.dir={two_tower}", "export.rows_per_shard=450", ranks=ranks)
        manifest = json.loads((folder / "_manifest.json").read_text())
        assert [shard["num_rows"] for shard in manifest["shards"]] == [450] * 4 + [200]
        files[ranks] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert files[1].keys() == files[2].keys() == files[3].keys()
    assert files[1] == files[2] == files[3]


def test_a_table_is_exported_with_the_ids_of_its_vocabulary(data: Path, two_tower: Path) -> None:
    """By a process alone, of what two have trained; the shards end elsewhere than the ranks' rows."""
    stdout = succeed("trainer.export", f"run.dir={two_tower}", "export.side=table", "export.table=item_id",
                     "export.rows_per_shard=600")  # fmt: skip
    vocabulary = pq.read_table(data / "vocabulary" / "item_id.parquet")["id"].to_pylist()
    which = checkpoint.find(two_tower, "best").name
    assert stdout.splitlines()[-1] == (
        f"{len(vocabulary) + 1} rows of table item_id of checkpoint {which} written to {two_tower / 'table_item_id'}"
    )
    table = pq.read_table(sorted((two_tower / "table_item_id").glob("part-*.parquet")))
    assert table["item_id"].to_pylist() == [None, *vocabulary]
    assert table.schema.field("embedding").type.list_size == 64


def test_the_query_tower_is_written_by_two_processes(two_tower: Path) -> None:
    """And compared with the model they hold, from raw values on."""
    stdout = succeed("trainer.query_tower", f"run.dir={two_tower}", ranks=2)
    told, difference, *latencies = stdout.splitlines()[-4:]
    tower, which = QueryTower(two_tower / "query_tower.pt2"), checkpoint.find(two_tower, "best").name
    assert told.startswith(f"query tower of checkpoint {which} written to {two_tower / 'query_tower.pt2'}: ")
    assert told.endswith(tower.facts["fingerprint"])
    assert difference.startswith("largest difference from the model over 256 queries of test: ")
    assert float(difference.split()[-1]) <= 1e-5
    assert all(line.startswith("latency on one thread, batch of ") for line in latencies)
    assert tower.embed([{}, {"user_id": 17, "hour": 20}]).shape == (2, 64)


def kill_all_that_name(run_dir: Path) -> None:
    """SIGKILL to torchrun and, since it starts them in sessions of their own, to its workers."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command_line = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if f"run.dir={run_dir}".encode() in command_line:
            os.kill(int(entry.name), signal.SIGKILL)


def wait_for_checkpoint(run_dir: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while checkpoint.newest(run_dir) is None:
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.05)


@pytest.mark.survival
def test_a_killed_run_resumes_with_the_same_command_and_ends_as_the_uninterrupted_one(
    data: Path, tmp_path: Path
) -> None:
    # with all that a run keeps from step to step
    often = ("run.epochs=2", "run.validate_every=0.2", "model.loss.log_q=streaming", "model.loss.uniform_negatives=100",
             "model.loss.learn_temperature=true", "model.query.dropout=0.2", "optimizer.schedule=cosine",
             "optimizer.dense_gradient_clip=1.0")  # fmt: skip
    train(data, tmp_path / "whole", *often)
    arguments = (f"data.dir={data}", f"run.dir={tmp_path / 'killed'}", *SMALL, *often)
    process = subprocess.Popen(
        command("trainer.train", *arguments, ranks=2), env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for_checkpoint(tmp_path / "killed", process)
    kill_all_that_name(tmp_path / "killed")
    process.wait()
    reached = checkpoint.newest(tmp_path / "killed")
    assert reached is not None
    assert reached.name < checkpoint.newest(tmp_path / "whole").name, "it was killed too late to show anything"

    succeed("trainer.train", *arguments, ranks=2)
    killed, whole = (tmp_path / name / "checkpoints" for name in ("killed", "whole"))
    assert checkpoint.names(killed) == checkpoint.names(whole)
    for step in checkpoint.names(whole):  # both optimizers, schedule, streaming estimate, early stopping and all
        assert_same_contents(killed / step, whole / step)
    assert (killed / checkpoint.BEST).read_text() == (whole / checkpoint.BEST).read_text()


@pytest.mark.survival
def test_one_rank_trains_as_two_do_and_goes_on_with_what_two_left(data: Path, tmp_path: Path) -> None:
    """Through Lightning, losses agree to 5e-3, five steps after a resume on other ranks too; recall at the end to 0.01.

    Later steps drift apart: two ranks take sums in another order, and the rounding error of that grows as it is
    trained on.
    """
    settings = ("data.global_batch_size=1024", "run.log_every=1")
    for name, ranks in (("one", [1, 1]), ("two", [2, 2]), ("changed", [2, 1])):
        for epochs, number in enumerate(ranks, start=1):
            train(data, tmp_path / name, *settings, f"run.epochs={epochs}", ranks=number)
    train(data, tmp_path / "other", *settings, "run.epochs=1", "run.seed=1")
    losses = {name: losses_of(tmp_path / name) for name in ("one", "two", "changed", "other")}
    epoch = len(losses["other"])
    np.testing.assert_allclose(losses["one"][:3], losses["two"][:3], atol=1e-5)
    np.testing.assert_allclose(losses["one"][:15], losses["two"][:15], atol=1e-3)
    for name in ("one", "changed"):
        np.testing.assert_allclose(losses[name][: epoch + 5], losses["two"][: epoch + 5], atol=5e-3)
    assert np.abs(losses["other"] - losses["two"][:epoch])[:15].max() > 0.01
    recall = {name: last_recall_of(tmp_path / name) for name in ("one", "two", "changed", "other")}
    for name in ("one", "changed"):
        assert recall[name] == pytest.approx(recall["two"], abs=0.01)
    assert recall["two"] > 1.1 * recall["other"]  # of half as many steps


def last_recall_of(run_dir: Path) -> float:
    """Of the last validation."""
    logs = sorted(run_dir.glob("logs/version_*/metrics.csv"), key=lambda log: int(log.parent.name.split("_")[1]))
    lines = [line for log in logs for line in csv.DictReader(log.read_text().splitlines())]
    return [float(line["val/recall@10"]) for line in lines if line["val/recall@10"]][-1]


def losses_of(run_dir: Path) -> np.ndarray:
    """Training losses by step, over the logs of all starts of a run."""
    losses = {}
    for log in run_dir.glob("logs/version_*/metrics.csv"):
        for line in csv.DictReader(log.read_text().splitlines()):
            if line["train/loss"]:
                losses[int(line["step"])] = float(line["train/loss"])
    return np.array([losses[step] for step in range(len(losses))])


@pytest.mark.survival
def test_patience_ends_a_run_and_more_patience_goes_on(data: Path, tmp_path: Path) -> None:
    impatient = ("run.epochs=2", "run.validate_every=0.1", "run.patience=1", "optimizer.embedding_learning_rate=1e-9",
                 "optimizer.dense_learning_rate=1e-9")  # fmt: skip
    train(data, tmp_path / "run", *impatient)
    stopped = checkpoint.newest(tmp_path / "run")
    train(data, tmp_path / "run", *impatient)
    assert checkpoint.newest(tmp_path / "run") == stopped
    train(data, tmp_path / "run", *impatient, "run.patience=3")
    assert checkpoint.newest(tmp_path / "run").name > stopped.name


def test_a_batch_of_32768_trains_in_less_than_3_gb(tmp_path: Path) -> None:
    """Against some 13,000 distinct items: logits alone would take 1.7 GB, and as much again for their gradient."""
    succeed("trainer.prepare", "data=generated", f"data.dir={tmp_path / 'data'}", "data.users=3000",
            "data.items=100000")  # fmt: skip
    arguments = (f"data.dir={tmp_path / 'data'}", f"run.dir={tmp_path / 'run'}", "data.global_batch_size=32768",
                 "run.epochs=1", "model.embedding_dim=64")  # fmt: skip
    process = subprocess.Popen(
        command("trainer.train", *arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert usage.ru_maxrss < 3e6  # kilobytes


def test_a_finished_run_started_again_stays_as_it_is(data: Path, two_tower: Path) -> None:
    before = checkpoint.newest(two_tower)
    stdout = train(data, two_tower, f"run.epochs={EPOCHS}")
    assert checkpoint.newest(two_tower) == before
    assert "best checkpoint" in stdout


@pytest.mark.parametrize(
    ("module", "overrides", "message"),
    [
        ("trainer.train", ["data.dir=missing", "run.dir=r"], "data.dir=missing: expected a folder written by"),
        ("trainer.train", ["data.dir={data}", "run.dir=r", "data.global_batch_size=1600000"],
         "data.global_batch_size=1600000: expected at most the"),
        ("trainer.train", ["data.dir={data}", "run.dir={run}", "model.embedding_dim=32", *SMALL],
         "model.embedding_dim=64 (now 32)"),
        ("trainer.train", ["data.dir={data}", "run.dir={run}", "run.monitor=val/ndcg@10", *SMALL[:2]],
         "run.monitor=val/recall@10 (now val/ndcg@10)"),
        ("trainer.train", ["data.dir={data}", "run.dir={data}"], "run.dir={data}: expected a new or empty folder"),
        ("trainer.evaluate", ["run.dir=missing"], "run.dir=missing: expected a folder written by trainer.train"),
        ("trainer.export", ["run.dir={run}", "run.checkpoint=step-000000001"], "expected a checkpoint in"),
        ("trainer.export", ["run.dir={run}", "export.side=table", "export.table=price"],
         "export.table=price: expected one of the tables that the model looks up: category, hour, item_id, segment,"),
        ("trainer.prepare", ["data=movielens", "data.source={data}", "data.dir={run}/x"], "data.source="),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_no_traceback(
    data: Path, two_tower: Path, tmp_path: Path, module: str, overrides: list[str], message: str
) -> None:
    filled = [override.format(data=data, run=two_tower) for override in overrides]
    result = run(module, *filled)
    assert result.returncode == 2, result.stderr
    assert message.format(data=data, run=two_tower) in result.stderr
    assert "Remedy: " in result.stderr and "Traceback" not in result.stderr


def test_a_run_of_other_features_is_refused(data: Path, two_tower: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    succeed("trainer.prepare", "data=generated", f"data.dir={other}", "data.users=2500", "data.items=2000",
            "~data.features.segment")  # fmt: skip
    assert read_schema(other) != read_schema(data)
    for module, overrides in (
        ("trainer.train", [f"data.dir={other}", f"run.dir={two_tower}", *SMALL, f"run.epochs={EPOCHS}"]),
        ("trainer.evaluate", [f"run.dir={two_tower}", f"run.data_dir={other}"]),
    ):
        result = run(module, *overrides)
        assert result.returncode == 2
        assert "feature segment is gone" in result.stderr


def test_a_wrong_start_under_torchrun_ends_with_the_message(tmp_path: Path) -> None:
    result = commands.run("trainer.train", f"data.dir={tmp_path}/none", f"run.dir={tmp_path}/run", ranks=2)
    assert result.returncode != 0
    assert result.stderr.count("expected a folder written by trainer.prepare") == 1
