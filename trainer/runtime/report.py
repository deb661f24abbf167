"""What an evaluation found: a file with everything, and tables of what one looks at first."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from trainer.config import EvaluationConfig
from trainer.data.slices import HeldOutLabels
from trainer.model.bootstrap import LEVEL, QueryValues, bootstrap_intervals
from trainer.model.metrics import ranking_values, sliced_metrics
from trainer.runtime.evaluation import Evaluation, RankedSplit

Slices = dict[str, dict[str, dict[str, float]]]
"""Of each slicing, of each of its parts, queries and metrics."""
PARTS_SHOWN = 10
_OF_ONE_TARGET = {"hit_rate": "recall", "map": "mrr"}
"""Metrics that are the same where each query has one target."""


@dataclass(frozen=True)
class Report:
    """Of one split, by the model and by baselines.

    Attributes:
        checkpoint: that was evaluated.
        split: validation or test.
        sizes: queries, and items to rank, of each kind of target: all, cold and warm.
        metrics: by name, as in metrics.json.
        level: of the intervals.
        resamples: of users, from which they are.
        intervals: (low, high) by the names of those metrics that are means over queries.
        slices: of the model and of each baseline: recall and NDCG among all items.
    """

    checkpoint: str
    split: str
    sizes: dict[str, dict[str, int]]
    metrics: dict[str, float]
    level: float
    resamples: int
    intervals: dict[str, tuple[float, float]]
    slices: dict[str, Slices]

    def to_json(self) -> str:
        """Text of evaluation.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def tables(self) -> str:
        """Slices at one cut-off, then every metric: of the model with its interval, and of the baselines."""
        return "\n".join([*self._sizes(), "", *self._slices(), "", *self._metrics()])

    def _sizes(self) -> list[str]:
        every = self.sizes["all"]["queries"]
        lines = []
        for kind, of in self.sizes.items():
            lacking = every - of["queries"]
            left_out = f" ({lacking:,} queries of {self.split} have no such target)" if lacking else ""
            lines.append(f"{kind:<5}{of['queries']:,} queries of {self.split}, {of['items']:,} items{left_out}")
        return lines

    def _slices(self) -> list[str]:
        of_model, *of_baselines = self.slices.values()
        k = self.cut_off
        shown = (f"recall@{k}", f"ndcg@{k}")
        lines = [f"{'':<28}{'queries':>10}" + "".join(f"{name:>12}{self._baselines()}" for name in shown)]
        for slicing, parts in of_model.items():
            most = sorted(parts, key=lambda part: -parts[part]["queries"])[:PARTS_SHOWN]
            for part in (part for part in parts if part in most):
                values = [of[slicing][part][name] for name in shown for of in (of_model, *of_baselines)]
                cells = "".join(f"{value:>12.4f}" for value in values)
                lines.append(f"{f'{slicing} {part}':<28}{parts[part]['queries']:>10,}{cells}")
            if len(parts) > len(most):
                lines.append(f"{slicing}: {len(parts) - len(most)} more, of fewer queries, in the file")
        return lines

    def _metrics(self) -> list[str]:
        prefixes = ["" if kind == "all" else f"{kind}/" for kind in self.sizes]
        of_all = f"{LEVEL:.0%} interval" if self.intervals else ""
        heads = [f"{prefix + 'model':>16}{'' if prefix else f'{of_all:>18}'}{self._baselines()}" for prefix in prefixes]
        lines = [" " * 26 + "".join(heads)]
        for metric in self.metric_names():
            lines.append(f"{metric:<26}" + "".join(self._cells(prefix, metric) for prefix in prefixes).rstrip())
        return lines + self.same_metrics()

    @property
    def baselines(self) -> list[str]:
        """Their names."""
        return [*self.slices][1:]

    @property
    def cut_off(self) -> int:
        """The k at which one looks first: 10, or the nearest to it that there is."""
        return _cut_off(next(iter(self.slices["model"]["history length"].values())))

    def metric_names(self) -> list[str]:
        """Names without split and prefix, such as `recall@10`, without those that `same_metrics` tells of."""
        return [metric for metric in self._every_name() if metric.partition("@")[0] not in self._same()]

    def same_metrics(self) -> list[str]:
        """A sentence for each metric that another one repeats."""
        return [f"{name} is {_OF_ONE_TARGET[name]} at every k" for name in self._same()]

    def _every_name(self) -> list[str]:
        return [name.removeprefix(f"{self.split}/") for name in self.metrics if name.count("/") == 1]

    def _same(self) -> list[str]:
        return [name for name, other in sorted(_OF_ONE_TARGET.items()) if self._are_same(name, other)]

    def _are_same(self, name: str, other: str) -> bool:
        ks = [metric.partition("@")[2] for metric in self._every_name() if metric.startswith(f"{name}@")]
        return all(self.metrics[f"{self.split}/{name}@{k}"] == self.metrics[f"{self.split}/{other}@{k}"] for k in ks)

    def _cells(self, prefix: str, metric: str) -> str:
        name = f"{self.split}/{prefix}{metric}"
        if name not in self.metrics:  # of cold or warm items alone there are no lists
            return ""
        low, high = self.intervals.get(name, (None, None))
        interval = "" if prefix else f"{'' if low is None else f'[{low:.4f}, {high:.4f}]':>18}"
        baselines = (f"{self.metrics[f'{self.split}/{of}/{prefix}{metric}']:>12.4f}" for of in self.baselines)
        return f"{self.metrics[name]:>16.4f}{interval}{''.join(baselines)}"

    def _baselines(self) -> str:
        return "".join(f"{of:>12}" for of in self.baselines)


def _cut_off(metrics: Mapping[str, float]) -> int:
    """10, or the nearest to it that there is."""
    ks = [int(name.partition("@")[2]) for name in metrics if name.startswith("recall@")]
    return min(ks, key=lambda k: abs(k - 10))


def make(
    checkpoint: str, evaluations: Mapping[str, Evaluation], metrics: dict[str, float], labels: HeldOutLabels,
    asked: EvaluationConfig,
) -> Report:  # fmt: skip
    """The report of what has been ranked, for one process.

    Args:
        checkpoint: its name.
        evaluations: by what stands before the names of their metrics: the model's, before whose nothing stands, first.
        metrics: of all of them, by name.
        labels: of the split.
        asked: what was asked for.
    """
    sizes = evaluations[""].sizes().items()
    return Report(
        checkpoint,
        asked.split,
        {prefix.strip("/") or "all": {"queries": queries, "items": items} for prefix, (queries, items) in sizes},
        metrics,
        LEVEL,
        asked.bootstrap,
        _intervals(evaluations, labels, asked),
        {of.strip("/") or "model": _slices(its.ranked()[""], labels, asked.k) for of, its in evaluations.items()},
    )


def _intervals(
    evaluations: Mapping[str, Evaluation], labels: HeldOutLabels, asked: EvaluationConfig
) -> dict[str, tuple[float, float]]:
    if not asked.bootstrap:
        return {}
    sets = []
    for of, evaluation in evaluations.items():
        for prefix, ranked in evaluation.ranked().items():
            values = ranking_values(ranked.rank_T, ranked.length_Q, asked.k)
            by_name = {f"{asked.split}/{of}{prefix}{name}": value_Q.numpy() for name, value_Q in values.items()}
            sets.append(QueryValues(ranked.query_Q.numpy(), by_name))
    found = bootstrap_intervals(sets, labels.user_Q, asked.bootstrap)
    return {name: interval for its in found for name, interval in its.items()}


def _slices(ranked: RankedSplit, labels: HeldOutLabels, ks: Sequence[int]) -> Slices:
    query_T = torch.repeat_interleave(ranked.query_Q, ranked.length_Q)
    found = {}
    for name, slicing in labels.slicings.items():
        of_part = sliced_metrics(ranked.rank_T, query_T, torch.from_numpy(slicing.label_T), ks)
        found[name] = {slicing.labels[number]: metrics for number, metrics in of_part.items()}
    return found
