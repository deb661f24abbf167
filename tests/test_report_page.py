"""The report of an evaluation, against what lies in the run and plain numpy."""

import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.forked import succeed
from tests.prepared import ITEMS, ROWS, SCHEMA
from tests.ranks import RankPool
from tests.training import config, trained, write_checkpoint
from trainer.config import CheckpointConfig, LossConfig, to_yaml
from trainer.data.events import HeldOutReader
from trainer.data.row_groups import open_events
from trainer.data.schema import RAW_USER_ID, SEEN, TARGETS, TRAIN_COUNT
from trainer.report.calibration import calibration
from trainer.report.curves import read_curves, without_repeats
from trainer.report.examples import MOST_QUERIES
from trainer.report.item_map import item_map
from trainer.report.page import write_report
from trainer.report.sample import fixed_sample
from trainer.report.sections import calibration_section
from trainer.runtime import checkpoint, run_directory
from trainer.runtime.embedding import embed_on_first
from trainer.runtime.loading import SavedRun, load_model, open_run
from trainer.runtime.lockstep import in_lockstep
from trainer.runtime.processes import Processes
from trainer.runtime.report import Report
from trainer.runtime.training_loss import streaming_frequencies

GENRES = ["<b>bold</b>", "$\\frac{1", "_hidden", "plain", "x" * 50]
"""Names that could be taken for markup, for formulas, or for what a legend leaves out."""
LOSS = LossConfig(temperature=0.2, log_q="streaming")
ASKED = ("evaluate.k=[1,5,10,20]", "evaluate.bootstrap=50", "evaluate.slices=[hour]", "evaluate.batch_size_per_rank=16")
LOGS = {
    0: "epoch,step,train/loss,val/recall@10,val/hit_rate@10,other\n0,4,3.5,,,7\n0,9,3.0,,,\n0,9,,0.25,0.25,\n"
    "0,14,9.9,,,\n",
    1: "epoch,step,train/loss,val/recall@10,val/hit_rate@10\n0,14,2.5,,\n0,19,2.25,,\n0,19,,0.5,0.5\n",
    10: "step,train/loss\n24,2.0\n29,1.",
    2: "step,train/loss\n24,8.0\n27,2.125\nx,1.0\n28\n",
}
LOSSES = {5: 3.5, 10: 3.0, 15: 2.5, 20: 2.25, 25: 2.0, 28: 2.125, 30: 1.0}


def estimate() -> dict[str, torch.Tensor]:
    """A state in which item i was drawn 1 + i % 3 times every 2 + i steps of 50; the last item never."""
    state = streaming_frequencies(LOSS, ITEMS).state_dict()
    state["mean_draws"] = torch.tensor(50.0)
    state["mean_gap"] = 2.0 + torch.arange(ITEMS)
    state["mean_count"] = 1.0 + torch.arange(ITEMS) % 3
    state["mean_count"][-1] = 0.0
    return state


def train(processes: Processes, data: Path, run_dir: Path) -> None:
    settings = config()
    settings.data.dir, settings.run.dir, settings.model.loss = str(data), str(run_dir), LOSS
    if processes.is_first:
        (run_dir / "checkpoints").mkdir(parents=True)
        run_directory.write(run_dir, run_directory.CONFIG, to_yaml(settings))
        run_directory.write(run_dir, run_directory.SCHEMA, SCHEMA.to_json())
    model, _ = trained(processes, settings, data, 3)
    rest = {"loss": {f"frequencies.{name}": value for name, value in estimate().items()}}
    write_checkpoint(model, run_dir / "checkpoints" / checkpoint.name(3), rest)


@pytest.fixture(scope="module")
def run_dir(prepared: Path, ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on two ranks and resumed, and evaluated on two."""
    folder = tmp_path_factory.mktemp("report")
    data, run_dir = folder / "data", folder / "run"
    shutil.copytree(prepared, data)
    (data / "vocabulary").mkdir()
    numbers = np.arange(1, len(GENRES) + 1)
    columns = {"id": GENRES, "index": numbers.astype(np.int32), "count": numbers}
    pq.write_table(pa.table(columns), data / "vocabulary" / "genres.parquet")
    ranks.run(2, train, data, run_dir)
    for version, text in LOGS.items():
        (run_dir / "logs" / f"version_{version}").mkdir(parents=True)
        (run_dir / "logs" / f"version_{version}" / "metrics.csv").write_text(text)
    evaluate(run_dir, ranks=2)
    return run_dir


def evaluate(run_dir: Path, ranks: int) -> str:
    return succeed("trainer.evaluate", f"run.dir={run_dir}", "run.checkpoint=last", *ASKED, ranks=ranks)


def opened(run_dir: Path) -> SavedRun:
    return open_run(CheckpointConfig(dir=str(run_dir), checkpoint="last"))


class Page(HTMLParser):
    """What a page shows and what it would load."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.text, self.tags, self.loaded, self.alts = list[str](), Counter[str](), list[str](), list[str]()
        self.figures: dict[str, list[str]] = {}
        self.lists: list[tuple[str, list[str]]] = []
        self.hits: list[str] = []
        self._figure: list[str] | None = None
        self._item: list[str] | None = None
        self._is_hit = False
        self.source = file.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attributes}
        self.tags[tag] += 1
        self.loaded += [named[name] for name in ("src", "href", "srcset", "data", "poster", "action") if name in named]
        if tag == "img":
            self.alts.append(named["alt"])
        elif tag == "td":
            self._figure = self.figures.setdefault(named["title"], [])
        elif tag in ("ol", "ul"):
            self.lists.append((named["class"], []))
        elif tag == "li":
            self._item, self._is_hit = [], "hit" in named.get("class", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._figure = None
        elif tag == "li":
            assert self._item is not None
            self.lists[-1][1].append("".join(self._item).strip())
            if self._is_hit:
                self.hits.append(self.lists[-1][1][-1])
            self._item = None

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        for open_one in (self._figure, self._item):
            if open_one is not None:
                open_one.append(data)

    def of_class(self, name: str) -> list[list[str]]:
        return [items for its, items in self.lists if its == name]


@pytest.fixture(scope="module")
def page(run_dir: Path) -> Page:
    return Page(run_dir / "report" / "report.html")


def test_the_page_needs_no_other_file(run_dir: Path, page: Page) -> None:
    assert page.loaded and all(reference.startswith(("data:image/png;base64,", "#")) for reference in page.loaded)
    assert not page.tags["script"] and not page.tags["link"] and "://" not in page.source
    assert not re.search(r"url\(|@import", page.source)
    pictures = sorted(path.name for path in (run_dir / "report").glob("*.png"))
    assert pictures == sorted([
        "training_loss.png", "validation.png", "recall_by_user_id.png", "recall_by_history_length.png",
        "recall_by_hour.png", "recall_by_popularity_decile.png", "coverage.png", "gini.png",
        "popularity_percentile.png", "calibration.png", "item_map.png",
    ])  # fmt: skip
    assert page.tags["img"] == len(pictures) == page.tags["figcaption"] and all(page.alts)
    assert all(f'href="#{anchor}"' in page.source for anchor in re.findall(r'<section id="(\w+)"', page.source))


def test_every_figure_is_that_of_evaluation_json(run_dir: Path, page: Page) -> None:
    told = json.loads((run_dir / "evaluation.json").read_text())
    repeated = ("hit_rate@", "map@") if "hit_rate is recall at every k" in "".join(page.text) else ()
    expected = {name for name in told["metrics"] if not name.split("/")[-1].startswith(repeated)}
    assert page.figures.keys() == expected and len(told["intervals"]) > 20
    for name, shown in page.figures.items():
        figure = [f"{told['metrics'][name]:.4f}"]
        if name in told["intervals"]:
            low, high = told["intervals"][name]
            figure.append(f"[{low:.4f}, {high:.4f}]")
        times = 2 if re.search(r"(recall|ndcg|mrr|coverage)@10$", name) else 1  # headlines are there again
        assert shown == figure * times


def embedded(processes: Processes, run_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """All test queries and all items, by one rank."""
    run = opened(run_dir)
    model, files = load_model(run, ROWS["test"], processes), open_events(run.data_dir, run.schema, "test")
    [batch] = HeldOutReader(files, run.assembler, ROWS["test"], range(ROWS["test"]), steps=1)
    with torch.no_grad():
        query_QD, _ = model(in_lockstep(batch.batch))
    item_ND = embed_on_first(model, run.assembler, np.arange(ITEMS), 7, processes)
    assert item_ND is not None
    return query_QD.numpy(), item_ND.numpy()


@pytest.fixture(scope="module")
def vectors(run_dir: Path, ranks: RankPool) -> tuple[np.ndarray, np.ndarray]:
    [both] = ranks.run(1, embedded, run_dir)
    return both


@pytest.fixture(scope="module")
def best(run_dir: Path, vectors: tuple[np.ndarray, np.ndarray]) -> dict[int, list[int]]:
    """The first 20 items of the queries that are shown, by brute force."""
    query_QD, item_ND = vectors
    rows = pq.read_table(run_dir.parent / "data" / "events" / "test").to_pylist()
    lists = {}
    for query in fixed_sample(len(rows), MOST_QUERIES).tolist():
        score_N = query_QD[query] @ item_ND.T
        score_N[[item for item in rows[query][SEEN] if item not in rows[query][TARGETS]]] = -np.inf
        lists[query] = [item for item in np.argsort(-score_N, kind="stable")[:20].tolist() if score_N[item] > -np.inf]
    return lists


def test_examples_by_brute_force(run_dir: Path, page: Page, best: dict[int, list[int]]) -> None:
    rows = pq.read_table(run_dir.parent / "data" / "events" / "test").to_pylist()
    assert len(best) == 5 and page.of_class("history") and len(page.of_class("listed")) == 5
    listed = [[item.removesuffix("✓ hit").strip() for item in items] for items in page.of_class("listed")]
    assert listed == [[f"item-{item}" for item in items[:10]] for items in best.values()]
    targets = [
        [
            f"item-{item} " + (f"place {items.index(item) + 1}" if item in items else "not among the first 20")
            for item in rows[query][TARGETS]
        ]
        for query, items in best.items()
    ]
    assert page.of_class("targets") == targets
    hits = [
        f"item-{item} ✓ hit" for query, items in best.items() for item in items[:10] if item in rows[query][TARGETS]
    ]
    assert page.hits == hits and hits
    histories = [[f"item-{item}" for item in rows[query]["history"][-10:]] for query in best]
    assert page.of_class("history") == [history for history in histories if history]
    users = re.findall(r"<h3>User (.*)</h3>", page.source)
    assert users == [str(rows[query][RAW_USER_ID]) for query in best]


def test_one_process_writes_the_same(run_dir: Path, page: Page, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run" / "report" / "recall_by_gender.png").write_bytes(b"of an earlier evaluation")
    stdout = evaluate(tmp_path / "run", ranks=0)
    assert stdout.splitlines()[-1] == f"report: {tmp_path / 'run' / 'report' / 'report.html'}"
    again = Page(tmp_path / "run" / "report" / "report.html")
    written = re.compile(r"Written [\d: -]+UTC")
    assert written.sub("", "".join(again.text)) == written.sub("", "".join(page.text))
    before, after = ({path.name for path in (of / "report").iterdir()} for of in (run_dir, tmp_path / "run"))
    assert after == before


def report_of(run_dir: Path, **changes: Any) -> Report:
    return replace(Report(**json.loads((run_dir / "evaluation.json").read_text())), **changes)


def test_titles_and_names_are_text(
    run_dir: Path, vectors: tuple[np.ndarray, np.ndarray], best: dict[int, list[int]], tmp_path: Path
) -> None:
    titles = {f"item-{row}": f"<script>alert({row})</script>" for row in range(ITEMS) if row % 2}
    shutil.copytree(run_dir.parent / "data", tmp_path / "data")
    table = pa.table({"item_id": [*titles], "title": [*titles.values()]})
    pq.write_table(table, tmp_path / "data" / "titles.parquet")
    run = replace(opened(run_dir), data_dir=str(tmp_path / "data"))
    found = Page(write_report(tmp_path, run, report_of(run_dir), best, np.arange(ITEMS), vectors[1]))
    assert not found.tags["script"] and not found.tags["b"]
    [first, *_] = best.values()
    shown = [item.removesuffix("✓ hit").strip() for item in found.of_class("listed")[0]]
    assert shown == [f"<script>alert({row})</script> item-{row}" if row % 2 else f"item-{row}" for row in first[:10]]
    assert all(name in found.alts[-1] for name in GENRES)


def test_what_lacks_is_said(run_dir: Path, vectors: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """No logs in the run directory, no streaming estimate, one item to map, no lists."""
    run = opened(run_dir)
    run.config.model.loss.log_q = "counts"
    made = Page(write_report(tmp_path, run, report_of(run_dir), {}, np.arange(1), vectors[1][:1]))
    text = "".join(made.text)
    for sentence in (
        "The run directory holds no logs to read, so there are no curves.",
        "The run corrects with log_q=counts, so it has no streaming estimate to judge.",
        "There are too few different embeddings for a map.",
        "The evaluation kept no lists.",
    ):
        assert sentence in text
    assert made.tags["img"] == 7
    checkpoints = tmp_path / "checkpoints" / checkpoint.name(3)
    checkpoints.mkdir(parents=True)
    torch.save({}, checkpoints / checkpoint.REST)
    found = calibration(replace(opened(run_dir), checkpoint=checkpoints))
    assert calibration_section(found, "streaming").intro == "The checkpoint holds no streaming estimate of any item."


def test_versions_of_the_logs_follow_one_another(run_dir: Path, tmp_path: Path) -> None:
    """A step that was taken again has its later value; half a line and what is no number are left out."""
    curves = read_curves(run_dir)
    validated = {10: 0.25, 20: 0.5}
    assert curves == {"train/loss": LOSSES, "val/recall@10": validated, "val/hit_rate@10": validated}
    assert [*curves["train/loss"]] == sorted(LOSSES)
    merged = without_repeats({"recall": validated, "hit_rate": dict(validated), "mrr": {10: 0.25}})
    assert merged == {"recall = hit_rate": validated, "mrr": {10: 0.25}}
    assert read_curves(tmp_path) == {}


def test_calibration_by_hand(run_dir: Path, prepared: Path) -> None:
    found = calibration(opened(run_dir))
    assert found is not None
    counts = pa.ipc.open_file(prepared / "catalog.arrow").read_all()[TRAIN_COUNT].to_numpy()
    rows = np.arange(ITEMS - 1)
    estimated, true = (1 + rows % 3) / ((2 + rows) * 50), counts[:-1] / ROWS["train"]
    np.testing.assert_allclose(found.estimated_S, estimated, rtol=1e-6)
    np.testing.assert_allclose(found.true_S, true)
    errors = [abs(e / t - 1) for e, t, count in zip(estimated, true, counts, strict=False) if count >= 20]
    assert found.half_within == pytest.approx(np.median(errors)) and found.unseen == 1


def test_the_map_is_the_plane_of_the_largest_variance(run_dir: Path, vectors: tuple[np.ndarray, np.ndarray]) -> None:
    row_S = np.arange(0, ITEMS, 2)
    item_SD = vectors[1][row_S].astype(np.float64)
    found = item_map(opened(run_dir), row_S, vectors[1][row_S])
    assert found is not None and found.column == "genres"
    left, size, _ = np.linalg.svd(item_SD - item_SD.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.place_S2), np.abs(left[:, :2] * size[:2]), atol=1e-5)
    assert found.explained == pytest.approx(size[:2] ** 2 / (size**2).sum())
    genres = pa.ipc.open_file(run_dir.parent / "data" / "catalog.arrow").read_all()["genres"].to_pylist()
    first = [(["(unknown)", *GENRES][genres[row][0]] if genres[row] else None) for row in row_S]
    assert [found.kinds[kind] if kind >= 0 else None for kind in found.kind_S] == first and None in first
    times = [first.count(kind) for kind in found.kinds]
    assert times == sorted(times, reverse=True) and set(found.kinds) == {*first} - {None}


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr")  # fmt: skip


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_a_browser_shows_it_without_a_network(run_dir: Path, page: Page, tmp_path: Path) -> None:
    """A copy of the page counts its pictures itself, and whether anything is wider than a phone."""
    assert BROWSER is not None
    counting = """<script>addEventListener("load", () => { document.title = JSON.stringify([
        [...document.images].map(image => image.naturalWidth), document.documentElement.scrollWidth, innerWidth]); })
        </script></body>"""
    copy = tmp_path / "copy.html"
    copy.write_text(page.source.replace("</body>", counting))
    result = subprocess.run(
        [BROWSER, *FLAGS, "--window-size=500,900", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{copy}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r"<title>(.*)</title>", result.stdout)
    assert found is not None
    widths, wide, window = json.loads(found[1])
    assert len(widths) == page.tags["img"] and min(widths) > 300 and wide <= window
    assert "CONSOLE" not in result.stderr
