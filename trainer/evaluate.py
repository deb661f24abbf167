"""Checkpoint -> metrics.

torchrun --nproc-per-node 2 -m trainer.evaluate run.dir=RUN      writes RUN/metrics.json, evaluation.json, report/
"""

import hydra
from omegaconf import DictConfig

from trainer.checks import check_evaluate_config
from trainer.config import CONFIG_DIR, EvaluateConfig, register_configs, run_command, typed
from trainer.errors import user_errors
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
        from trainer.evaluation_run import evaluate_run
    return evaluate_run(config)


if __name__ == "__main__":
    run_command(main)
