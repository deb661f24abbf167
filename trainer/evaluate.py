"""Checkpoint -> metrics.

torchrun --nproc-per-node 2 -m trainer.evaluate run.dir=RUN      writes RUN/metrics.json, evaluation.json, report/
"""

import json
import os

import hydra
from omegaconf import DictConfig

from trainer.checks import check_evaluate_config
from trainer.config import CONFIG_DIR, EvaluateConfig, register_configs, run_command, typed
from trainer.errors import UserError, user_errors
from trainer.first_imports import first_imports
from trainer.runtime.run_directory import check_there

register_configs()


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="evaluate")
def main(config: DictConfig) -> None:
    """Command line."""
    with user_errors():
        evaluate(typed(config, EvaluateConfig))


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Ranks every held-out item of a split over the whole catalogue, by the model and by the baselines.

    Returns:
        Metrics by name, such as `test/recall@10`, `test/coverage@10` and `test/popularity/recall@10`, and where there
        are cold items also `test/cold/recall@10` and `test/warm/recall@10` (see Evaluation.metrics); written to
        RUN/metrics.json too, with intervals and slices (see Report) to RUN/evaluation.json, and with pictures and
        examples to RUN/report, in place of what an earlier evaluation left there.

    Raises:
        UserError: before any process group exists, if the run or its data is not as it must be.
    """
    check_evaluate_config(config)
    check_there(config.run)
    with first_imports():  # after the config is known to be sound
        import torch
        from tqdm.auto import tqdm

        from trainer.data.events import HeldOutReader
        from trainer.data.row_groups import open_events
        from trainer.data.shares import share_of_rank, steps_of_all
        from trainer.data.slices import check_slices, read_labels
        from trainer.data.transitions import check_transitions
        from trainer.model.exposure import popularity_percentile
        from trainer.report.examples import MOST_QUERIES
        from trainer.report.sample import MOST_ITEMS, fixed_sample
        from trainer.runtime import report
        from trainer.runtime.embedding import embed_on_first
        from trainer.runtime.evaluation import evaluate_model, evaluate_popularity
        from trainer.runtime.ials import check_ials, evaluate_ials
        from trainer.runtime.loading import load_model, open_run
        from trainer.runtime.markov import evaluate_markov
        from trainer.runtime.processes import find_processes, joined
        from trainer.runtime.quiet import quieten_libraries
        from trainer.runtime.whole_files import write

    quieten_libraries()
    processes = find_processes(config.run.accelerator, config.run.threads)
    run = open_run(config.run)
    if processes.is_first and not os.access(config.run.dir, os.W_OK):
        raise UserError("run.dir", config.run.dir, "a folder where the evaluation can be written",
                        "let this user write there, or name a copy of it")  # fmt: skip
    asked, split, batch_size_per_rank = config.evaluate, config.evaluate.split, config.evaluate.batch_size_per_rank
    check_slices(run.schema, asked.slices)
    if "markov" in asked.baselines:
        check_transitions(run.schema)
    if "ials" in asked.baselines:
        check_ials(run.schema)
    files = open_events(run.data_dir, run.schema, split)
    share = share_of_rank(files.num_rows, processes.rank, processes.world_size)
    steps = steps_of_all(files.num_rows, batch_size_per_rank, processes.world_size)
    reader = HeldOutReader(files, run.assembler, batch_size_per_rank, share, steps)
    labels = None
    if processes.is_first:
        percentile_N = popularity_percentile(torch.tensor(run.catalog.train_counts())).numpy()
        labels = read_labels(run.data_dir, run.schema, split, asked.slices, percentile_N)
    shown, mapped = fixed_sample(files.num_rows, MOST_QUERIES), fixed_sample(len(run.catalog), MOST_ITEMS)
    with joined(processes):
        model = load_model(run, batch_size_per_rank, processes)
        evaluations = {
            "": evaluate_model(
                model, run.assembler, run.catalog, split, batch_size_per_rank, processes, asked.k, shown.tolist()
            )
        }
        item_SD = embed_on_first(model, run.assembler, mapped, batch_size_per_rank, processes)
        for baseline in asked.baselines:
            if baseline == "popularity":
                evaluated = evaluate_popularity(run.catalog, split, processes, asked.k)
            else:
                evaluate_baseline = evaluate_markov if baseline == "markov" else evaluate_ials
                evaluated = evaluate_baseline(run.data_dir, run.schema, run.catalog, split, processes, asked.k)
            evaluations[f"{baseline}/"] = evaluated
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
        everything = write(config.run.dir, "evaluation.json", found.to_json())
        path = write(config.run.dir, "metrics.json", json.dumps(metrics, indent=2) + "\n")
        print(f"checkpoint {run.checkpoint.name}")
        print(found.tables())
        print(f"written to {path}, with intervals and all slices to {everything}")
        from trainer.report.page import write_report  # after the figures are safe: it imports matplotlib

        print(f"report: {write_report(config.run.dir, run, found, lists, mapped, item_SD.numpy())}")
    return metrics


if __name__ == "__main__":
    run_command(main)
