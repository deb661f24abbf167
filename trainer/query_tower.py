"""Checkpoint -> the query tower as one file, which trainer/serving/query_tower.py runs by torch alone.

python -m trainer.query_tower run.dir=RUN                                                        RUN/query_tower.pt2
torchrun --nproc-per-node 2 -m trainer.query_tower run.dir=RUN tower.dtype=int8 tower.without=[user_id]
"""

import hydra
from omegaconf import DictConfig

from trainer.checks import check_query_tower_config
from trainer.config import CONFIG_DIR, QueryTowerConfig, register_configs, run_command, typed
from trainer.errors import user_errors
from trainer.first_imports import first_imports
from trainer.runtime.run_directory import check_there

register_configs()


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="query_tower")
def main(config: DictConfig) -> None:
    """Command line."""
    with user_errors():
        query_tower(typed(config, QueryTowerConfig))


def query_tower(config: QueryTowerConfig) -> None:
    """Writes the file, compares it with the model, and measures how long it takes.

    Raises:
        UserError: before any process group exists, if run, data or settings are not as they must be, or the tables
            would take more than tower.max_gb.
    """
    check_query_tower_config(config)
    check_there(config.run)
    with first_imports():  # after the config is known to be sound
        from trainer.runtime.loading import load_model, open_run
        from trainer.runtime.processes import find_processes, joined
        from trainer.runtime.query_tower_file import BATCH, QueryTowerFile
        from trainer.runtime.quiet import quieten_libraries

    quieten_libraries()
    processes = find_processes(config.run.accelerator, config.run.threads)
    run = open_run(config.run)
    file = QueryTowerFile(run, config)
    with joined(processes):
        told = file.write(load_model(run, BATCH, processes), processes)
    if processes.is_first:
        print("\n".join(told))


if __name__ == "__main__":
    run_command(main)
