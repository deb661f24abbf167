"""Items embedded and written a second, beside what one would write by hand in plain PyTorch.

    python benchmarks/export.py OUT

A million items with an id, a category, three numerics and a vector of 32, tables and tower of the default model. By
turns: trainer.export over two ranks of a thread each, and one process of two threads with nn.EmbeddingBag and the same
tower that writes the same shards with pyarrow, as pyarrow does it if told nothing (dictionary, Snappy, statistics) and
as trainer.export does (plain). Counted from models loaded to files written; neither side waits for the other.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import workload

BATCH, SHARD = 4096, 100_000
TIMES = 3


def ours(run_dir: Path) -> tuple[float, float]:
    """Seconds from the loaded model to _SUCCESS, and MB that the process holds at its highest."""
    import shutil

    import torch.distributed as dist

    from trainer.config import CheckpointConfig, EmbeddingExportConfig, ExportConfig
    from trainer.runtime.loading import open_run
    from trainer.runtime.processes import find_processes, joined
    from trainer.runtime.shard_files import write_shards
    from trainer.runtime.shards import ItemShards

    config = ExportConfig(CheckpointConfig(dir=str(run_dir), threads=1),
                          EmbeddingExportConfig(rows_per_shard=SHARD, batch_size_per_rank=BATCH))  # fmt: skip
    processes, run = find_processes("cpu", 1), open_run(config.run)
    shards = ItemShards(run, config)
    with joined(processes):
        shards.load(processes)
        if processes.is_first:
            shutil.rmtree(run_dir / "item_embeddings", ignore_errors=True)
        dist.barrier()
        start = time.perf_counter()
        write_shards(shards, run, config, processes)
        return time.perf_counter() - start, peak()


def plain(run_dir: Path, out: Path, settings: dict[str, object]) -> tuple[float, float]:
    """The same of what one would write by hand; its embeddings are compared with ours."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from torch import nn

    from trainer.model.two_tower import make_model
    from trainer.runtime.loading import open_run
    from trainer.runtime.saved_table import SavedTable

    torch.set_num_threads(os.cpu_count() or 1)
    from trainer.config import CheckpointConfig

    run = open_run(CheckpointConfig(dir=str(run_dir)))
    tower = make_model(run.schema, run.assembler.features, run.config).candidate_tower
    saved = {f"candidate_tower.{name}": torch.empty_like(p) for name, p in tower.state_dict().items()}
    torch.distributed.checkpoint.load({"model": saved}, checkpoint_id=run.checkpoint, no_dist=True)
    tower.load_state_dict({name.removeprefix("candidate_tower."): p for name, p in saved.items()})
    tables = {}
    for name in ("item_id", "item_category"):
        table = SavedTable(run.checkpoint, name)
        tables[name] = nn.EmbeddingBag.from_pretrained(table.read(range(table.num_rows)), mode="mean")
    with pa.memory_map(str(Path(run.data_dir) / "catalog.arrow")) as file:
        catalog = pa.ipc.open_file(file).read_all()
    ids = {name: catalog[name].chunk(0).to_numpy() for name in tables}
    text = catalog["item_text"].chunk(0).values.to_numpy().reshape(len(catalog), -1)
    numerics = [catalog[name].chunk(0).to_numpy()[:, None] for name in workload.ITEM_NUMERICS]

    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for number, first in enumerate(range(0, len(catalog), SHARD)):
        rows = []
        with torch.inference_mode():
            for begin in range(first, min(first + SHARD, len(catalog)), BATCH):
                here = slice(begin, min(begin + BATCH, first + SHARD, len(catalog)))
                one = torch.arange(here.stop - here.start)
                looked_up = {name: bag(torch.from_numpy(ids[name][here]).long(), one) for name, bag in tables.items()}
                dense = np.concatenate([*(column[here] for column in numerics), text[here]], axis=1)
                rows.append(tower.eval()(looked_up, torch.from_numpy(dense)))
        embedding = torch.cat(rows)
        column = pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1).numpy()), embedding.shape[1])
        shard = pa.table({"item_id": catalog["raw_item_id"].slice(first, len(embedding)), "embedding": column})
        pq.write_table(shard, out / f"part-{number:05d}.parquet", **settings)
    seconds = time.perf_counter() - start
    ours = pq.read_table(run_dir / "item_embeddings" / "part-00000.parquet")["embedding"].combine_chunks()
    first = pq.read_table(out / "part-00000.parquet")["embedding"].combine_chunks()
    np.testing.assert_allclose(first.flatten().to_numpy(), ours.flatten().to_numpy(), atol=1e-5)
    return seconds, peak()


def peak() -> float:
    """MB of this process at its highest, files that it maps included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1000


PLAIN = {
    "as told nothing": {},
    "as trainer.export writes": {"use_dictionary": False, "compression": "none", "write_statistics": ["item_id"]},
}


def measure(out: Path, part: str) -> tuple[float, float]:
    """One of the two in processes of its own."""
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
    found: dict[str, list[tuple[float, float]]] = {part: [] for part in parts}
    for _ in range(TIMES):
        for part in parts:
            found[part].append(measure(out, part))
    print(f"{'':<26}{'items/s':>10}{'± of ' + str(TIMES):>10}{'MB a rank':>11}{'ours to it':>12}")
    rates = {part: [workload.ITEMS / seconds for seconds, _ in times] for part, times in found.items()}
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
        result = ours(run) if arguments.part == "ours" else plain(run, arguments.out / "plain", PLAIN[arguments.part])
        if os.environ.get("RANK", "0") == "0":
            print(*result)
