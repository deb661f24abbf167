"""Drawings as PNG: what is drawn comes as plain numbers, and all look alike."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

# S points

INK, FAINT, GREY = "#333a45", "#e3e6ea", "#c3c8cf"
COLOURS = ("#2364aa", "#e08e2b", "#57a773", "#8d5a97", "#c8553d", "#1b998b", "#d4a5c9", "#7f6a4f", "#a3b18a", "#4a4e69")
"""The first is the model's; all differ in lightness too."""
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": GREY, "axes.labelcolor": INK, "axes.titlecolor": INK, "text.color": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.grid": True, "axes.axisbelow": True, "grid.color": FAINT, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 11,
    "font.size": 10, "legend.frameon": False, "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0,
    "ytick.minor.size": 0, "font.family": "DejaVu Sans", "backend": "Agg",
    "text.parse_math": False,  # a name with a dollar sign is no formula
}  # fmt: skip
_INCHES, _DOTS_AN_INCH, _LONGEST = 5.4, 180, 26


@dataclass(frozen=True)
class Lines:
    """A chart of lines.

    Attributes:
        title: above it.
        x_label: of the horizontal axis.
        lines: x and y of each, by name.
        by_k: whether x is a cut-off, which is drawn by its logarithm.
        mark: x of a dashed upright, with what it says; or None.
    """

    title: str
    x_label: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    by_k: bool = False
    mark: tuple[float, str] | None = None


def draw_lines(chart: Lines) -> bytes:
    """A chart, its legend below."""
    with matplotlib.rc_context(_STYLE):
        figure = _figure(3.4)
        axes = figure.subplots()
        for number, (name, (x, y)) in enumerate(chart.lines.items()):
            dots = "o" if len(x) <= 40 else ""
            axes.plot(x, y, color=_colour(number), marker=dots, markersize=3.5, linewidth=1.8, label=_short(name))
        if chart.mark is not None:
            axes.axvline(chart.mark[0], color=INK, linestyle=(0, (3, 3)), linewidth=1, label=chart.mark[1])
        if chart.by_k:
            ks = sorted({k for x, _ in chart.lines.values() for k in x})
            axes.set_xscale("log")
            axes.set_xticks(ks, [f"{k:,.0f}" for k in ks])
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_title(chart.title)
        axes.set_xlabel(chart.x_label)
        _legend_below(figure, axes)
        return _png(figure)


def draw_bars(title: str, parts: Mapping[str, int], bars: Mapping[str, Sequence[float]]) -> bytes:
    """Horizontal bars, the model's and the baselines' beside one another.

    Args:
        title: what their length says.
        parts: what has a group of bars, with the number of its queries.
        bars: of each of the parts, by who they are of; the model's first.
    """
    with matplotlib.rc_context(_STYLE):
        height = 0.8 / len(bars)
        figure = _figure(1.1 + len(parts) * (0.18 + 0.2 * len(bars)))
        axes = figure.subplots()
        at = np.arange(len(parts))
        for number, (name, values) in enumerate(bars.items()):
            middle = at + (number - (len(bars) - 1) / 2) * height
            drawn = axes.barh(middle, values, 0.92 * height, color=_colour(number), label=_short(name))
            axes.bar_label(drawn, [f"{value:.4f}" for value in values], padding=3, fontsize=8)
        axes.set_yticks(at, [f"{_short(part)}\n{queries:,} queries" for part, queries in parts.items()], fontsize=8.5)
        axes.set_xlim(0, 1.15 * max((value for values in bars.values() for value in values), default=0) or 1)
        axes.set_ylim(len(parts) - 0.45, -0.55)
        axes.grid(axis="y", visible=False)
        axes.set_title(title)
        _legend_below(figure, axes)
        return _png(figure)


def draw_against_diagonal(title: str, x_label: str, y_label: str, x_S: np.ndarray, y_S: np.ndarray) -> bytes:
    """Points above 0 by their logarithms, and where they would lie if both were equal."""
    with matplotlib.rc_context(_STYLE):
        figure = _figure(5.2)
        axes = figure.subplots()
        ends = [min(x_S.min(), y_S.min()) / 1.5, max(x_S.max(), y_S.max()) * 1.5]
        axes.plot(ends, ends, color=INK, linestyle=(0, (3, 3)), linewidth=1, label="equal")
        axes.scatter(x_S, y_S, s=9, color=COLOURS[0], alpha=0.45, linewidths=0, label="an item")
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel=x_label, ylabel=y_label, title=title)
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
            axis.set_minor_formatter(NullFormatter())
        axes.legend(loc="upper left")
        return _png(figure)


def draw_map(
    title: str, axis_labels: tuple[str, str], place_S2: np.ndarray, kind_S: np.ndarray, kinds: Sequence[str], other: str
) -> bytes:
    """Points of several kinds in a plane.

    Args:
        title: above it.
        axis_labels: of both axes.
        place_S2: where they lie.
        kind_S: int64, each point's kind; -1 for none of them.
        kinds: their names.
        other: what those of no kind are called.
    """
    with matplotlib.rc_context(_STYLE):
        figure = _figure(5.0)
        axes = figure.subplots()
        named = [*zip(range(len(kinds)), kinds, COLOURS, strict=False), (-1, other, GREY)]
        for kind, name, colour in named:
            x_s, y_s = place_S2[kind_S == kind].T
            if len(x_s):  # the rarer of two kinds lies above
                axes.scatter(
                    x_s, y_s, s=11, color=colour, alpha=0.75, linewidths=0, label=_short(name), zorder=2 + kind
                )
        axes.set(xlabel=axis_labels[0], ylabel=axis_labels[1], title=title)
        axes.set_aspect("equal", adjustable="datalim")
        _legend_below(figure, axes, markerscale=2)
        return _png(figure)


def _figure(height: float) -> Figure:
    return Figure((_INCHES, height), dpi=_DOTS_AN_INCH, layout="constrained")


def _legend_below(figure: Figure, axes: Axes, markerscale: float = 1) -> None:
    handles, names = axes.get_legend_handles_labels()
    in_a_row = max(1, int(68 / (6 + max(map(len, names)))))
    figure.legend(handles, names, loc="outside lower center", ncols=in_a_row, markerscale=markerscale, fontsize=9)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _short(name: str) -> str:
    """A name that leaves room for the drawing; matplotlib would leave one out that begins with an underscore."""
    cut = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    return f" {cut}" if cut.startswith("_") else cut
