"""The figures of an evaluation as rows of a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.runtime.report import Report

HEADLINES = ("recall", "ndcg", "mrr", "coverage")
LESS_IS_MORE = ("gini", "popularity_percentile")


@dataclass(frozen=True)
class Figure:
    """One metric of the model or of a baseline.

    Attributes:
        name: as in metrics.json.
        value: with four decimals.
        interval: likewise, or an empty text where there is none.
        is_best: whether it is the largest of its row, where larger is better and they differ.
    """

    name: str
    value: str
    interval: str
    is_best: bool


@dataclass(frozen=True)
class Table:
    """Metrics over all items, or over a kind of them.

    Attributes:
        kind: all, cold or warm.
        queries: that have such a target.
        items: of the kind.
        rows: a metric's name with the figures of the model and of each baseline, where there are any.
    """

    kind: str
    queries: int
    items: int
    rows: Sequence[tuple[str, Sequence[Figure]]]


def tables(found: Report, metrics: Sequence[str]) -> list[Table]:
    """A table for each kind of item."""
    made = []
    for kind, size in found.sizes.items():
        prefix = "" if kind == "all" else f"{kind}/"
        names = [metric for metric in metrics if f"{found.split}/{prefix}{metric}" in found.metrics]
        rows = [(metric, _figures(found, prefix, metric)) for metric in names]
        made.append(Table(kind, size["queries"], size["items"], rows))
    return made


def headlines(found: Report) -> list[str]:
    """Names of the metrics that one looks at first."""
    return [f"{name}@{found.cut_off}" for name in HEADLINES]


def _figures(found: Report, prefix: str, metric: str) -> list[Figure]:
    names = [f"{found.split}/{of}{prefix}{metric}" for of in ("", *(f"{baseline}/" for baseline in found.baselines))]
    values = [found.metrics[name] for name in names]
    differ = min(values) < max(values) and not metric.startswith(LESS_IS_MORE)
    return [
        Figure(name, f"{value:.4f}", _interval(found, name), differ and value == max(values))
        for name, value in zip(names, values, strict=True)
    ]


def _interval(found: Report, name: str) -> str:
    if name not in found.intervals:
        return ""
    low, high = found.intervals[name]
    return f"[{low:.4f}, {high:.4f}]"
