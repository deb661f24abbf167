"""Items embedded and written a second, beside what one would write by hand in plain PyTorch.

    python benchmarks/export.py OUT

A million items with an id, a category, three numerics and a vector of 32, tables and tower of the default model. By
turns: trainer.export over two ranks of a thread each, and one process of two threads with nn.EmbeddingBag and the same
tower. The latter in two ways: as one writes it, which is to read the items' Parquet a row group at a time, in a thread
that is ahead, and to write as pyarrow does if told nothing; and as fast as it goes, with items that lie in memory ready
to use, in batches of 4,096, and Parquet written plainly as ours is. Counted from models loaded to files written; ours
alone digests items, adds up checksums of its files and makes sure that they are on the disk.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import workload
import works

BATCH, SHARD, ROW_GROUP = 4096, 100_000, 65_536
COLUMNS = ["raw_item_id", "item_id", "item_category", *works.ITEM_NUMERICS, "item_text"]
TIMES = 5
AS_WRITTEN, FROM_MEMORY = PLAIN = "plain, as one writes it", "plain, from memory"


def ours(run_dir: Path) -> tuple[float, float]:
    """Seconds from the loaded model to _SUCCESS, and MB that the process holds at its highest."""
    import shutil

    from trainer.config import CheckpointConfig, EmbeddingExportConfig, ExportConfig
    from trainer.first_imports import first_imports

    with first_imports():
        from trainer.runtime.loading import open_run
        from trainer.runtime.processes import find_processes, joined
        from trainer.runtime.shard_files import write_shards
        from trainer.runtime.shards import ItemShards

    import torch.distributed as dist

    settings = EmbeddingExportConfig(rows_per_shard=SHARD)
    config = ExportConfig(CheckpointConfig(dir=str(run_dir), threads=1), settings)
    processes, run = find_processes("cpu", 1), open_run(config.run)
    shards = ItemShards(run, config)
    pa.array(np.zeros(1))  # which imports pandas where there is one
    with joined(processes):
        shards.load(processes)
        if processes.is_first:
            shutil.rmtree(run_dir / "item_embeddings", ignore_errors=True)
        dist.barrier()
        start = time.perf_counter()
        write_shards(shards, run, config, processes)
        return time.perf_counter() - start, peak()


def plain(run_dir: Path, out: Path, way: str) -> tuple[float, float]:
    """The same of what one would write by hand; its embeddings are compared with ours."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    pa.array(np.zeros(1))  # which imports pandas where there is one
    tower, tables = plain_model(run_dir)
    if way == AS_WRITTEN:
        batches, settings = from_parquet(out.parent / "items.parquet"), {}
    else:
        batches, settings = in_memory(run_dir), {"use_dictionary": False, "compression": "none"}
    start = time.perf_counter()
    written = plain_export(tower, tables, batches, out, settings)
    seconds = time.perf_counter() - start
    ours = pq.read_table(run_dir / "item_embeddings" / "part-00000.parquet")["embedding"].combine_chunks()
    found = pq.read_table(written)["embedding"].combine_chunks().flatten().to_numpy()
    np.testing.assert_allclose(found[: len(ours.flatten())], ours.flatten().to_numpy(), atol=1e-5)
    return seconds, peak()


def plain_model(run_dir: Path) -> tuple[Any, dict[str, Any]]:
    """The trained tower, and its tables in memory."""
    import torch
    from torch import nn

    from trainer.config import CheckpointConfig
    from trainer.model.two_tower import make_model
    from trainer.runtime.loading import open_run
    from trainer.runtime.saved_table import SavedTable

    run = open_run(CheckpointConfig(dir=str(run_dir)))
    tower = make_model(run.schema, run.assembler.features, run.config).candidate_tower
    saved = {f"candidate_tower.{name}": torch.empty_like(p) for name, p in tower.state_dict().items()}
    torch.distributed.checkpoint.load({"model": saved}, checkpoint_id=run.checkpoint, no_dist=True)
    tower.load_state_dict({name.removeprefix("candidate_tower."): p for name, p in saved.items()})
    tables = {}
    for name in ("item_id", "item_category"):
        table = SavedTable(run.checkpoint, name)
        tables[name] = nn.EmbeddingBag.from_pretrained(table.read(range(table.num_rows)), mode="mean")
    return tower.eval(), tables


Batch = dict[str, Any]
"""Arrays by column: raw_item_id, item_id, item_category, the numerics, item_text."""


def in_memory(run_dir: Path) -> Iterator[Batch]:
    """Slices of the mapped catalogue."""
    from trainer.config import CheckpointConfig
    from trainer.runtime.loading import open_run

    with pa.memory_map(str(Path(open_run(CheckpointConfig(dir=str(run_dir))).data_dir) / "catalog.arrow")) as file:
        catalog = pa.ipc.open_file(file).read_all()
    columns = {name: catalog[name].chunk(0).to_numpy() for name in COLUMNS[:-1]}
    columns["item_text"] = catalog["item_text"].chunk(0).values.to_numpy().reshape(len(catalog), -1)
    return ({name: column[first : first + BATCH] for name, column in columns.items()}
            for first in range(0, len(catalog), BATCH))  # fmt: skip


def from_parquet(path: Path) -> Iterator[Batch]:
    """Row groups, decoded in a thread."""
    queue: Queue[Batch | None] = Queue(2)

    def read() -> None:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, use_threads=False).combine_chunks()
            columns = {name: rows[name].chunk(0).to_numpy() for name in COLUMNS[:-1]}
            queue.put(columns | {"item_text": rows["item_text"].chunk(0).flatten().to_numpy().reshape(len(rows), -1)})
        queue.put(None)

    Thread(target=read, daemon=True).start()
    return iter(queue.get, None)


def plain_export(tower: Any, tables: dict[str, Any], batches: Iterator[Batch], out: Path, settings: dict) -> Path:
    """One file, a row group for each batch of the reader's or more."""
    import torch

    kind = pa.list_(pa.float32(), 64)
    out.mkdir(parents=True, exist_ok=True)
    path, rows = out / "embeddings.parquet", []
    with pq.ParquetWriter(path, pa.schema({"item_id": pa.int64(), "embedding": kind}), **settings) as writer:

        def write() -> None:
            ids, embedding = rows[0] if len(rows) == 1 else map(np.concatenate, zip(*rows, strict=True))
            column = pa.FixedSizeListArray.from_arrays(embedding.reshape(-1), type=kind)
            writer.write_table(pa.table([ids, column], writer.schema))
            rows.clear()

        for batch in batches:
            with torch.inference_mode():
                one = torch.arange(len(batch["item_id"]))
                looked_up = {name: bag(torch.from_numpy(batch[name]).long(), one) for name, bag in tables.items()}
                dense = [batch[name][:, None] for name in works.ITEM_NUMERICS] + [batch["item_text"]]
                embedding = tower(looked_up, torch.from_numpy(np.concatenate(dense, axis=1)))
            rows.append((batch["raw_item_id"], embedding.numpy()))
            if sum(len(ids) for ids, _ in rows) >= ROW_GROUP:
                write()
        if rows:
            write()
    return path


def peak() -> float:
    """MB of this process at its highest, files that it maps included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1000


def measure(out: Path, part: str) -> tuple[float, float]:
    """One of the two in processes of its own."""
    os.sync()  # what another has left to be written is not this one's to wait for
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if part == "ours" else []
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if part == "ours" else {})
    command = [sys.executable, *torchrun, __file__, str(out), "--part", part]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    seconds, megabytes = told.splitlines()[-1].split()
    return float(seconds), float(megabytes)


def main(out: Path) -> None:
    data, run_dir = out / "features", out / "run"
    if not data.exists():
        workload.write(data, "features", 4 * BATCH)
    if not run_dir.exists():
        subprocess.run([sys.executable, "-m", "trainer.train", f"data.dir={data}", f"run.dir={run_dir}",
                        f"data.global_batch_size={BATCH}", "run.epochs=1", "run.monitor=null"], check=True)  # fmt: skip
    parts = ["ours", *PLAIN]
    items = out / "items.parquet"
    if not items.exists():
        with pa.memory_map(str(data / "catalog.arrow")) as file:
            pq.write_table(pa.ipc.open_file(file).read_all().select(COLUMNS), items, row_group_size=ROW_GROUP)
    found: dict[str, list[tuple[float, float]]] = {part: [] for part in parts}
    for _ in range(TIMES):
        for part in parts:
            found[part].append(measure(out, part))
    print(f"{'':<26}{'items/s':>10}{'± of ' + str(TIMES):>10}{'MB a rank':>11}{'ours to it':>12}")
    rates = {part: [works.ITEMS / seconds for seconds, _ in times] for part, times in found.items()}
    for part in parts:
        rate, spread = statistics.median(rates[part]), statistics.stdev(rates[part])
        share = statistics.median(rates["ours"]) / rate
        print(f"{part:<26}{rate:>10,.0f}{spread:>10,.0f}{max(mb for _, mb in found[part]):>11,.0f}{share:>11.2f}x")
    print(f"{os.cpu_count()} cores, {platform.machine()}, {date.today()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", choices=["ours", *PLAIN])
    arguments = parser.parse_args()
    if arguments.part is None:
        main(arguments.out)
    else:
        run = arguments.out / "run"
        result = ours(run) if arguments.part == "ours" else plain(run, arguments.out / "plain", arguments.part)
        if os.environ.get("RANK", "0") == "0":
            print(*result)
