"""What each part of the loss is worth: a two-tower on MovieLens 100K, changed in one respect at a time.

    python benchmarks/ablation.py ML_100K OUT     # the folder as GroupLens ships it; writes OUT/ablation.txt too

Figures are of the test rows (each user's last event), of the epoch that is best on validation. Differences are taken
seed by seed. What OUT holds already is not made again.

The trainer has no negatives of one rank alone to switch to. What a rank would have without the others' is a batch of a
W-th of the size, so smaller batches stand in for it: they train on as many rows, hence in W times as many steps. The
lines of uniform negatives alone differ from one another in the number of negatives only.
"""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from runs import at_once, mean_and_spread, prepare, show, table, train

from trainer.data.schema import read_schema

METRICS = ("recall@10", "ndcg@10")
EXPERIMENT = "experiment=movielens_100k"
BASE = f"unchanged ({EXPERIMENT})"


def variants(num_items: int) -> dict[str, tuple[str, ...]]:
    """Overrides of each line."""
    alone = ("model.loss.in_batch_negatives=false", "model.loss.log_q=none")
    return {
        BASE: (),
        "log q: none": ("model.loss.log_q=none",),
        "log q: streaming": ("model.loss.log_q=streaming",),
        "negatives: batch of 512, as 2 ranks alone": ("data.global_batch_size=512",),
        "negatives: batch of 128, as 8 ranks alone": ("data.global_batch_size=128",),
        "negatives: 512 uniform besides": ("model.loss.uniform_negatives=512",),
        "negatives: 128 uniform alone": (*alone, "model.loss.uniform_negatives=128"),
        "negatives: all items": (*alone, f"model.loss.uniform_negatives={num_items}"),
        "temperature: learned": ("model.loss.learn_temperature=true",),
        "masks: the user's history": ("model.loss.remove_known_positives=history",),
        "masks: history and batch": ("model.loss.remove_known_positives=user",),
        "accidental hits: left in": ("model.loss.remove_accidental_hits=false",),
    }


def cells(found: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, list[str]]:
    """Of each line, from its metrics by seed: each metric, and how far it is from the first line's."""
    rows: dict[str, list[str]] = {}
    for line, by_seed in found.items():
        rows[line] = []
        for name in METRICS:
            gains = [metrics[name] - base[name] for metrics, base in zip(by_seed, found[BASE], strict=True)]
            rows[line] += [mean_and_spread([metrics[name] for metrics in by_seed]),
                           mean_and_spread(gains, sign="+") if line != BASE else ""]  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("movielens", help="folder of MovieLens 100K")
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, of one thread each")
    arguments = parser.parse_args()
    began, epochs = time.perf_counter(), arguments.epochs
    data = prepare(arguments.out / "data", "data=movielens", f"data.source={arguments.movielens}")
    lines = variants(read_schema(data).num_items)
    works = [
        partial(train, arguments.out / f"{number}-{seed}", data, EXPERIMENT, *overrides,
                f"run.seed={seed}", f"run.epochs={epochs}", f"run.patience={epochs}")
        for seed in range(arguments.seeds) for number, overrides in enumerate(lines.values())
    ]  # fmt: skip
    metrics = at_once(arguments.jobs, works)
    found = {line: metrics[number :: len(lines)] for number, line in enumerate(lines)}
    columns = [column for name in METRICS for column in (name, "difference")]
    title = f"A two-tower of {epochs} epochs on MovieLens, {arguments.seeds} seeds: mean and standard deviation"
    show(table(title, columns, cells(found)), arguments.out / "ablation.txt", began)


if __name__ == "__main__":
    main()
