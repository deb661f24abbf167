"""Checkpoint -> embeddings as Parquet shards.

torchrun --nproc-per-node 2 -m trainer.export run.dir=RUN                                        RUN/item_embeddings/
torchrun --nproc-per-node 2 -m trainer.export run.dir=RUN export.side=query export.split=test    RUN/query_embeddings/
"""

import hydra
from omegaconf import DictConfig

from trainer.checks import check_export_config
from trainer.config import CONFIG_DIR, ExportConfig, register_configs, run_command, typed
from trainer.errors import user_errors

register_configs()


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="export")
def main(config: DictConfig) -> None:
    """Command line."""
    with user_errors():
        export(typed(config, ExportConfig))


def export(config: ExportConfig) -> None:
    """Writes the embeddings of the whole catalogue, or of the queries of a split.

    Raises:
        UserError: before any process group exists, if the run or its data is not as it must be.
    """
    check_export_config(config)
    # after the config is known to be sound: these imports take seconds
    from trainer.runtime.loading import load_model, open_run
    from trainer.runtime.processes import find_processes, joined
    from trainer.runtime.quiet import quieten_libraries
    from trainer.runtime.shards import ItemShards, QueryShards, write_shards

    quieten_libraries()
    processes = find_processes(config.run.accelerator, config.run.threads)
    run = open_run(config.run)
    shards = (ItemShards if config.export.side == "item" else QueryShards)(run, config)
    with joined(processes):
        model = load_model(run, config.export.batch_size_per_rank, processes)
        folder = write_shards(shards, model, run, config, processes)
    if processes.is_first:
        number = shards.num_rows * shards.interests
        print(f"{number} {config.export.side} embeddings of checkpoint {run.checkpoint.name} written to {folder}")


if __name__ == "__main__":
    run_command(main)
