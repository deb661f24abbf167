"""Embeddings as they are stored, against bounds worked out in float64."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.vector_types import TOLERANCE, VECTOR_TYPES, StoredRows, embeddings_of, parquet_settings, shares_off


def rows(count: int = 5000, dim: int = 24) -> np.ndarray:
    """float32, of many magnitudes."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(count, dim)) * 10.0 ** rng.uniform(-4, 4, (count, 1))).astype(np.float32)


def stored(row_ND: np.ndarray, dtype: str, step: int = 700) -> StoredRows:
    result = StoredRows(*row_ND.shape, dtype)
    for start in range(0, len(row_ND), step):
        assert result.append(row_ND[start : start + step]) is None
    return result


@pytest.mark.parametrize("dtype", VECTOR_TYPES)
def test_elements_are_off_by_no_more_than_is_said(dtype: str) -> None:
    row_ND = rows()
    columns = stored(row_ND, dtype).table({})
    found_ND = embeddings_of(columns).astype(np.float64)
    off_ND, largest_N = np.abs(found_ND - row_ND), np.abs(row_ND).max(axis=1, keepdims=True).astype(np.float64)
    match dtype:
        case "float32":
            bound_ND = np.zeros_like(found_ND)
        case "float16":
            bound_ND = np.maximum(2.0**-11 * np.abs(row_ND), 2.0**-25)
        case _:
            scale_N = columns["scale"].to_numpy()
            np.testing.assert_allclose(scale_N, largest_N[:, 0] / 127, rtol=1e-6)
            stored_ND = columns["embedding"].chunk(0).flatten().to_numpy().reshape(row_ND.shape)
            assert abs(stored_ND.astype(int)).max(1).min() == 127
            bound_ND = largest_N / 254 * (1 + 1e-5) + 0 * off_ND
    assert (off_ND <= bound_ND).all() and (off_ND.max() > 0) == (dtype != "float32")
    shares = shares_off(columns, row_ND, dtype)
    np.testing.assert_allclose(shares, (off_ND / largest_N).max(axis=1), rtol=1e-3, atol=1e-7)
    assert (shares <= TOLERANCE[dtype]).all()


def test_rows_of_zeros_and_of_hardly_more() -> None:
    row_ND = np.zeros((3, 4), np.float32)
    row_ND[1] = [1e-45, -1e-42, 3e-39, 0]
    row_ND[2] = [1e-30, -1e-30, 1e-31, 0]
    columns = stored(row_ND, "int8").table({})
    assert columns["scale"].to_pylist()[:2] == [0, 0] and columns["embedding"].to_pylist()[:2] == [[0] * 4] * 2
    assert columns["embedding"].to_pylist()[2] == [127, -127, 13, 0]
    for dtype in VECTOR_TYPES:
        assert shares_off(stored(row_ND, dtype).table({}), row_ND, dtype).max() <= TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [("float32", np.nan, False), ("float32", np.inf, False), ("float32", 3e38, True), ("float16", 65_504, True),
     ("float16", 65_530, False), ("float16", np.nan, False), ("int8", 3e38, True), ("int8", -np.inf, False),
     ("int8", np.nan, False)],
)  # fmt: skip
def test_the_first_row_that_does_not_fit_is_told(dtype: str, value: float, fits: bool) -> None:
    row_ND = np.ones((30, 3), np.float32)
    row_ND[[17, 23], 1] = value
    result = StoredRows(30, 3, dtype)
    assert result.append(row_ND[:10]) is None
    assert result.append(row_ND[10:]) == (None if fits else 17)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_files_are_as_small_as_the_type(tmp_path: Path, dtype: str, size: int) -> None:
    row_ND = rows(20_000, 64)
    table = stored(row_ND, dtype).table({"item_id": pa.array(np.arange(len(row_ND)))})
    pq.write_table(table, tmp_path / "part.parquet", **parquet_settings(table))
    assert (tmp_path / "part.parquet").stat().st_size < 1.1 * len(row_ND) * (64 * size + 8 + 4)
    assert pq.read_table(tmp_path / "part.parquet").equals(table)
