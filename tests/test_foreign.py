import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.config import FeatureConfig, ForeignConfig, GeneratedConfig, ModelConfig, PrepareConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.events import TrainingReader
from trainer.data.foreign import complete_folder
from trainer.data.order import TrainingOrder
from trainer.data.row_groups import open_events
from trainer.data.schema import Schema, read_schema
from trainer.errors import UserError
from trainer.prepare import prepare

PAGE = Path(__file__).parent.parent / "docs" / "prepared_folder.md"


def write_example(folder: Path) -> Path:
    """Runs the page's own example."""
    text = PAGE.read_text()
    features = json.loads(re.search(r"^    (\{\"user_id_type.*?\]\})$", text, re.S | re.M)[1])
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    exec(compile(code, str(PAGE), "exec"), {"DIR": str(folder), "FEATURES": features})
    return folder


def complete(folder: Path) -> Schema:
    return complete_folder(ForeignConfig(dir=str(folder)), "1GB")


def test_the_example_of_the_page_is_completed_and_read(tmp_path: Path) -> None:
    schema = complete(write_example(tmp_path / "data"))
    assert schema == read_schema(tmp_path / "data")
    assert (schema.num_items, schema.num_events) == (4, {"train": 4, "validation": 1, "test": 1})
    catalog = Catalog(tmp_path / "data", schema)
    assert catalog.train_counts().tolist() == [1, 2, 1, 0]
    assert catalog.raw_ids(np.array([3, 1])).to_pylist() == ["fan", "pen"]
    assembler = BatchAssembler(schema, schema.features, catalog, ModelConfig(id_dropout=0.0))
    files = open_events(tmp_path / "data", schema, "train", assembler.columns("event"))
    batch = next(TrainingReader(files, "event", assembler, TrainingOrder(files.sizes, 4, 1, 0), 0, 1).batches(0))
    item = {row: int(value) for row, value in enumerate([3, 1, 2, 0])}
    rows = [
        (user.tolist(), [value.item() for value in history], positive)
        for user, history, positive in zip(
            batch.sparse_features["user_id"].to_dense(), batch.sparse_features["history"].to_dense(),
            batch.item_row[batch.positive].tolist(), strict=True,
        )
    ]  # fmt: skip
    expected = [([1], [], 1), ([1], [item[1]], 2), ([1], [item[1], item[2]], 0), ([2], [], 1)]
    assert sorted(rows) == sorted(expected)


def test_incomplete_and_complete_folders_say_what_to_do(tmp_path: Path) -> None:
    folder = write_example(tmp_path / "data")
    with pytest.raises(UserError, match=r"Remedy: python -m trainer.prepare data=foreign data.dir="):
        read_schema(folder)
    complete(folder)
    with pytest.raises(UserError, match=r"expected a folder that is not complete yet.*schema.json"):
        complete(folder)
    with pytest.raises(UserError, match=r"expected a folder with features.json"):
        complete(tmp_path / "nowhere")


def as_foreign(ours: Path, theirs: Path) -> Path:
    """What another engine would have written for the same data, in its own habits."""
    schema = read_schema(ours)
    for split in ("train", "validation", "test"):
        (theirs / "events" / split).mkdir(parents=True)
        table = pa.concat_tables(pq.read_table(path) for path in sorted((ours / "events" / split).iterdir()))
        for number in range(3):
            part = table.slice(number * len(table) // 3, (number + 1) * len(table) // 3 - number * len(table) // 3)
            path = theirs / f"events/{split}/part-0000{number}-77ab-c000.snappy.parquet"
            pq.write_table(part, path, compression="snappy", row_group_size=777, store_schema=False)
    (theirs / "catalog").mkdir()
    with pa.memory_map(str(ours / "catalog.arrow")) as file:
        items = pa.ipc.open_file(file).read_all().drop_columns(["train_count"])
    pq.write_table(items, theirs / "catalog" / "part-0.parquet", row_group_size=100, store_schema=False)
    for path in (ours / "vocabulary").iterdir():
        (theirs / "vocabulary" / path.name).mkdir(parents=True)
        table = pq.read_table(path)
        pq.write_table(table.slice(0, 10), theirs / "vocabulary" / path.name / "part-0.parquet")
        pq.write_table(table.slice(10), theirs / "vocabulary" / path.name / "part-1.parquet")
    declared = {name: asdict(schema)[name] for name in ("features", "user_id_type", "item_id_type", "timestamps")}
    (theirs / "features.json").write_text(json.dumps(declared))
    return theirs


def test_data_written_by_another_engine_is_the_same_data(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    features = {
        "user_id": {"side": "query", "kind": "id"},
        "age": {"side": "query", "kind": "numeric"},
        "history": {"side": "query", "kind": "history", "length": 5},
        "item_id": {"side": "candidate", "kind": "id", "min_count": 5},
        "tags": {"side": "candidate", "kind": "categorical"},
        "audience": {"side": "candidate", "kind": "audience", "length": 9},
        "price": {"side": "candidate", "kind": "numeric", "log1p": True},
        "title": {"side": "candidate", "kind": "text", "dim": 8},
    }
    declared = {name: FeatureConfig(**fields) for name, fields in features.items()}
    schema = prepare(PrepareConfig(data=GeneratedConfig(dir=str(ours), features=declared, users=300, items=200)))
    theirs = as_foreign(ours, tmp_path / "theirs")
    assert replace(complete(theirs), footers={}) == replace(schema, footers={})  # the fingerprint of all ids too
    tables = []
    for folder in (ours, theirs):
        with pa.memory_map(str(folder / "catalog.arrow")) as file:
            tables.append(pa.ipc.open_file(file).read_all().to_pydict())
    assert tables[0] == tables[1]


def test_validation_may_be_left_out(tmp_path: Path) -> None:
    folder = write_example(tmp_path)
    shutil.rmtree(folder / "events" / "validation")
    assert complete(folder).num_events == {"train": 4, "validation": 0, "test": 1}
    assert read_schema(folder).num_events["validation"] == 0


def with_sequences(folder: Path, **columns: list) -> None:
    declared = json.loads((folder / "features.json").read_text()) | {"sequence_length": 4}
    declared["features"][1]["per_event"] = True
    (folder / "features.json").write_text(json.dumps(declared))
    given = {"item_row": [[1, 2, 0], [1, 3]], "age": [[31.0, 31.0, 32.0], [20.0, 20.0]], "user_id": [1, 2]} | columns
    kinds = {"item_row": pa.list_(pa.int32()), "age": pa.list_(pa.float32()), "user_id": pa.int32()}
    table = pa.table({name: pa.array(values, kinds[name]) for name, values in given.items()})
    (folder / "sequences").mkdir()
    pq.write_table(table, folder / "sequences" / "part-0.parquet")


def test_sequences_may_stand_for_the_training_events(tmp_path: Path) -> None:
    folder = write_example(tmp_path)
    with_sequences(folder)
    shutil.rmtree(folder / "events" / "train")
    schema = complete(folder)
    assert (schema.num_sequences, schema.sequence_length, schema.num_events["train"]) == (2, 4, 3)
    assert Catalog(folder, schema).train_counts().tolist() == [1, 0, 1, 1]


def with_everything(folder: Path) -> None:
    """Adds times, ages of the history, weights of rows and of tags to all files that may have them."""
    with_sequences(folder)
    declared = json.loads((folder / "features.json").read_text()) | {"timestamps": True, "sample_weights": True}
    declared["features"][4]["weighted"] = True
    (folder / "features.json").write_text(json.dumps(declared))
    int64s, floats = pa.list_(pa.int64()), pa.list_(pa.float32())
    added = {
        "events/train": {"timestamp": [5, 7, 9, 9], "history_age": pa.array([[], [2], [4, 2], []], int64s),
                         "weight": pa.array([1.0, 0.0, 2.5, 1.0], pa.float32())},
        "events/validation": {"timestamp": [9], "history_age": pa.array([[0]], int64s)},
        "events/test": {"timestamp": [10], "history_age": pa.array([[3, 3]], int64s)},
        "sequences": {"timestamp": pa.array([[5, 7, 9], [1, 1]], int64s),
                      "weight": pa.array([[1.0, 2.0, 0.5], [0.0, 1.0]], floats)},
        "catalog": {"tags_weight": pa.array([[1.0], [0.5, 0.0], [], []], floats)},
    }  # fmt: skip
    for name, given in added.items():
        table = pq.read_table(folder / name / "part-0.parquet")
        for column, values in given.items():
            table = table.append_column(column, values if isinstance(values, pa.Array) else pa.array(values))
        pq.write_table(table, folder / name / "part-0.parquet")


def test_times_ages_and_weights_are_read(tmp_path: Path) -> None:
    folder = write_example(tmp_path)
    with_everything(folder)
    schema = complete(folder)
    assert schema.timestamps
    assert schema.sample_weights
    assert Catalog(folder, schema).sparse(schema.features[4], np.array([1, 0])).weights.tolist() == [0.5, 0.0, 1.0]


AGES, FLOATS = pa.list_(pa.int64()), pa.list_(pa.float32())


@pytest.mark.parametrize(
    ("path", "column", "values", "message"),
    [
        ("events/train", "history_age", pa.array([[], [2], [2, 4], []], AGES),
         r"events/train row group 0 column history_age row 2=ages that rise: expected those of a history from its old"),
        ("events/train", "history_age", pa.array([[], [2], [2], []], AGES),
         r"column history_age row 2=a list of 1: expected the 2 of history"),
        ("events/train", "history_age", pa.array([[], [-2], [4, 2], []], AGES),
         r"column history_age row 1=-2 in a list: expected 0 to"),
        ("events/test", "history_age", None, r"expected a column history_age of lists of int64 beside"),
        ("events/validation", "timestamp", None, r"expected a column timestamp of int64 beside"),
        ("events/train", "weight", pa.array([1.0, 1.0, -1.0, 1.0], pa.float32()),
         r"column weight row 2=-1.0: expected finite numbers from 0"),
        ("sequences", "weight", pa.array([[1.0, 2.0, 0.5], [0.0]], FLOATS),
         r"column weight row 1=a list of 1: expected 2 to 4 values"),
        ("sequences", "timestamp", pa.array([[5, 7], [1, 1]], AGES),
         r"column timestamp row 0=a list of 2: expected the 3 of item_row"),
        ("catalog", "tags_weight", pa.array([[1.0], [0.5], [], []], FLOATS),
         r"column tags_weight row 1=a list of 1: expected the 2 of tags"),
    ],
)  # fmt: skip
def test_times_ages_and_weights_that_break_the_contract_are_named(
    tmp_path: Path, path: str, column: str, values: pa.Array | None, message: str
) -> None:
    folder = write_example(tmp_path / "data")
    with_everything(folder)
    rewritten(f"{path}/part-0.parquet", **{column: values})(folder)
    with pytest.raises(UserError, match=message):
        complete(folder)


def rewritten(path: str, **columns: object) -> Callable[[Path], None]:
    """Replaces columns of one of the example's files; None leaves one out."""

    def change(folder: Path) -> None:
        table = pq.read_table(folder / path)
        for name, values in columns.items():
            index = table.schema.get_field_index(name)
            kind = table.schema.field(index).type
            if values is None:
                table = table.remove_column(index)
            else:
                table = table.set_column(
                    index, name, values if isinstance(values, pa.Array) else pa.array(values, kind)
                )
        pq.write_table(table, folder / path)

    return change


def declared(number: int, **fields: object) -> Callable[[Path], None]:
    """Changes what features.json says of a feature."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "features.json").read_text())
        content["features"][number] |= fields
        (folder / "features.json").write_text(json.dumps(content))

    return change


def undeclared(folder: Path, number: int, name: str) -> None:
    content = json.loads((folder / "features.json").read_text())
    del content["features"][number][name]
    (folder / "features.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "features.json").write_text("{"), r"features.json=unfit: expected features"),
        (declared(0, kind="ids"), r"feature user_id: kind=ids is not one of id, categorical, numeric, vector, history"),
        (declared(0, num_embeddings="3"), r"feature user_id: num_embeddings='3' is no int"),
        (declared(0, embeddings=3), r"features.json=unfit.*feature user_id: unknown embeddings"),
        (declared(2, table="user_id"), r"features user_id and history differ about table user_id"),
        (declared(2, table="clicks"), r"feature history: table=clicks is not that of item_id"),
        (declared(2, num_embeddings=9), r"features history and item_id differ about table item_id"),
        (declared(3, side="query"), r"not exactly one id on the candidate side"),
        (declared(1, std=0), r"feature age: std=0 is not above 0"),
        (declared(4, length=0), r"feature tags: length=0 is not above 0"),
        (declared(4, name="seen"), r"feature seen: name is one of raw_item_id"),
        (declared(4, name="user_id"), r"two features of one name among user_id"),
        (declared(4, length=1), r"part-0.parquet row group 0 column tags row 1=a list of 2: expected 0 to 1 val"),
        (declared(5, dim=3), r"column image row 0=a list of 2: expected 3 values"),
        (declared(5, dtype="float16"), r"column image=list<.*float>: expected lists of halffloat"),
        (rewritten("catalog/part-0.parquet", tags=None), r"expected a column tags of lists of int32 or int64 beside"),
        (rewritten("catalog/part-0.parquet", raw_item_id=["mug", "pen", "mug", "fan"]),
         r"catalog column raw_item_id=mug in 2 rows: expected every id once"),
        (rewritten("catalog/part-0.parquet", item_id=[3, 2, 1, 0]),
         r"column item_id=1 for raw_item_id cap: expected 2, its index in the vocabulary"),
        (rewritten("catalog/part-0.parquet", item_id=[3, 1, 2, 4]), r"column item_id row 3=4: expected 0 to 3"),
        (rewritten("catalog/part-0.parquet", image=[[0.1, 0.2], [0.3, float("nan")], [0, 0], [1, 1]]),
         r"column image row 1=nan in a list: expected finite numbers"),
        (rewritten("vocabulary/user_id.parquet", index=[2, 1]), r"user_id.parquet row 0=id 17 with index 2"),
        (rewritten("vocabulary/user_id.parquet", id=[17, 17]), r"user_id.parquet column id=17 in 2 rows: "),
        (rewritten("vocabulary/user_id.parquet", id=None), r"user_id.parquet=index INTEGER, count BIGINT: expected id"),
        (rewritten("vocabulary/item_id.parquet", id=pa.array([1, 2, 3])),
         r"item_id.parquet column id=BIGINT: expected string, as item_id_type has it"),
        (declared(0, num_embeddings=4), r"user_id.parquet=2 ids: expected 3 ids for num_embeddings=4"),
        (lambda folder: (folder / "vocabulary/tags.parquet").unlink(), r"tags.parquet=missing: expected a vocabulary"),
        (lambda folder: (folder / "vocabulary/tags.parquet").write_text("x"), r"tags.parquet=damaged: expected "),
        (lambda folder: shutil.rmtree(folder / "events/test"), r"expected rows in .*events/test/part"),
        (lambda folder: shutil.rmtree(folder / "events/train"), r"expected rows in .*events/train/part"),
        (rewritten("events/train/part-0.parquet", item_row=[1, 2, 4, 1]), r"train/part-0.parquet.*item_row row 2=4: "),
        (rewritten("events/test/part-0.parquet", raw_user_id=pa.array(["4"])), r"raw_user_id=string: expected int64"),
        (lambda folder: (folder / "events/train/part-0.parquet").rename(folder / "events/train/data-0.parquet"),
         r"data-0.parquet=a name that is not read: expected files named part-"),
        (rewritten("vocabulary/item_id.parquet", count=[1, 2, 1]),
         r"item_id.parquet column count=1 for id pen: expected the 2 training events that name its row"),
        (rewritten("events/test/part-0.parquet", raw_user_id=[17]),
         r"events/test column user_id=2 for raw_user_id 17: expected 1, its index in the vocabulary"),
        (rewritten("events/test/part-0.parquet", seen=[[1]]),
         r"events/test row group 0 column seen row 0=a list of 1: expected all that .* at least the 2 of history"),
        (lambda folder: undeclared(folder, 1, "std"), r"feature age: missing std"),
        (lambda folder: with_sequences(folder, age=[[1.0, 2.0], [3.0, 4.0]]),
         r"sequences/part-0.parquet row group 0 column age row 0=a list of 2: expected the 3 of item_row"),
        (lambda folder: with_sequences(folder, item_row=[[1], [1, 2]], age=[[1.0], [1.0, 2.0]]),
         r"column item_row row 0=a list of 1: expected 2 to 4 values"),
    ],
)  # fmt: skip
def test_what_breaks_the_contract_is_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = write_example(tmp_path / "data")
    damage(folder)
    with pytest.raises(UserError, match=message):
        complete(folder)
    assert not (folder / "schema.json").exists()


def test_hashed_tables_need_no_vocabulary(tmp_path: Path) -> None:
    folder = write_example(tmp_path / "data")
    declared(0, hashed=True)(folder)
    (folder / "vocabulary/user_id.parquet").unlink()
    assert complete(folder).features[0].hashed
