"""RUN/report: report.html, which needs no other file, and its pictures as PNG."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import jinja2
import numpy as np

from trainer.report.calibration import calibration
from trainer.report.curves import read_curves
from trainer.report.examples import read_examples
from trainer.report.item_map import item_map
from trainer.report.sections import (
    Section,
    calibration_section,
    exposure_section,
    map_section,
    slices_section,
    training_section,
)
from trainer.report.tables import headlines, tables
from trainer.runtime import checkpoint
from trainer.runtime.loading import SavedRun
from trainer.runtime.report import Report
from trainer.runtime.whole_files import write

# S items, D embedding dim

FOLDER, PAGE = "report", "report.html"
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
_TEMPLATES.filters["thousands"] = "{:,}".format


def write_report(
    run_dir: str | Path, run: SavedRun, found: Report, lists: Mapping[int, Sequence[int]], row_S: np.ndarray,
    item_SD: np.ndarray,
) -> Path:  # fmt: skip
    """Writes the report of an evaluation in place of an earlier one; by one process.

    Args:
        run_dir: with the logs.
        run: that was evaluated.
        found: by the evaluation.
        lists: catalogue rows of the model's lists for a few queries, by row of the split.
        row_S: int64, catalogue rows of the items that are mapped.
        item_SD: float32, their embeddings.

    Returns:
        The page.

    Raises:
        UserError: the split cannot be read any more.
    """
    log_q = run.config.model.loss.log_q
    sections = [
        training_section(read_curves(run_dir), checkpoint.step(run.checkpoint)),
        slices_section(found),
        exposure_section(found),
        calibration_section(calibration(run) if log_q == "streaming" else None, log_q),
        map_section(item_map(run, row_S, item_SD), len(run.catalog)),
    ]
    page = _TEMPLATES.get_template("page.html.jinja").render(
        run=Path(run_dir).resolve().name,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        found=found,
        headlines=tables(found, headlines(found)),
        tables=tables(found, found.metric_names()),
        sections=sections,
        examples=read_examples(run, found.split, lists),
    )
    return _write(Path(run_dir) / FOLDER, page, sections)


def _write(folder: Path, page: str, sections: Sequence[Section]) -> Path:
    """The page last; pictures of an earlier evaluation that this one lacks go."""
    folder.mkdir(exist_ok=True)
    pictures = {picture.name: picture.png for section in sections for picture in section.pictures}
    for name, png in pictures.items():
        write(folder, name, png)
    for path in folder.glob("*.png"):
        if path.name not in pictures:
            path.unlink()
    return write(folder, PAGE, page)
