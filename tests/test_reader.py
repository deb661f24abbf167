import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.prepared import FEATURES, ITEMS, ROWS, SCHEMA
from trainer.config import ModelConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.batch import RetrievalBatch
from trainer.data.catalog import Catalog
from trainer.data.events import HeldOutReader, TrainingReader
from trainer.data.order import TrainingOrder
from trainer.data.row_groups import open_events
from trainer.data.schema import HISTORY_AGE, ITEM_ROW, SEEN, TARGETS, read_schema
from trainer.data.shares import share_of_rank, steps_of_all
from trainer.errors import UserError

BATCH, STREAMS = 48, 6


def assembler(folder: Path, id_dropout: float = 0.0) -> BatchAssembler:
    return BatchAssembler(SCHEMA, FEATURES, Catalog(folder, SCHEMA), ModelConfig(id_dropout=id_dropout), seed=3)


def reader(
    folder: Path, rank: int = 0, world_size: int = 1, id_dropout: float = 0.0, pinned: bool = False
) -> TrainingReader:
    layout = assembler(folder, id_dropout)
    files = open_events(folder, SCHEMA, "train", layout.columns("event"))
    order = TrainingOrder(files.sizes, BATCH, STREAMS, seed=3)
    return TrainingReader(files, "event", layout, order, rank, world_size, pinned)


def rows_of(batch: RetrievalBatch) -> list[tuple]:
    """Every row of a batch as a tuple of all it holds."""
    lists = {name: jagged.to_dense() for name, jagged in batch.sparse_features.to_dict().items()}
    side = {feature.name: feature.side for feature in FEATURES}
    rows = []
    for row, item in enumerate(batch.positive.tolist()):
        rows.append(
            (
                *(tuple(lists[name][row if side[name] == "query" else item].tolist()) for name in lists),
                tuple(np.nan_to_num(batch.query_dense[row].numpy(), nan=-1).tolist()),
                tuple(batch.item_dense[item].tolist()),
                int(batch.item_row[item]),
            )
        )
    return rows


def expected_rows(folder: Path) -> set[tuple]:
    """The same tuples, put together row by row in plain Python."""
    catalog = pa.ipc.open_file(pa.memory_map(str(folder / "catalog.arrow"))).read_all().to_pylist()
    rows = set()
    for event in pq.read_table(folder / "events" / "train").to_pylist():
        item = catalog[event[ITEM_ROW]]
        sparse = [
            (event["user_id"],), (event["hour"],), tuple(catalog[row]["item_id"] for row in event["history"]),
            (item["item_id"],), tuple(item["genres"]),
        ]  # fmt: skip
        age = -1.0 if np.isnan(event["age"]) else np.float32(event["age"])
        rows.add((*sparse, (float(age),), (item["price"], *item["text"]), event[ITEM_ROW]))
    return rows


def test_an_epoch_holds_the_rows_of_the_files_joined_with_the_catalogue(prepared: Path) -> None:
    source = reader(prepared)
    rows = [row for batch in islice(source, source.order.steps(1)) for row in rows_of(batch)]
    source.close()
    assert set(rows) == expected_rows(prepared)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_hold_the_batches_of_one(prepared: Path, world_size: int) -> None:
    alone = islice(reader(prepared, id_dropout=0.3), 30)
    together = [iter(reader(prepared, rank, world_size, id_dropout=0.3)) for rank in range(world_size)]
    for batch in alone:
        assert rows_of(batch) == [row for rank in together for row in rows_of(next(rank))]


@pytest.mark.parametrize("step", [1, 19, 20, 27, 41])
def test_a_reader_resumed_at_a_step_goes_on_as_the_uninterrupted_one(prepared: Path, step: int) -> None:
    resumed = reader(prepared, id_dropout=0.3)
    resumed.next_step = step
    expected = islice(reader(prepared, id_dropout=0.3), step, step + 3)
    for batch, other in zip(islice(resumed, 3), expected, strict=True):
        assert rows_of(batch) == rows_of(other)


def test_id_dropout_hides_about_its_share_of_each_id_and_nothing_else(prepared: Path) -> None:
    plain, dropped = (list(islice(reader(prepared, id_dropout=p), 20)) for p in (0.0, 0.25))
    seen, hidden = (dict.fromkeys(("user_id", "item_id"), 0) for _ in range(2))
    for before, after in zip(plain, dropped, strict=True):
        for name in (feature.name for feature in FEATURES if feature.is_sparse):
            old, new = (batch.sparse_features[name].values() for batch in (before, after))
            if name in hidden:
                pairs = {(a, b) for a, b in zip(old.tolist(), new.tolist(), strict=True) if a}
                assert all(b in (0, a) for a, b in pairs) and len(pairs) == len({a for a, _ in pairs})
                hidden[name] += sum(b == 0 for _, b in pairs)
                seen[name] += len(pairs)
            else:
                assert torch.equal(old, new)
    assert all(0.2 < hidden[name] / seen[name] < 0.3 for name in hidden)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 16), (2, 16), (3, 25), (1, 100)])
def test_held_out_rows_come_once_in_order_in_equal_batches(prepared: Path, world_size: int, batch_size: int) -> None:
    layout, files = assembler(prepared), open_events(prepared, SCHEMA, "test")
    steps = steps_of_all(files.num_rows, batch_size, world_size)
    events = pq.read_table(prepared / "events" / "test").to_pylist()
    seen_rows = []
    for rank in range(world_size):
        share = share_of_rank(files.num_rows, rank, world_size)
        batches = list(HeldOutReader(files, layout, batch_size, share, steps))
        assert len(batches) == steps
        for batch in batches:
            assert len(batch.row) == batch_size == batch.batch.query_dense.shape[0]
            targets = batch.target_rows.split(batch.target_lengths.tolist())
            seen = batch.seen_rows.split(batch.seen_lengths.tolist())
            for position, row in enumerate(batch.row.tolist()):
                if row >= 0:
                    seen_rows.append(row)
                    assert seen[position].tolist() == events[row][SEEN]
                    assert targets[position].tolist() == events[row][TARGETS]
                    user = batch.batch.sparse_features["user_id"].to_dense()[position]
                    assert user.tolist() == [events[row]["user_id"]]
    assert seen_rows == list(range(len(events)))


def test_candidates_alone_have_no_queries(prepared: Path) -> None:
    batch = assembler(prepared).candidate_batch(np.array([3, 0, ITEMS - 1]))
    assert batch.query_dense is None and batch.item_row.tolist() == [3, 0, ITEMS - 1]
    assert batch.sparse_features["history"].values().numel() == 0
    assert batch.sparse_features["item_id"].values().tolist() == [4, 0, 40]


def test_each_item_is_there_once_with_its_counts_and_share_of_the_training_events(prepared: Path) -> None:
    shares = Catalog(prepared, SCHEMA).train_counts() / ROWS["train"]
    batch = next(reader(prepared).batches(0))
    rows, count = np.unique(batch.item_row[batch.positive].numpy(), return_counts=True)
    assert batch.item_row.tolist() == rows.tolist() and batch.positive_count.tolist() == count.tolist()
    assert batch.uniform_count.sum() == 0
    np.testing.assert_allclose(batch.train_share.numpy(), shares[rows], rtol=1e-6)


def test_errors_of_the_reading_thread_reach_the_consumer(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(prepared, folder)
    source = reader(folder)
    for path in (folder / "events" / "train").iterdir():
        content = bytearray(path.read_bytes())
        content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
        path.write_bytes(content)
    with pytest.raises((UserError, OSError)):
        list(islice(source, 20))


def test_a_folder_that_is_not_prepared_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.dir=.*schema.json.*python -m trainer.prepare"):
        read_schema(tmp_path)


def test_row_groups_too_large_for_the_memory_allowed_are_refused(prepared: Path) -> None:
    source = reader(prepared)
    assert source.memory == (STREAMS + 2) * source.files.largest
    assert reader(prepared, rank=1, world_size=3).memory == (STREAMS // 3 + 2) * source.files.largest
    source.check_memory(source.memory / 1e9)
    with pytest.raises(UserError, match=r"memory_gb=1e-06: expected at least 0.0 for 6 streams a rank in row gr"):
        source.check_memory(1e-6)


def test_an_item_that_the_catalogue_lacks_is_row_0_of_the_table(prepared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(prepared, tmp_path / "copy")
    path = folder / "events" / "test" / "part-00000.parquet"
    table = pq.read_table(path)
    for name, first in (("history", [-1, 3, -1]), (HISTORY_AGE, [9, 4, 1])):
        lists = pa.array([first, *table[name].to_pylist()[1:]], table[name].type)
        table = table.set_column(table.schema.get_field_index(name), name, lists)
    pq.write_table(table, path)
    layout, files = assembler(folder), open_events(folder, SCHEMA, "test")
    (batch,) = HeldOutReader(files, layout, 4, range(4), 1)
    assert batch.batch.sparse_features["history"].to_dense()[0].tolist() == [0, 4, 0]
