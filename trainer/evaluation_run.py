"""The evaluation of a run, from its checkpoint to the files that tell of it."""

import json
import os

import torch
from torch import nn
from tqdm.auto import tqdm

from trainer.config import EvaluateConfig
from trainer.data.events import HeldOutReader
from trainer.data.row_groups import open_events
from trainer.data.shares import share_of_rank, steps_of_all
from trainer.data.slices import HeldOutLabels, check_slices, read_labels
from trainer.data.transitions import check_transitions
from trainer.errors import UserError
from trainer.model.exposure import popularity_percentile
from trainer.report.examples import MOST_QUERIES
from trainer.report.sample import MOST_ITEMS, fixed_sample
from trainer.runtime import report
from trainer.runtime.embedding import embed_on_first
from trainer.runtime.evaluation import Evaluation, evaluate_model, evaluate_popularity
from trainer.runtime.ials import check_ials, evaluate_ials
from trainer.runtime.loading import SavedRun, load_model, open_run
from trainer.runtime.markov import evaluate_markov
from trainer.runtime.processes import Processes, find_processes, joined
from trainer.runtime.quiet import quieten_libraries
from trainer.runtime.whole_files import write


def evaluate_run(config: EvaluateConfig) -> dict[str, float]:
    """Ranks every held-out item of a split over the whole catalogue, and writes what is found.

    Returns:
        Metrics by name.

    Raises:
        UserError: before any process group exists, if the run or its data is not as it must be.
    """
    quieten_libraries()
    processes = find_processes(config.run.accelerator, config.run.threads)
    run = open_run(config.run)
    _check(config, run, processes)
    asked, split, batch_size_per_rank = config.evaluate, config.evaluate.split, config.evaluate.batch_size_per_rank
    files = open_events(run.data_dir, run.schema, split)
    share = share_of_rank(files.num_rows, processes.rank, processes.world_size)
    steps = steps_of_all(files.num_rows, batch_size_per_rank, processes.world_size)
    reader = HeldOutReader(files, run.assembler, batch_size_per_rank, share, steps)
    labels = _labels(config, run) if processes.is_first else None
    shown, mapped = fixed_sample(files.num_rows, MOST_QUERIES), fixed_sample(len(run.catalog), MOST_ITEMS)
    with joined(processes):
        model = load_model(run, batch_size_per_rank, processes)
        evaluations = _evaluations(config, run, model, processes, shown.tolist())
        item_SD = embed_on_first(model, run.assembler, mapped, batch_size_per_rank, processes)
        for batch in tqdm(reader, desc="evaluate", unit="batch", disable=not processes.is_first):
            here = batch.to(processes.device)
            for evaluation in evaluations.values():
                evaluation.update(here)
        lists = evaluations[""].lists()
        metrics = {
            f"{split}/{of}{name}": value
            for of, evaluation in evaluations.items()
            for name, value in evaluation.metrics(asked.k).items()
        }
    if labels is not None and item_SD is not None:  # the first rank
        found = report.make(run.checkpoint.name, evaluations, metrics, labels, asked)
        _tell(config.run.dir, found)
        from trainer.report.page import write_report  # after the figures are safe: it imports matplotlib

        print(f"report: {write_report(config.run.dir, run, found, lists, mapped, item_SD.numpy())}")
    return metrics


def _check(config: EvaluateConfig, run: SavedRun, processes: Processes) -> None:
    if processes.is_first and not os.access(config.run.dir, os.W_OK):
        raise UserError("run.dir", config.run.dir, "a folder where the evaluation can be written",
                        "let this user write there, or name a copy of it")  # fmt: skip
    check_slices(run.schema, config.evaluate.slices)
    if "markov" in config.evaluate.baselines:
        check_transitions(run.schema)
    if "ials" in config.evaluate.baselines:
        check_ials(run.schema)


def _labels(config: EvaluateConfig, run: SavedRun) -> HeldOutLabels:
    """Of the split, for its slices."""
    percentile_N = popularity_percentile(torch.tensor(run.catalog.train_counts())).numpy()
    return read_labels(run.data_dir, run.schema, config.evaluate.split, config.evaluate.slices, percentile_N)


def _evaluations(
    config: EvaluateConfig, run: SavedRun, model: nn.Module, processes: Processes, shown: list[int]
) -> dict[str, Evaluation]:
    """Of the model and of the baselines, by what stands before the names of their metrics."""
    asked, split = config.evaluate, config.evaluate.split
    evaluations = {
        "": evaluate_model(
            model, run.assembler, run.catalog, split, asked.batch_size_per_rank, processes, asked.k, shown
        )
    }
    for baseline in asked.baselines:
        if baseline == "popularity":
            evaluated = evaluate_popularity(run.catalog, split, processes, asked.k)
        else:
            evaluate_baseline = evaluate_markov if baseline == "markov" else evaluate_ials
            evaluated = evaluate_baseline(run.data_dir, run.schema, run.catalog, split, processes, asked.k)
        evaluations[f"{baseline}/"] = evaluated
    return evaluations


def _tell(run_dir: str, found: report.Report) -> None:
    """Writes all that was found, and prints what one looks at first."""
    everything = write(run_dir, "evaluation.json", found.to_json())
    path = write(run_dir, "metrics.json", json.dumps(found.metrics, indent=2) + "\n")
    print(f"checkpoint {found.checkpoint}")
    print(found.tables())
    print(f"written to {path}, with intervals and all slices to {everything}")
