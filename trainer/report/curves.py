"""How a training went, from its CSV logs."""

import csv
from collections.abc import Mapping
from pathlib import Path

Curve = dict[int, float]
"""A value by the number of steps taken, ascending."""
LOSS, VALIDATION = "train/loss", "val/"


def read_curves(run_dir: str | Path) -> dict[str, Curve]:
    """The loss and every validation metric, by name; none where there are no logs.

    A run that was resumed has logs in several versions, which follow one another. Of a step that was taken twice, since
    the run ended after its last checkpoint, the later version counts.

    Args:
        run_dir: with logs/version_*/metrics.csv.
    """
    curves: dict[str, Curve] = {}
    for path in sorted(Path(run_dir).glob("logs/version_*/metrics.csv"), key=_version):
        for row in _rows(path):
            step = _number(row.get("step"))
            values = {name: _number(text) for name, text in row.items() if _is_shown(name)}
            for name, value in values.items():
                if step is not None and value is not None:
                    curves.setdefault(name, {})[int(step) + 1] = value  # the log counts from 0
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def without_repeats(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """Curves that are equal become one, which has all their names: with one target a query, recall is hit_rate."""
    names: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for name, curve in curves.items():
        names.setdefault(tuple(curve.items()), []).append(name)
    return {" = ".join(of_curve): dict(points) for points, of_curve in names.items()}


def _version(path: Path) -> int:
    number = path.parent.name.removeprefix("version_")
    return int(number) if number.isdecimal() else -1


def _rows(path: Path) -> list[dict[str, str | None]]:
    with path.open(newline="", errors="replace") as file:
        return list(csv.DictReader(file, restkey=""))


def _is_shown(name: str) -> bool:
    return name == LOSS or name.startswith(VALIDATION)


def _number(text: str | None) -> float | None:
    """None for an empty cell, or one that a run could not write to its end."""
    try:
        return float(text or "")
    except ValueError:
        return None
