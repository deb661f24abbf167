"""Rows of a step that was not finite -> where it shows.

python -m trainer.replay run.dir=RUN replay.rows=RUN/non_finite/step-000000123-rank-0.parquet
"""

import hydra
from omegaconf import DictConfig

from trainer.checks import check_replay_config
from trainer.config import CONFIG_DIR, ReplayConfig, register_configs, run_command, typed
from trainer.errors import user_errors
from trainer.first_imports import first_imports
from trainer.runtime.run_directory import check_there

register_configs()


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="replay")
def main(config: DictConfig) -> None:
    """Command line."""
    with user_errors():
        replay(typed(config, ReplayConfig))


def replay(config: ReplayConfig) -> list[str]:
    """Takes rows that a run has written once more through a checkpoint of its model.

    Returns:
        A line for everything that is not finite.

    Raises:
        UserError: before any process group exists, if the run, its data or the file is not as it must be.
    """
    check_replay_config(config)
    check_there(config.run)
    with first_imports():  # after the config is known to be sound
        from trainer.runtime.loading import load_model, open_run
        from trainer.runtime.processes import find_processes, joined
        from trainer.runtime.quiet import quieten_libraries
        from trainer.runtime.replay import read_rows
        from trainer.runtime.replay import replay as replay_rows

    quieten_libraries()
    processes = find_processes(config.run.accelerator, config.run.threads)
    run = open_run(config.run)
    rows = read_rows(run, config.replay.rows)
    with joined(processes):
        told = replay_rows(run, load_model(run, len(rows), processes), rows, processes)
    if processes.is_first:
        print(f"{len(rows)} rows through checkpoint {run.checkpoint.name}; not finite:")
        print("\n".join(told) or "nothing, so it came about in the steps since: see the losses in RUN/logs")
    return told


if __name__ == "__main__":
    run_command(main)
