"""The pictures of a report, section by section, each with what to see in it."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.report.calibration import OFTEN, Calibration
from trainer.report.curves import LOSS, VALIDATION, Curve, without_repeats
from trainer.report.item_map import OTHER, ItemMap
from trainer.report.pictures import Lines, draw_against_diagonal, draw_bars, draw_lines, draw_map
from trainer.runtime.report import PARTS_SHOWN, Report


@dataclass(frozen=True)
class Picture:
    """A PNG with what stands below it.

    Attributes:
        name: of its file.
        alt: what it shows, for who cannot see it.
        caption: what to see.
        png: the file.
    """

    name: str
    alt: str
    caption: str
    png: bytes

    @property
    def uri(self) -> str:
        """With the picture inside."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """Pictures, or a sentence that says why there are none.

    Attributes:
        anchor: by which the page links to it.
        title: of the section.
        intro: what it tells.
        pictures: in order.
    """

    anchor: str
    title: str
    intro: str
    pictures: Sequence[Picture] = ()


def training_section(curves: Mapping[str, Curve], step: int) -> Section:
    """Loss and validation metrics by step.

    Args:
        curves: from the logs.
        step: of the checkpoint that is evaluated.
    """
    anchor, title = "training", "Training"
    if not curves:
        return Section(anchor, title, "The run directory holds no logs to read, so there are no curves.")
    pictures = []
    mark = (float(step), "checkpoint")
    if LOSS in curves:
        chart = Lines("Training loss", "steps", {"loss": _points(curves[LOSS])}, mark=mark)
        last = [*curves[LOSS].values()][-1]
        pictures.append(
            Picture("training_loss.png", f"Line of the training loss over the steps; it ends at {last:.4f}.",
                    "Loss of one step each. Its level depends on batch size, negatives and temperature, "
                    "so compare it with runs of the same settings alone.", draw_lines(chart)))  # fmt: skip
    for kind, of_kind in _validation(curves).items():
        lines = {name: _points(curve) for name, curve in of_kind.items()}
        pictures.append(
            Picture("validation.png" if kind == "all" else f"validation_{kind}.png",
                    f"Lines of {', '.join(lines)} on the validation split over the steps.", _VALIDATIONS[kind],
                    draw_lines(Lines(f"Validation, {kind} items", "steps", lines, mark=mark))))  # fmt: skip
    intro = f"From the logs of the run; the dashed line is the checkpoint of step {step:,}, which is evaluated here."
    return Section(anchor, title, intro, pictures)


_VALIDATIONS = {
    "all": "Still rising at the end: train longer. Falling after the dashed line: from there on it fits the training "
    "data too closely, and the checkpoint before was kept.",
    "cold": "Cold items alone, which have no training event: what the features say of them.",
    "warm": "The other items alone, which have training events.",
}


def slices_section(found: Report) -> Section:
    """Recall of each part of each slicing."""
    recall = f"recall@{found.cut_off}"
    pictures = []
    for slicing, parts in found.slices["model"].items():
        largest = sorted(parts, key=lambda part: -parts[part]["queries"])[:PARTS_SHOWN]
        shown = [part for part in parts if part in largest]
        bars = {of: [its[slicing][part][recall] for part in shown] for of, its in found.slices.items()}
        best = max(shown, key=lambda part: parts[part][recall])
        left_out = f" {len(parts) - len(shown):,} more, of fewer queries, are in evaluation.json."
        png = draw_bars(f"{recall} by {slicing}", {part: int(parts[part]["queries"]) for part in shown}, bars)
        pictures.append(
            Picture(f"recall_by_{slicing.replace(' ', '_')}.png",
                    f"Bars of {recall} by {slicing}; the model is best at {best}, {parts[best][recall]:.4f}.",
                    _SLICINGS.get(slicing, f"By the value of {slicing}.")
                    + (left_out if len(shown) < len(parts) else ""), png))  # fmt: skip
    intro = f"{recall.capitalize()} of the model beside the baselines. Parts of few queries tell little."
    return Section("slices", "Who is served how well", intro, pictures)


_SLICINGS = {
    "user id": "Cold users have no id that training knew; only their features and history speak for them.",
    "history length": "By the number of events that a user had before the query.",
    "popularity decile": "By how popular the target is: 1 is the least popular tenth of the items, 10 the most. A "
    "model that only repeats what is popular has bars at the lower end alone.",
}


def exposure_section(found: Report) -> Section:
    """What the lists cover, and how popular what they show is."""
    k = found.cut_off
    at_k = {metric: found.metrics[f"{found.split}/{metric}@{k}"] for metric in _EXPOSURES}
    pictures = []
    for metric, (title, caption) in _EXPOSURES.items():
        lines = {of: _by_k(found, f"{found.split}/{'' if of == 'model' else f'{of}/'}{metric}@") for of in found.slices}
        alt = f"Lines of {metric} by k of {', '.join(found.slices)}; the model has {at_k[metric]:.4f} at {k}."
        png = draw_lines(Lines(title, "k, length of the lists", lines, by_k=True))
        pictures.append(Picture(f"{metric}.png", alt, caption, png))
    intro = (
        f"What the lists show, whatever the targets are. The model's lists of {k} show {at_k['coverage']:.1%} of the "
        "items to somebody."
    )
    return Section("exposure", "Coverage and popularity", intro, pictures)


_EXPOSURES = {
    "coverage": ("Coverage", "Share of the items that are in anybody's list."),
    "gini": ("Gini index", "0 where all items are listed equally often, 1 where it is always the same ones."),
    "popularity_percentile": (
        "Popularity percentile",
        "Mean of what is listed: 1 is the most popular item, 0.5 the mean of the catalogue.",
    ),
}


def calibration_section(found: Calibration | None, log_q: str) -> Section:
    """The streaming estimate beside the truth.

    Args:
        found: None where there is none.
        log_q: model.loss.log_q of the run.
    """
    anchor, title = "calibration", "Calibration of the sampling correction"
    if log_q != "streaming":
        return Section(anchor, title, f"The run corrects with log_q={log_q}, so it has no streaming estimate to judge.")
    if found is None:
        return Section(anchor, title, "The checkpoint holds no streaming estimate of any item.")
    png = draw_against_diagonal(
        "Share of an item in the positives", "share of the training events", "streaming estimate",
        found.true_S, found.estimated_S,
    )  # fmt: skip
    shown = len(found.true_S)
    half = ""
    if found.half_within >= 0:  # there are such items
        half = f"Of items with {OFTEN} training events or more, half are within {found.half_within:.1%} of the truth."
    caption = (
        "On the dashed line the estimate is the truth. Above it the loss takes an item for more frequent than it is, "
        "as where it shares its bucket with others, and corrects its scores too far down; below it, too little. "
    )
    picture = Picture("calibration.png", f"Scatter of {shown:,} items around the diagonal. {half}", caption + half, png)
    unseen = f" {found.unseen:,} more have training events and no estimate yet." if found.unseen else ""
    intro = f"What the run estimated from its batches (log_q=streaming), beside the counts; {shown:,} items.{unseen}"
    return Section(anchor, title, intro, [picture])


def map_section(found: ItemMap | None, num_items: int) -> Section:
    """Item embeddings in a plane.

    Args:
        found: None where there is none.
        num_items: of the catalogue.
    """
    anchor, title = "map", "Map of the items"
    if found is None:
        return Section(anchor, title, "There are too few different embeddings for a map.")
    labels = tuple(
        f"{which} principal component, {share:.1%} of the variance"
        for which, share in zip(("first", "second"), found.explained, strict=True)
    )
    png = draw_map("Item embeddings" + (f" by {found.column}" if found.column else ""), (labels[0], labels[1]),
                   found.place_S2, found.kind_S, found.kinds, OTHER if found.kinds else "items")  # fmt: skip
    total, shown = sum(found.explained), len(found.kind_S)
    of_kinds = (
        f"Colours are the {len(found.kinds)} most frequent values of {found.column}, of several the first. Kinds that "
        "the model tells apart form regions. "
        if found.kinds else "The items have no categorical to colour them by. "
    )  # fmt: skip
    caption = (
        f"{of_kinds}The plane shows {total:.1%} of the variance: items far apart here differ, items close together may "
        "still do."
    )
    kinds = f" The most frequent {found.column}: {', '.join(found.kinds)}." if found.kinds else ""
    alt = f"Scatter of {shown:,} items in the plane of two principal components.{kinds}"
    picture = Picture("item_map.png", alt, caption, png)
    drawn = (
        f"{shown:,} of {num_items:,} items, drawn with a fixed seed." if shown < num_items else f"All {shown:,} items."
    )
    return Section(anchor, title, drawn, [picture])


def _points(curve: Curve) -> tuple[Sequence[float], Sequence[float]]:
    return [*curve], [*curve.values()]


def _validation(curves: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Curves by the kind of items that they are of."""
    kinds: dict[str, dict[str, Curve]] = {}
    for name in sorted((name for name in curves if name.startswith(VALIDATION)), key=_order):
        _, *kind, metric = name.split("/")
        kinds.setdefault(kind[0] if kind else "all", {})[metric] = curves[name]
    return {kind: without_repeats(kinds[kind]) for kind in _VALIDATIONS if kind in kinds}


def _order(name: str) -> tuple[bool, str]:
    """Recall, NDCG and MRR come before what may repeat them."""
    return name.split("/")[-1].startswith(("hit_rate", "map")), name.replace("recall", "")


def _by_k(found: Report, name: str) -> tuple[Sequence[float], Sequence[float]]:
    values = {
        int(metric.removeprefix(name)): value for metric, value in found.metrics.items() if metric.startswith(name)
    }
    return sorted(values), [values[k] for k in sorted(values)]
