"""Lists for users and for descriptions of such, against the sharded model's own embeddings."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch import Tensor

from tests.ranks import RankPool
from tests.served import ITEMS, Shop, export_items, saved_run, write
from trainer.config import (
    EmbeddingExportConfig,
    IndexConfig,
    ItemIndexConfig,
    RecommendationConfig,
    RecommendConfig,
    ServedRunConfig,
    ServedTowerConfig,
)
from trainer.data.schema import RAW_USER_ID
from trainer.data.titles import read_titles
from trainer.data.vector_types import embeddings_of
from trainer.errors import UserError
from trainer.index import index
from trainer.recommend import recommend

pytest.importorskip("faiss", reason="faiss-cpu is not installed")

SERVED = ("two_tower", "transformer", "multi_interest")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def served(
    ranks: RankPool, shop: Shop, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Tensor, np.ndarray]]:
    """Runs with all that serves them, the models' embeddings of the test rows, and of the items by the number in id."""
    found = {}
    for name in SERVED:
        run_dir = saved_run(ranks, shop, name, tmp_path_factory.mktemp(name) / "run")
        _, query_QD = ranks.run(1, write, run_dir, ServedTowerConfig())[0]
        ranks.run(1, export_items, run_dir, EmbeddingExportConfig(rows_per_shard=7))
        index(IndexConfig(ServedRunConfig(str(run_dir)), ItemIndexConfig(kind="flat")))
        table = pq.read_table(run_dir / "item_embeddings")
        item_ND = np.empty((ITEMS, table["embedding"].type.list_size), np.float32)
        item_ND[[number_of(item) for item in table["item_id"].to_pylist()]] = embeddings_of(table)
        found[name] = run_dir, query_QD, item_ND
    return found


def number_of(item: str) -> int:
    return int(item.removeprefix("item-"))


def listed(run_dir: Path, capsys: pytest.CaptureFixture[str], **asked: object) -> tuple[str, list[tuple[str, float]]]:
    """The line above a list, and items with their scores."""
    capsys.readouterr()
    recommend(RecommendConfig(ServedRunConfig(str(run_dir)), RecommendationConfig(**asked)))
    above, *lines = capsys.readouterr().out.splitlines()
    found = [re.fullmatch(r" *(\d+)  (\S+) +(-?[\d.]+)(?:  (.*))?", line).groups() for line in lines]
    assert [int(rank) for rank, *_ in found] == [*range(1, len(found) + 1)]
    assert all(title == (f"The {number_of(item)}th thing" if item != "item-4" else None) for _, item, _, title in found)
    return above, [(item, float(score)) for _, item, score, _ in found]


def test_titles(shop: Shop) -> None:
    ids = [f"item-{row}" for row in (3, 4, 19)]
    assert read_titles(shop.folder, [*ids, "no such"]) == {"item-3": "The 3th thing", "item-19": "The 19th thing"}


@pytest.mark.parametrize("name", SERVED)
def test_a_user_of_the_data_gets_what_the_model_says(
    shop: Shop, served: dict[str, tuple[Path, Tensor, np.ndarray]], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run_dir, query_QD, item_ND = served[name]
    for row, query in [*zip(shop.rows, query_QD.numpy(), strict=True)][:5]:
        history = shop.queries[row[RAW_USER_ID]]["history"]
        score_N = (query.reshape(-1, query.shape[-1]) @ item_ND.T).max(axis=0)
        for leave_out_seen in (True, False):
            above, found = listed(run_dir, capsys, user=str(row[RAW_USER_ID]), k=6, leave_out_seen=leave_out_seen)
            seen = {item for item in history if item.startswith("item-")} if leave_out_seen else set()
            best = [f"item-{number}" for number in np.argsort(-score_N) if f"item-{number}" not in seen][:6]
            assert [item for item, _ in found] == best
            np.testing.assert_allclose([score for _, score in found], score_N[[*map(number_of, best)]], atol=1e-4)
        told = above.removeprefix("after ").split("; ")
        newest = history[-3:]  # of which the feature keeps three
        assert len(told) == len(newest) and told.count("an unknown item") == newest.count("never seen")


def test_another_history_another_list(
    shop: Shop, served: dict[str, tuple[Path, Tensor, np.ndarray]], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of a user or of nobody, from a file or from standard input."""
    run_dir, _, _ = served["two_tower"]
    user = next(row[RAW_USER_ID] for row in shop.rows)
    file = tmp_path / "query.json"
    lists = {}
    for history in (["item-0"], ["item-7", "item-9"], []):
        file.write_text(json.dumps({"history": history}))
        above, lists["nobody", str(history)] = listed(run_dir, capsys, query=str(file), k=5)
        titles = "; ".join(f"The {number_of(item)}th thing" for item in history)
        assert above == (f"after {titles}" if history else "without a history")
        assert not {item for item, _ in lists["nobody", str(history)]} & {*history}
        _, lists["user", str(history)] = listed(run_dir, capsys, query=str(file), user=str(user), k=5)
    assert len({str(found) for found in lists.values()}) == len(lists), "two of them are alike"
    # all that is known of the user said in words gives their list
    known = {name: value for name, value in shop.queries[user].items() if name != "history_age"}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(known)))
    _, said = listed(run_dir, capsys, query="-", k=5, leave_out_seen=False)
    assert said == listed(run_dir, capsys, user=str(user), k=5, leave_out_seen=False)[1]


def test_what_cannot_be_asked_for(served: dict[str, tuple[Path, Tensor, np.ndarray]], tmp_path: Path) -> None:
    run_dir, _, _ = served["two_tower"]
    with_ages = served["transformer"][0]
    file = tmp_path / "query.json"

    def refused(run: Path, **asked: object) -> str:
        with pytest.raises(UserError) as caught:
            recommend(RecommendConfig(ServedRunConfig(str(run)), RecommendationConfig(**asked)))
        return str(caught.value)

    assert refused(run_dir).startswith("recommend.user=None")
    assert re.match(
        r"recommend.user=7: expected a user with a query in test, such as \d+, ", refused(run_dir, user="7")
    )
    for user in ("someone", "--7", "9" * 30):
        assert refused(run_dir, user=user).startswith(f"recommend.user={user}: expected a user with a query in test")
    assert "No such file" in refused(run_dir, query=str(file))
    for content, told in (
        ("[1]", "expected one JSON object"),
        ("{", "expected a query as JSON"),
        ('{"histories": []}', "query 0: histories="),
        ('{"history": 3}', "expected a list"),
    ):
        file.write_text(content)  # fmt: skip
        assert told in refused(run_dir, query=str(file))
    file.write_text('{"history": ["item-1"]}')  # and when that was, nobody knows
    assert "history_age=[]: expected the seconds since each of the 1 events" in refused(with_ages, query=str(file))
    assert "history_age=[]" in refused(with_ages, query=str(file), user="10")


def test_what_serves_must_be_there_and_of_one_model(
    served: dict[str, tuple[Path, Tensor, np.ndarray]], tmp_path: Path
) -> None:
    run_dir = shutil.copytree(served["two_tower"][0], tmp_path / "run")

    def ask(what: str) -> str:
        run = ServedRunConfig(str(run_dir))
        if what == "index":
            with pytest.raises(UserError) as caught:
                index(IndexConfig(run))
        else:
            with pytest.raises(UserError) as caught:
                recommend(RecommendConfig(run, RecommendationConfig(user="10")))
        return str(caught.value)

    for file, key, what in (
        ("item_embeddings/_manifest.json", "model", "index"),
        ("index/index.json", "model", "list"),
    ):
        facts = json.loads((run_dir / file).read_text())
        (run_dir / file).write_text(json.dumps(facts | {key: "f" * 64}))
        assert re.search(f"{file.split('/')[0]}=of model ffffffffffff: expected of the query tower's, ", ask(what))
    shutil.rmtree(run_dir / "index")
    assert "build it with trainer.index" in ask("list")
    (run_dir / "query_tower.pt2").unlink()
    assert "trainer.query_tower run.dir=" in ask("list") and "trainer.query_tower run.dir=" in ask("index")
    shutil.rmtree(run_dir / "item_embeddings")
    assert "trainer.export run.dir=" in ask("index")
