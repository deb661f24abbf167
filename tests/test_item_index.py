"""The index of the items against numpy, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import exports
from tests.disks import small_disk
from tests.ranks import RankPool
from trainer.checks import check_index_config
from trainer.config import IndexConfig, ItemIndexConfig, ServedRunConfig
from trainer.errors import UserError
from trainer.retrieval.item_index import ItemIndex, search
from trainer.runtime.index_building import build, check_index, measure
from trainer.runtime.stored_items import StoredItems

faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")

DIM, ROWS, QUERIES, K = 16, 1000, 40, 10
TRIED = {
    "flat": ItemIndexConfig(kind="flat"),
    "hnsw": ItemIndexConfig(kind="hnsw", ef_search=[1, 400]),
    "ivf_pq": ItemIndexConfig(kind="ivf_pq", lists=8, code_size=8, nprobe=[1, 8], training_rows=700),
}


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def exact(query_QID: np.ndarray, item_ND: np.ndarray, k: int) -> np.ndarray:
    """[Q, k] rows by falling score, of the interest nearest to each."""
    score_QN = (query_QID @ item_ND.T).reshape(len(query_QID), -1, len(item_ND)).max(axis=1)
    return np.argsort(-score_QN, axis=1, kind="stable")[:, :k]


@pytest.fixture(scope="module")
def run_dir(ranks: RankPool, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export of given rows, numbered from 0, in seven shards of which the last is short."""
    out = tmp_path_factory.mktemp("index")
    ranks.run(1, exports.train, prepared, out / "run")
    ranks.run(1, exports.export_given, drawn(ROWS, DIM), prepared, out / "run", out, {"rows_per_shard": 150})
    return out


@pytest.mark.parametrize("interests", [1, 3])
@pytest.mark.parametrize("kind", TRIED)
def test_what_is_measured_is_the_share_of_the_exact_lists(run_dir: Path, tmp_path: Path, kind: str,
                                                          interests: int) -> None:  # fmt: skip
    items, query_QID = StoredItems(run_dir), drawn(QUERIES, interests, DIM, seed=1)
    query_QD = query_QID[:, 0] if interests == 1 else query_QID
    built = build(items, TRIED[kind], tmp_path / "index")
    found = measure(built, items, query_QD, TRIED[kind])
    expected_QK = exact(query_QID, drawn(ROWS, DIM), K)
    assert len(found) == {"flat": 1}.get(kind, 2)
    for measured in found:
        effort = None if kind == "flat" else int(measured.setting.split("=")[1])
        rows, _ = search(built, query_QD, K, effort)
        shares = [len({*row} & {*of_query}) / K for row, of_query in zip(rows, expected_QK, strict=True)]
        assert measured.recall == pytest.approx(np.mean(shares)) and 0 < measured.p50 <= measured.p99
    assert found[-1].recall >= {"flat": 1.0, "hnsw": 0.99, "ivf_pq": 0.5}[kind]
    if kind != "flat":
        assert found[0].recall < found[-1].recall


@pytest.mark.parametrize("kind", TRIED)
def test_an_index_is_loaded_as_it_was_built(run_dir: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "of an earlier one").touch()
    built = build(StoredItems(run_dir), TRIED[kind], tmp_path / "index")
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"items.faiss", "ids.parquet", "index.json"}
    loaded, query_QD = ItemIndex(tmp_path / "index"), drawn(QUERIES, DIM, seed=2)
    effort = {"flat": None, "hnsw": 400, "ivf_pq": 8}[kind]  # the last one asked for is its own
    for list_K, row_K in zip(loaded.search(query_QD, K), search(built, query_QD, K, effort)[0], strict=True):
        assert [scored.id for scored in list_K] == row_K.tolist()
    assert loaded.facts["num_items"] == ROWS and loaded.facts["settings"]["kind"] == kind


def test_lists_of_the_exact_index(run_dir: Path, tmp_path: Path) -> None:
    """Against numpy: scores, items left out, lists longer than what there is."""
    item_ND, query_QID = drawn(ROWS, DIM), drawn(QUERIES, 3, DIM, seed=3)
    build(StoredItems(run_dir), TRIED["flat"], tmp_path / "index")
    index, order_QN = ItemIndex(tmp_path / "index"), exact(query_QID, item_ND, ROWS)
    left_out = [{int(row) for row in row_N[: number % 7 : 2]} for number, row_N in enumerate(order_QN)]
    for number, found in enumerate(index.search(query_QID, K, left_out)):
        expected = [int(row) for row in order_QN[number] if row not in left_out[number]][:K]
        assert [scored.id for scored in found] == expected
        scores = (query_QID[number] @ item_ND[expected].T).max(axis=0)
        np.testing.assert_allclose([scored.score for scored in found], scores, rtol=1e-5)
    every = index.search(query_QID[:1], 2 * ROWS)[0]
    assert [scored.id for scored in every] == order_QN[0].tolist()


def test_shards_that_are_not_whole_are_named(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "item_embeddings"

    def again() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run_dir / "item_embeddings", folder)
        return folder

    for name in ("_SUCCESS", "_manifest.json"):
        (again() / name).unlink()
        with pytest.raises(UserError, match="item_embeddings: not a whole export.*trainer.export run.dir"):
            StoredItems(tmp_path)
    (again() / "part-00003.parquet").unlink()
    with pytest.raises(UserError, match="part-00003.parquet is missing"):
        build(StoredItems(tmp_path), TRIED["flat"], tmp_path / "index")
    content = bytearray((again() / "part-00002.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "part-00002.parquet").write_bytes(content)
    with pytest.raises(UserError, match="part-00002.parquet is damaged"):
        build(StoredItems(tmp_path), TRIED["flat"], tmp_path / "index")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["item_embeddings"], "nothing that looks like an index"


def test_an_index_that_cannot_be_read(run_dir: Path, tmp_path: Path) -> None:
    build(StoredItems(run_dir), TRIED["flat"], tmp_path / "index")
    facts = json.loads((tmp_path / "index" / "index.json").read_text())
    (tmp_path / "index" / "index.json").write_text(json.dumps(facts | {"num_items": 7}))
    with pytest.raises(UserError, match="1000 entries, 1000 ids"):
        ItemIndex(tmp_path / "index")
    for damaged in ("[1]", "3", json.dumps({name: facts[name] for name in facts if name != "model"}), ""):
        (tmp_path / "index" / "index.json").write_text(damaged)
        with pytest.raises(UserError, match="an index that can be read"):
            ItemIndex(tmp_path / "index")
    (tmp_path / "index" / "items.faiss").write_bytes(b"nothing")
    with pytest.raises(UserError, match="an index that can be read"):
        ItemIndex(tmp_path / "index")


@pytest.mark.parametrize("kind", TRIED)
def test_a_full_disk(run_dir: Path, tmp_path: Path, kind: str) -> None:
    with small_disk(tmp_path / "disk", "16k") as disk:
        with pytest.raises((UserError, OSError), match="No space left on device|room and leave to write the index"):
            build(StoredItems(run_dir), TRIED[kind], disk / "index")
        assert [*disk.iterdir()] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"code_size": 5}, r"index.code_size=5: expected a divisor of the dimension: \[1, 2, 4, 8, 16\].*code_size=4"),
     ({"training_rows": 200}, "expected 256 items to learn codes from"),
     ({"lists": 26}, "index.lists=26: expected at most 25: a list is learned from 39 items")],
)  # fmt: skip
def test_a_compressed_index_that_the_items_cannot_make(run_dir: Path, settings: dict[str, int], message: str) -> None:
    items, fitting = StoredItems(run_dir), replace(TRIED["ivf_pq"], training_rows=ROWS)
    check_index(items, fitting)
    check_index(items, replace(fitting, lists=25))
    with pytest.raises(UserError, match=message):
        check_index(items, replace(fitting, **settings))


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"kind": "tree"}, "index.kind"), ({"ef_search": []}, "index.ef_search"), ({"nprobe": [0]}, "index.nprobe"),
     ({"k": 0}, "index.k"), ({"links": 1}, "index.links"), ({"split": "train"}, "index.split")],
)  # fmt: skip
def test_settings_out_of_range(settings: dict[str, object], field: str) -> None:
    check_index_config(IndexConfig(ServedRunConfig("run")))
    with pytest.raises(UserError, match=f"^{field}="):
        check_index_config(IndexConfig(ServedRunConfig("run"), ItemIndexConfig(**settings)))
