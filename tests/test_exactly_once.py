"""Through real files and the real reader: whatever is interrupted and however many ranks go on, no row is lost."""

import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import ModelConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.events import TrainingReader
from trainer.data.order import TrainingOrder
from trainer.data.row_groups import open_events
from trainer.data.schema import ITEM_ROW, RAW_ITEM_ID, TRAIN_COUNT, VALIDATION_COUNT, Feature, Schema

STREAMS = 6


def write(folder: Path, files: list[list[int]]) -> Schema:
    """Files with row groups of these sizes; every row is a user of its own."""
    rows = sum(map(sum, files))
    features = (
        Feature("user_id", "query", "id", table="user_id", num_embeddings=rows),
        Feature("item_id", "candidate", "id", table="item_id", num_embeddings=2),
    )
    (folder / "events" / "train").mkdir(parents=True)
    begin = 0
    for number, sizes in enumerate(files):
        schema = pa.schema([("user_id", pa.int32()), (ITEM_ROW, pa.int32())])
        with pq.ParquetWriter(folder / f"events/train/part-{number:05d}.parquet", schema) as writer:
            for size in sizes:
                users = np.arange(begin, begin + size, dtype=np.int32)
                writer.write_table(pa.table([users, np.zeros(size, np.int32)], schema=schema))
                begin += size
    counts = {TRAIN_COUNT: [rows], VALIDATION_COUNT: [0]}
    catalog = pa.table({RAW_ITEM_ID: [7], **counts, "item_id": pa.array([1], pa.int32())})
    with pa.ipc.new_file(folder / "catalog.arrow", catalog.schema) as file:
        file.write_table(catalog)
    return Schema(features, 1, {"train": rows, "validation": 0, "test": 0}, 0, 0, "int64", "int64", "by hand")


class Job:
    """A training job that can be stopped and started again with another number of ranks."""

    def __init__(self, folder: Path, schema: Schema, rows_per_step: int, seed: int) -> None:
        self.assembler = BatchAssembler(schema, schema.features, Catalog(folder, schema), ModelConfig(id_dropout=0.0))
        self.files = open_events(folder, schema, "train", self.assembler.columns("event"))
        self.order = TrainingOrder(self.files.sizes, STREAMS * rows_per_step, STREAMS, seed)

    def run(self, world_size: int, start: int, steps: int) -> list[list[int]]:
        """Rows of each step, over all ranks in order of rank."""
        shares = []
        for rank in range(world_size):
            reader = TrainingReader(self.files, "event", self.assembler, self.order, rank, world_size)
            reader.next_step = start
            shares.append([batch.sparse_features["user_id"].values().tolist() for batch in islice(reader, steps)])
            reader.close()
        return [[row for share in of_step for row in share] for of_step in zip(*shares, strict=True)]


@given(
    files=st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=4), min_size=1, max_size=4).filter(
        lambda files: sum(map(sum, files)) >= STREAMS * 3
    ),
    rows_per_step=st.integers(1, 3),
    seed=st.integers(0, 3),
    stretches=st.lists(st.tuples(st.sampled_from([1, 2, 3, 6]), st.integers(0, 12)), max_size=4),
    epochs=st.integers(1, 2),
)
@settings(max_examples=40)
def test_each_row_is_trained_exactly_once_an_epoch(
    files: list[list[int]], rows_per_step: int, seed: int, stretches: list[tuple[int, int]], epochs: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        job = Job(Path(name), write(Path(name), files), rows_per_step, seed)
        steps = job.order.steps(epochs)
        trained: list[list[int]] = []
        for world_size, some in stretches:  # each ends in an interruption
            trained += job.run(world_size, len(trained), min(some, steps - len(trained)))
        trained += job.run(2, len(trained), steps - len(trained))
        assert trained == job.run(1, 0, steps)
    counts = Counter(row for step in trained for row in step)
    begun = steps * job.order.global_batch_size - epochs * job.order.num_rows
    assert set(counts) == set(range(job.order.num_rows))
    assert Counter(counts.values()) == +Counter({epochs: job.order.num_rows - begun, epochs + 1: begun})
    assert begun < job.order.global_batch_size


def test_the_reader_holds_no_more_of_row_groups_than_it_says(tmp_path: Path) -> None:
    job = Job(tmp_path, write(tmp_path, [[40_000] * 20, [5_000] * 40]), rows_per_step=50, seed=0)
    reader = TrainingReader(job.files, "event", job.assembler, job.order, 0, 2)
    before, most = pa.total_allocated_bytes(), 0
    for _ in islice(reader.batches(0), job.order.steps(1.5)):
        most = max(most, pa.total_allocated_bytes() - before)
    assert reader.memory == (3 + 2) * 40_000 * 8
    assert 0.5 * reader.memory < most < reader.memory
