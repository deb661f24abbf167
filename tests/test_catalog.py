import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.prepared import FEATURES, ITEMS, SCHEMA
from trainer.config import ModelConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.catalog_file import write_catalog
from trainer.data.footers import footer_checksums
from trainer.data.schema import RAW_ITEM_ID, TRAIN_COUNT, VALIDATION_COUNT, Feature, Schema
from trainer.errors import UserError

GENRES, TEXT = SCHEMA.features[5], SCHEMA.features[7]


def table_of(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all().combine_chunks()


def batches(table: pa.Table, rows: int) -> list[pa.RecordBatch]:
    return table.to_batches(max_chunksize=rows)


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_what_is_written_batch_by_batch_is_read_back_in_one(prepared: Path, tmp_path: Path, rows: int) -> None:
    table = table_of(prepared / "catalog.arrow")
    assert write_catalog(tmp_path / "catalog.arrow", batches(table, rows)) == ITEMS
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.arrow"]
    written = table_of(tmp_path / "catalog.arrow")
    assert written.to_pydict() == table.to_pydict()
    assert pa.types.is_large_list(written.schema.field("genres").type)
    catalog = Catalog(tmp_path, SCHEMA)
    chosen = np.array([3, 0, 39, 3])
    assert catalog.raw_ids(chosen).to_pylist() == [f"item-{row}" for row in chosen]
    lists = catalog.sparse(GENRES, chosen)
    values, lengths = lists.values, lists.lengths
    assert values.tolist() == [genre for row in chosen for genre in table["genres"][int(row)].as_py()]
    assert lengths.tolist() == [len(table["genres"][int(row)]) for row in chosen]
    assert catalog.dense(TEXT, chosen).tolist() == [table["text"][int(row)].as_py() for row in chosen]


def test_half_precision_vectors_stay_so_until_they_are_in_a_batch(tmp_path: Path) -> None:
    features = (
        Feature("item_id", "candidate", "id", table="item_id", num_embeddings=5),
        Feature("price", "candidate", "numeric"),
        Feature("image", "candidate", "vector", dim=3, dtype="float16"),
    )
    schema = Schema(features, 4, {"train": 4}, 0, 0, "int64", "int64", "")
    image = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float16)
    columns = {
        RAW_ITEM_ID: pa.array([7, 8, 9, 10]),
        TRAIN_COUNT: pa.array([1, 1, 1, 1]), VALIDATION_COUNT: pa.array([0, 1, 0, 0]),
        "item_id": pa.array([1, 2, 3, 4], pa.int32()), "price": pa.array([1.5, 2.5, 3.5, 4.5], pa.float32()),
        "image": pa.FixedSizeListArray.from_arrays(pa.array(image.reshape(-1)), 3),
    }  # fmt: skip
    write_catalog(tmp_path / "catalog.arrow", [pa.record_batch(columns)])
    catalog = Catalog(tmp_path, schema)
    assert catalog.dense(features[2], np.array([2])).dtype == np.float16
    dense = (
        BatchAssembler(schema, features, catalog, ModelConfig()).candidate_batch(np.array([2, 0])).item_dense.numpy()
    )
    assert dense.dtype == np.float32
    np.testing.assert_array_equal(dense, np.array([[3.5, *image[2]], [1.5, *image[0]]], np.float32))


def test_uniform_negatives_are_rows_of_it_like_any_other(prepared: Path) -> None:
    catalog = Catalog(prepared, SCHEMA)
    assembler = BatchAssembler(SCHEMA, FEATURES, catalog, ModelConfig(id_dropout=0.0))
    drawn = np.random.default_rng(0).integers(0, ITEMS, 100)
    batch = assembler.candidate_batch(drawn)
    for place, row in enumerate(drawn):
        alone = assembler.candidate_batch(np.array([row]))
        assert batch.item_dense[place].tolist() == alone.item_dense[0].tolist()
        for name in ("item_id", "genres"):
            together, single = (one.sparse_features[name].to_dense() for one in (batch, alone))
            assert together[place].tolist() == single[0].tolist()


def damaged(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = change(table_of(folder / "catalog.arrow"))
    with pa.ipc.new_file(folder / "catalog.arrow.new", table.schema) as file:
        file.write_table(table)
    (folder / "catalog.arrow.new").rename(folder / "catalog.arrow")


def replaced(name: str, column: Callable[[pa.Table], object]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.schema.get_field_index(name), name, column(table))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.slice(1), r"catalog.arrow=39 in 1, .*: expected 40 rows in one record batch"),
        (lambda table: table.drop_columns(["price"]), r"expected 40 rows in one record batch"),
        (lambda table: pa.concat_tables([table.slice(0, 9), table.slice(9)]), r"=40 in 2, raw_item_id"),
        (replaced("price", lambda table: table["price"].cast(pa.float64())), r"column price=double: expected float"),
        (replaced("item_id", lambda table: pa.array([41] + [0] * 39, pa.int32())), r"item_id row 0=41: expected 0"),
        (replaced(TRAIN_COUNT, lambda table: pa.array([1] * 39 + [None])), r"train_count row 39=null: expected"),
        (replaced("genres", lambda table: pa.array([[1]] * 39 + [[1, 9]], pa.list_(pa.int32()))),
         r"genres row 39=9 in a list: expected 0 to 5"),
        (replaced("genres", lambda table: pa.array([[1] * 5] * 40, pa.list_(pa.int32()))),
         r"genres row 0=a list of 5: expected 0 to 4 values"),
    ],
)  # fmt: skip
def test_a_catalogue_that_breaks_the_contract_is_refused(
    prepared: Path, tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    folder = shutil.copytree(prepared, tmp_path / "copy")
    damaged(folder, change)
    with pytest.raises(UserError, match=message):
        Catalog(folder, SCHEMA)


def test_a_flipped_bit_is_noticed(prepared: Path, tmp_path: Path) -> None:
    table = table_of(prepared / "catalog.arrow")
    path = tmp_path / "catalog.arrow"
    write_catalog(path, batches(table, ITEMS))
    content = bytearray(path.read_bytes())
    place = content.index(table[TRAIN_COUNT].to_numpy().tobytes())
    content[place + 8] ^= 4  # a count that is as good as another
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"column train_count=damaged: expected the bytes that were written"):
        Catalog(tmp_path, SCHEMA)


def test_a_file_that_is_missing_or_cut_is_named(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a readable catalog.arrow"):
        Catalog(tmp_path, SCHEMA)
    (tmp_path / "catalog.arrow").write_bytes((prepared / "catalog.arrow").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"expected a readable catalog.arrow"):
        Catalog(tmp_path, SCHEMA)


def test_another_catalogue_that_would_do_as_well_is_noticed(prepared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(prepared, tmp_path / "copy")
    schema = replace(SCHEMA, footers=footer_checksums(folder))
    Catalog(folder, schema)
    turned = table_of(folder / "catalog.arrow").combine_chunks()
    turned = turned.set_column(
        turned.schema.get_field_index("text"), "text", turned["text"].take(pa.array(range(ITEMS)[::-1]))
    )
    write_catalog(tmp_path / "catalog.arrow", batches(turned, ITEMS))
    (tmp_path / "catalog.arrow").rename(folder / "catalog.arrow")
    Catalog(folder, replace(SCHEMA, footers={}))
    with pytest.raises(UserError, match=r"catalog.arrow=damaged or another: expected the file that was written"):
        Catalog(folder, schema)


def test_weights_of_another_number_than_the_values_are_refused(prepared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(prepared, tmp_path / "copy")
    lists = table_of(folder / "catalog.arrow")["genres"].to_pylist()
    weights = [[0.5] * (len(genres) + (row == 7)) for row, genres in enumerate(lists)]
    damaged(folder, lambda table: table.append_column("genres_weight", pa.array(weights, pa.list_(pa.float32()))))
    features = tuple(replace(feature, weighted=feature.name == "genres") for feature in FEATURES)
    with pytest.raises(UserError, match=r"column genres_weight row 7=a list of \d: expected the \d of genres"):
        Catalog(folder, replace(SCHEMA, features=features))
