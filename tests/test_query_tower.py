"""The file that serves queries, against the sharded model it was made of and against what `prepare` makes of a shop."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.commands import environment
from tests.ranks import RankPool
from tests.served import MODELS, NEVER, USERS, Shop, saved_run, write
from trainer.checks import check_query_tower_config
from trainer.config import (
    CheckpointConfig,
    QueryTowerConfig,
    ServedTowerConfig,
)
from trainer.data.schema import Feature
from trainer.errors import UserError
from trainer.model.query_program import Table, int8_rows
from trainer.runtime.fingerprint import model_fingerprint
from trainer.runtime.held_out_queries import difference
from trainer.runtime.loading import open_run
from trainer.runtime.query_tower_file import QueryTowerFile
from trainer.runtime.saved_table import SavedTable
from trainer.serving.query_encoding import QueryEncoder, hour, weekday
from trainer.serving.query_tower import QueryTower
from trainer.serving.vocabulary import Hash, Vocabulary


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_are_those_of_the_sharded_model(ranks: RankPool, shop: Shop, tmp_path: Path, name: str) -> None:
    """From queries in the user's own words, which no table row of the prepared data has been near."""
    run_dir = saved_run(ranks, shop, name, tmp_path / "run")
    world_size = 2 if name == "transformer" else 1
    told, expected = ranks.run(world_size, write, run_dir, ServedTowerConfig())[0]
    tower = QueryTower(run_dir / "query_tower.pt2")
    queries = shop.asked(tower.encode.names)
    assert len(expected) == len(queries) == USERS and expected.std(0).min() > 1e-3, "all alike"
    torch.testing.assert_close(tower.embed(queries), expected, rtol=1e-5, atol=1e-5)
    for size in (1, 3, 17):
        torch.testing.assert_close(tower.embed(queries[:size]), expected[:size], rtol=1e-5, atol=1e-5)
    assert sorted(path.name for path in run_dir.glob("query_tower*")) == ["query_tower.pt2"]
    assert re.fullmatch(
        r"query tower of checkpoint step-000000007 written to .*: [\d.]+ MB, fingerprint \w{64}", told[0]
    )
    assert float(re.search(r"over 24 queries of test: (\S+)", told[1]).group(1)) <= 1e-5
    assert re.fullmatch(r"latency on one thread, batch of 64: p50 [\d.]+ ms, p99 [\d.]+ ms", told[3])
    fingerprint = model_fingerprint(open_run(CheckpointConfig(dir=str(run_dir), checkpoint="last")))
    assert tower.facts["fingerprint"] == fingerprint and fingerprint in told[0]
    assert tower.facts["checkpoint"] == "step-000000007"
    assert tower.facts["interests"] == {"multi_interest": 4, "attention": 3}.get(name, 1)


@pytest.fixture(scope="module")
def two_tower(ranks: RankPool, shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A run with its file, and what its model makes of the test rows."""
    run_dir = saved_run(ranks, shop, "two_tower", tmp_path_factory.mktemp("two_tower") / "run")
    return run_dir, ranks.run(1, write, run_dir, ServedTowerConfig())[0][1]


def test_queries_are_encoded_as_prepare_does(shop: Shop, two_tower: tuple[Path, Tensor]) -> None:
    tower = QueryTower(two_tower[0] / "query_tower.pt2")
    names = [feature.name for feature in shop.schema.side("query")]
    assert sorted(tower.encode.names) == sorted([*names, "likes_weight"])
    inputs = tower.encode(shop.asked(tower.encode.names))
    for number, row in enumerate(shop.rows):
        for feature in shop.schema.side("query"):
            found, expected = inputs[feature.name][number], row[feature.name]
            if feature.kind == "history":
                continue  # catalogue rows there, table rows here: see the embeddings
            if feature.is_list:
                length = int(inputs[f"{feature.name}.length"][number])
                assert found[:length].tolist() == expected and not found[length:].any()
            else:
                np.testing.assert_array_equal(found.numpy(), np.array(expected, found.numpy().dtype))
        weights = inputs["likes.weight"][number]
        assert weights[: len(row["likes"])].tolist() == row["likes_weight"] and not weights[len(row["likes"]) :].any()


def test_unknown_and_missing_values(shop: Shop, two_tower: tuple[Path, Tensor]) -> None:
    tower = QueryTower(two_tower[0] / "query_tower.pt2")
    nothing: dict[str, Any] = {}
    null = dict.fromkeys(tower.encode.names)
    unknown = {"user_id": 7, "device": "fridge", "hour": 24, "history": []}
    torch.testing.assert_close(*(tower.embed([one]) for one in (nothing, null)), rtol=0, atol=0)
    torch.testing.assert_close(*(tower.embed([one]) for one in (nothing, unknown)), rtol=0, atol=0)
    inputs = tower.encode([{"history": [NEVER, None, "item-0"]}, {"country": "atlantis"}, {"words": ["a", None, "?"]}])
    (ghost, null_item, known) = inputs["history"][0, :3].tolist()
    assert (ghost, null_item) == (0, 0) and known > 0 and inputs["history.length"].tolist() == [3, 0, 0]
    assert inputs["country"].tolist() == [0, Hash(7)("atlantis"), 0]
    assert inputs["words.length"].tolist() == [0, 0, 2] and inputs["words"][2, 1] == 0 < inputs["words"][2, 0]
    assert inputs["visits"].isnan().all() and not inputs["taste"].any()
    newest = tower.encode(
        [{"history": [f"item-{item}" for item in range(9)]}, {"history": ["item-6", "item-7", "item-8"]}]
    )
    assert torch.equal(newest["history"][0], newest["history"][1]) and newest["history.length"].tolist() == [3, 3]


QUERY_FEATURES = (
    Feature("user_id", "query", "id", table="user_id", num_embeddings=3),
    Feature("country", "query", "categorical", table="country", num_embeddings=8, hashed=True),
    Feature("likes", "query", "categorical", table="likes", num_embeddings=3, multi_valued=True, length=2,
            weighted=True),
    Feature("visits", "query", "numeric", log1p=True),
    Feature("taste", "query", "vector", dim=2),
    Feature("history", "query", "history", table="item_id", num_embeddings=3, length=2),
)  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"age": 3}, "query 1: age=3: expected names among user_id, country, likes, likes_weight, visits, taste, history, "
                  "history_age. Remedy: leave it out"),
     ([1], r"query 1=\[1\]: expected features by name"),
     ({"user_id": "7"}, "query 1: user_id='7': expected an integer"),
     ({"user_id": True}, "query 1: user_id=True: expected an integer"),
     ({"user_id": 7.0}, "query 1: user_id=7.0: expected an integer"),
     ({"country": 1.5}, "query 1: country=1.5: expected an integer or a string"),
     ({"likes": "a"}, "query 1: likes='a': expected a list"),
     ({"likes": [1], "likes_weight": [1.0]}, "query 1: likes=1: expected a string"),
     ({"likes": ["a", "b", "a"]}, r"query 1: likes=\['a', 'b', 'a'\]: expected at most 2 values"),
     ({"likes": ["a"]}, r"query 1: likes_weight=\[\]: expected a weight for each of the 1 values"),
     ({"likes": ["a"], "likes_weight": [-1]}, "query 1: likes_weight=-1: expected finite numbers from 0"),
     ({"visits": "many"}, "query 1: visits='many': expected a number"),
     ({"visits": float("inf")}, "query 1: visits=inf: expected a finite float32 number"),
     ({"visits": -1}, "query 1: visits=-1: expected a number above -1"),
     ({"taste": [1.0]}, r"query 1: taste=\[1.0\]: expected 2 finite numbers"),
     ({"taste": "x" * 999}, "query 1: taste='x{79}...: expected a list"),
     ({"taste": [1.0, float("nan")]}, r"query 1: taste=\[1.0, nan\]: expected 2 finite numbers"),
     ({"history": "x"}, "query 1: history='x': expected a list"),
     ({"history": [1], "history_age": [1]}, "query 1: history=1: expected a string"),
     ({"history": ["x"]}, r"query 1: history_age=\[\]: expected the seconds since each of the 1 events"),
     ({"history": ["x", "y"], "history_age": [1, 2]}, "expected whole seconds from 0, the oldest event first"),
     ({"history": ["x"], "history_age": [0.5]}, "expected whole seconds from 0")],
)  # fmt: skip
def test_what_no_feature_can_be_is_named(asked: Any, message: str) -> None:
    rows_of = {"user_id": Vocabulary("int64", [5, 7]), "country": Hash(7), "likes": Vocabulary("string", ["a", "b"]),
               "item_id": Vocabulary("string", ["x", "y"])}  # fmt: skip
    encode = QueryEncoder(QUERY_FEATURES, rows_of, None, {}, has_ages=True)
    assert encode([{"user_id": np.int64(7)}])["user_id"].tolist() == [2]
    with pytest.raises(ValueError, match=message):
        encode([{}, asked])


def test_it_runs_where_nothing_but_torch_can_be_imported(shop: Shop, two_tower: tuple[Path, Tensor]) -> None:
    """And so does the README's example."""
    run_dir, expected = two_tower
    text = (Path(__file__).parent.parent / "README.md").read_text()
    [example] = re.findall(r"\n\n((?:    .*\n)*    from trainer\.serving\..*\n(?:(?:    .*)?\n)*?)\n(?=\S)", text)
    example = re.sub(r'QueryTower\(".*?"\)', f"QueryTower({str(run_dir / 'query_tower.pt2')!r})", example)
    blocked = ["torchrec", "fbgemm_gpu", "pytorch_lightning", "lightning", "hydra", "omegaconf", "pyarrow", "duckdb",
               "sklearn", "tensordict", "torchmetrics", "tqdm", "numpy", "scipy", "pandas"]  # fmt: skip
    names = QueryTower(run_dir / "query_tower.pt2").encode.names
    program = f"""
import json, sys
sys.modules.update(dict.fromkeys({blocked}))
{re.sub("(?m)^    ", "", example)}
print(json.dumps(tower.embed(json.load(sys.stdin)).tolist()))
"""
    result = subprocess.run([sys.executable, "-c", program], input=json.dumps(shop.asked(names)), text=True,
                            capture_output=True, env=environment(), check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = torch.tensor(json.loads(result.stdout.splitlines()[-1]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_int8_is_near_and_a_quarter(ranks: RankPool, shop: Shop, tmp_path: Path) -> None:
    rows_RD = torch.randn(50, 8) * torch.logspace(-6, 3, 50)[:, None]
    rows_RD[7] = 0
    off = (Table(*int8_rows(rows_RD))(torch.arange(50)) - rows_RD).abs()
    assert (off <= rows_RD.abs().amax(1, keepdim=True) / 253.9).all() and off.max() > 0
    run_dir = saved_run(ranks, shop, "transformer", tmp_path / "run")
    _, expected = ranks.run(1, write, run_dir, ServedTowerConfig(dtype="int8"))[0]
    tower = QueryTower(run_dir / "query_tower.pt2")
    found = tower.embed(shop.asked(tower.encode.names))
    assert 1e-5 < (found - expected).abs().max() < 0.1 and tower.facts["dtype"] == "int8"
    kinds = {buffer.dtype for name, buffer in tower._program.named_buffers() if "rows_RD" in name}
    assert kinds == {torch.int8}


def test_a_table_outside_is_given_as_rows(
    ranks: RankPool, shop: Shop, two_tower: tuple[Path, Tensor], tmp_path: Path
) -> None:
    """Those that the table's export writes: row by id, the first for unknown ones."""
    run_dir = saved_run(ranks, shop, "two_tower", tmp_path / "run")
    whole = run_dir / "checkpoints" / "step-000000007"
    table = SavedTable(whole, "user_id").read(range(USERS + 1))
    _, expected = ranks.run(1, write, run_dir, ServedTowerConfig(without=["user_id", "country"]))[0]
    tower = QueryTower(run_dir / "query_tower.pt2")
    inside = QueryTower(two_tower[0] / "query_tower.pt2")
    queries = shop.asked(tower.encode.names)
    encoded = inside.encode(queries)
    countries = SavedTable(whole, "country").read(range(8))
    for number, asked in enumerate(queries):
        asked["user_id"] = table[encoded["user_id"][number]].tolist()
        asked["country"] = countries[encoded["country"][number]]
    torch.testing.assert_close(tower.embed(queries), expected, rtol=1e-5, atol=1e-5)
    assert (run_dir / "query_tower.pt2").stat().st_size != (two_tower[0] / "query_tower.pt2").stat().st_size
    missing = {"user_id": table[0].tolist(), "country": countries[0].tolist()}
    torch.testing.assert_close(tower.embed([{}]), tower.embed([missing]), rtol=0, atol=0)
    with pytest.raises(ValueError, match="query 0: user_id=10: expected a list"):
        tower.embed([{"user_id": 10}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [(ServedTowerConfig(max_gb=1e-6), r"tower.max_gb=1e-06: expected room for tables and ids, which take [\d.e-]+ GB "
      r"\(hour 4.1e-06 GB, user_id .*\). Remedy: set tower.dtype=int8, which takes 1.03e-05 GB; or set "
      r"tower.without=\[hour\] and serve hour from a key-value store, filled by trainer.export export.side=table "
      "export.table=hour; or raise tower.max_gb."),
     (ServedTowerConfig(max_gb=1e-6, dtype="int8", without=["hour"]), r"Remedy: set tower.without=\[hour,user_id\]"),
     (ServedTowerConfig(without=["item_id"]), "tower.without=item_id: expected tables of which a query looks up one "
      r"row: \['country', 'device', 'hour', 'user_id', 'weekday'\]"),
     (ServedTowerConfig(without=["categori"]), "tower.without=categori: expected tables")],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(
    two_tower: tuple[Path, Tensor], settings: ServedTowerConfig, message: str
) -> None:
    config = QueryTowerConfig(CheckpointConfig(str(two_tower[0]), checkpoint="last"), settings)
    run = open_run(config.run)
    with pytest.raises(UserError, match=message):
        QueryTowerFile(run, config)


def test_settings_out_of_range() -> None:
    for settings, message in (
        (ServedTowerConfig(dtype="int4"), "tower.dtype=int4: expected one of float32, int8"),
        (ServedTowerConfig(split="train"), "tower.split=train: expected one of test, validation"),
        (ServedTowerConfig(max_gb=0), "tower.max_gb=0: expected a number above 0"),
    ):
        with pytest.raises(UserError, match=message):
            check_query_tower_config(QueryTowerConfig(CheckpointConfig("r"), settings))


def test_embeddings_that_are_not_the_models_are_refused() -> None:
    expected = torch.tensor([[100.0, -200.0]])
    assert difference(expected + 1e-3, expected, "float32") == pytest.approx(5e-6, rel=0.1)
    with pytest.raises(UserError, match="expected embeddings equal to 1e-05"):
        difference(expected + 1e-2, expected, "float32")
    with pytest.raises(UserError, match="expected embeddings equal to 1e-05"):
        difference(expected * float("nan"), expected, "float32")
    assert difference(expected + 1, expected, "int8") == pytest.approx(5e-3)


def test_a_file_that_is_none_is_named(two_tower: tuple[Path, Tensor], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a file written by trainer.query_tower"):
        QueryTower(tmp_path / "query_tower.pt2")
    whole = (two_tower[0] / "query_tower.pt2").read_bytes()
    damaged = tmp_path / "query_tower.pt2"
    for content in (b"", whole[:-100], b"".join([whole[: len(whole) // 3], b"?", whole[len(whole) // 3 + 1 :]])):
        damaged.write_bytes(content)
        with pytest.raises(UserError, match="expected a whole query tower of version 1"):
            QueryTower(damaged)
    with pytest.raises(ValueError, match="queries=none: expected one or more"):
        QueryTower(two_tower[0] / "query_tower.pt2").embed([])


def test_hour_and_weekday_in_utc() -> None:
    assert (hour(0), weekday(0)) == (0, 3)  # a Thursday
    assert (hour(-1), weekday(-1)) == (23, 2)
    assert (hour(1_700_000_000), weekday(1_700_000_000)) == (22, 1)  # 2023-11-14 22:13:20, a Tuesday
