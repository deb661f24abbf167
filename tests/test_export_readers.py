"""What exports are read with, unchanged: each reader gives the ids and numbers that the model gave."""

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tests import exports
from tests.ranks import RankPool

DIM, ROWS = 16, 60


def model_rows() -> np.ndarray:
    """float32, of length one as cosine wants them; item k is its own nearest by far."""
    row_ND = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    return row_ND / np.linalg.norm(row_ND, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def folders(ranks: RankPool, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Item embeddings in four shards, by type; query embeddings and a catalogue with ids of strings under `query` and
    `item`."""
    out = tmp_path_factory.mktemp("readers")
    ranks.run(2, exports.train, prepared, out / "run")
    found = {}
    for dtype in ("float32", "float16", "int8"):
        (out / dtype).mkdir()
        ranks.run(2, exports.export_given, model_rows(), prepared, out / "run", out / dtype,
                  {"dtype": dtype, "rows_per_shard": 17})  # fmt: skip
        found[dtype] = out / dtype / "item_embeddings"
    for side in ("item", "query"):
        ranks.run(2, exports.export, prepared, out / "run", out / "run", {"side": side})
        found[side] = out / "run" / f"{side}_embeddings"
    return found


def check(ids: Any, embedding: Any, scale: Any, dtype: str) -> None:
    assert [*ids] == [*range(ROWS)]
    found_ND = np.array([np.asarray(row, np.float32) for row in embedding])
    if dtype == "int8":
        found_ND *= np.asarray(scale, np.float32)[:, None]
    np.testing.assert_allclose(found_ND, model_rows(), atol={"float32": 0, "float16": 2**-11, "int8": 1 / 254}[dtype])


DTYPES = pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])


@DTYPES
def test_pyarrow(folders: dict[str, Path], dtype: str) -> None:
    for table in (pq.read_table(folders[dtype]), ds.dataset(folders[dtype]).to_table()):
        scale = table["scale"].to_pylist() if dtype == "int8" else None
        check(table["item_id"].to_pylist(), table["embedding"].to_pylist(), scale, dtype)


@DTYPES
def test_pandas(folders: dict[str, Path], dtype: str) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.read_parquet(folders[dtype])
    assert frame["item_id"].dtype == np.int64 and frame["embedding"][0].dtype == np.dtype(dtype)
    check(frame["item_id"], frame["embedding"], frame.get("scale"), dtype)


@DTYPES
def test_polars(folders: dict[str, Path], dtype: str) -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed")
    frame = polars.scan_parquet(folders[dtype] / "part-*.parquet").collect()
    element = {"float32": polars.Float32, "float16": polars.Float16, "int8": polars.Int8}[dtype]
    assert frame.schema["item_id"] == polars.Int64 and frame.schema["embedding"] == polars.Array(element, DIM)
    scale = frame["scale"].to_numpy() if dtype == "int8" else None
    check(frame["item_id"], frame["embedding"].to_numpy(), scale, dtype)


@DTYPES
def test_duckdb(folders: dict[str, Path], dtype: str) -> None:
    found = duckdb.sql(f"SELECT * FROM '{folders[dtype]}/part-*.parquet'").fetchnumpy()
    check(found["item_id"], found["embedding"], found.get("scale"), dtype)
    nearest = duckdb.sql(
        f"WITH items AS (SELECT item_id, embedding::FLOAT[{DIM}] AS embedding FROM '{folders[dtype]}/part-*.parquet') "
        "SELECT b.item_id FROM items a, items b WHERE a.item_id = 7 "
        "ORDER BY array_inner_product(a.embedding, b.embedding) DESC LIMIT 1"
    )
    assert dtype == "int8" or nearest.fetchall() == [(7,)]


@DTYPES
def test_faiss(folders: dict[str, Path], dtype: str) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    table = pq.read_table(folders[dtype])
    stored = table["embedding"].combine_chunks()
    item_ND = stored.flatten().to_numpy(zero_copy_only=False).reshape(-1, stored.type.list_size).astype(np.float32)
    if dtype == "int8":
        item_ND *= table["scale"].to_numpy()[:, None]
    index = faiss.IndexIDMap(faiss.IndexFlatIP(DIM))
    index.add_with_ids(item_ND, table["item_id"].to_numpy())
    _, found = index.search(model_rows(), 1)
    assert found[:, 0].tolist() == [*range(ROWS)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lancedb(folders: dict[str, Path], tmp_path: Path, dtype: str) -> None:
    """Streamed from the folder; it searches the column that is a fixed-size list of floats."""
    lancedb = pytest.importorskip("lancedb", reason="lancedb is not installed")
    shards = ds.dataset(folders[dtype])
    table = lancedb.connect(tmp_path).create_table("items", shards.to_batches(), schema=shards.schema)
    for item in (0, 23, ROWS - 1):
        (found,) = table.search(model_rows()[item]).metric("dot").limit(1).to_list()
        assert found["item_id"] == item


def test_ids_of_strings_and_lists_of_them(folders: dict[str, Path]) -> None:
    """In every reader that is there, with the columns and types that the manifest says."""
    for side in ("item", "query"):
        manifest = json.loads((folders[side] / "_manifest.json").read_text())
        reference = pq.read_table(folders[side])
        assert reference.column_names == [*manifest["schema"]]
        found = duckdb.sql(f"SELECT * FROM '{folders[side]}/part-*.parquet'")
        kinds = {"string": "VARCHAR", "int64": "BIGINT", "list<string>": "VARCHAR[]"}
        expected = [kinds.get(kind, "FLOAT[]") for kind in manifest["schema"].values()]
        assert found.columns == reference.column_names and [str(kind) for kind in found.types] == expected
        rows = [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
        assert [{**row, "embedding": [*row["embedding"]]} for row in rows] == reference.to_pylist()
