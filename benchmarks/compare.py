"""Prints the metrics of several evaluated runs on the same test rows, and of popularity, as a table.

python benchmarks/compare.py runs/two_tower runs/matrix_factorization
"""

import json
import sys
from pathlib import Path

METRICS = ("recall@10", "recall@100", "ndcg@10")


def main(run_dirs: list[Path]) -> None:
    """One row a run, named by its folder."""
    metrics = {run_dir.name: json.loads((run_dir / "metrics.json").read_text()) for run_dir in run_dirs}
    rows = {name: [values[f"test/{metric}"] for metric in METRICS] for name, values in metrics.items()}
    anyone = next(iter(metrics.values()))
    rows["popularity"] = [anyone[f"test/popularity/{metric}"] for metric in METRICS]
    print(f"{'on the same test rows':<24}" + "".join(f"{metric:>12}" for metric in METRICS))
    for name, values in rows.items():
        print(f"{name:<24}" + "".join(f"{value:>12.4f}" for value in values))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
