"""An experiment's settings, chosen on validation before, trained on all but test by several seeds.

    python benchmarks/experiments.py movielens_1m_sequence ML_1M OUT       # writes OUT/movielens_1m_sequence.txt too
    python benchmarks/experiments.py citeulike_cold CITEULIKE_T OUT
    python benchmarks/experiments.py yelp2018 YELP2018 OUT

Nothing is held out for validation (data.split.validation=0, run.monitor=null), so a run trains as many epochs as the
experiment says and its last checkpoint is ranked. What OUT holds already is not made again.
"""

import argparse
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from runs import at_once, mean_and_spread, prepare, show, table, train

SEQUENCES = ("data.layouts=[sequence]", "data.sequence_length=201", "data.features.history.length=200")


@dataclass(frozen=True)
class Experiment:
    """What its file in configs/experiment cannot say."""

    prepare: tuple[str, ...]
    metrics: tuple[str, ...]


EXPERIMENTS = {
    "movielens_1m_sequence": Experiment(
        ("data=movielens", *SEQUENCES, "data.row_group_size=4096"), ("recall@10", "ndcg@10", "recall@50", "recall@200")
    ),
    "citeulike_cold": Experiment(
        ("data=citeulike", *SEQUENCES, "data.row_group_size=2048"), ("cold/recall@20", "cold/ndcg@20")
    ),
    "yelp2018": Experiment(
        ("data=user_item_lists", *SEQUENCES, "data.row_group_size=2048"), ("recall@20", "ndcg@20")
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("source", help="folder of the data set")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, of one thread each")
    arguments = parser.parse_args()
    began, name, experiment = time.perf_counter(), arguments.experiment, EXPERIMENTS[arguments.experiment]
    folder = arguments.out / name
    data = prepare(folder / "data", *experiment.prepare, f"data.source={arguments.source}", "data.split.validation=0")
    seeds = range(arguments.seeds)
    works = [
        partial(train, folder / f"seed-{seed}", data, f"experiment={name}", "run.monitor=null", f"run.seed={seed}",
                cut_offs=(10, 20, 50, 200))
        for seed in seeds
    ]  # fmt: skip
    found = at_once(arguments.jobs, works)
    rows = {f"seed {seed}": [f"{found[seed][metric]:.4f}" for metric in experiment.metrics] for seed in seeds}
    rows["mean"] = [mean_and_spread([metrics[metric] for metrics in found]) for metric in experiment.metrics]
    show(table(f"{name}, test", experiment.metrics, rows), arguments.out / f"{name}.txt", began)


if __name__ == "__main__":
    main()
