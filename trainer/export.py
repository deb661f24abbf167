"""Checkpoint -> embeddings, or a table, as Parquet shards.

torchrun --nproc-per-node 2 -m trainer.export run.dir=RUN                                       RUN/item_embeddings/
torchrun --nproc-per-node 2 -m trainer.export run.dir=RUN export.since=EARLIER            RUN/item_embeddings_since/
torchrun --nproc-per-node 2 -m trainer.export run.dir=RUN export.side=query export.split=test   RUN/query_embeddings/
python -m trainer.export run.dir=RUN export.side=table export.table=item_id                     RUN/table_item_id/

Killed and started again, it writes what is missing. With export.verify=true it writes nothing, and proves the folder.
"""

import hydra
from omegaconf import DictConfig

from trainer.checks import check_export_config
from trainer.config import CONFIG_DIR, ExportConfig, register_configs, run_command, typed
from trainer.errors import user_errors
from trainer.first_imports import first_imports
from trainer.runtime.run_directory import check_there

register_configs()


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="export")
def main(config: DictConfig) -> None:
    """Command line."""
    with user_errors():
        export(typed(config, ExportConfig))


def export(config: ExportConfig) -> None:
    """Writes the embeddings of the whole catalogue or of the queries of a split, or the rows of a table.

    Raises:
        UserError: before any process group exists, if the run or its data is not as it must be; after, if what was
            to be verified is not what it says.
    """
    check_export_config(config)
    check_there(config.run)
    with first_imports():  # after the config is known to be sound
        from trainer.runtime.changed_items import ChangedItems
        from trainer.runtime.loading import open_run
        from trainer.runtime.processes import find_processes, joined
        from trainer.runtime.quiet import quieten_libraries
        from trainer.runtime.shard_files import write_shards
        from trainer.runtime.shard_proof import prove
        from trainer.runtime.shards import ItemShards, QueryShards, Shards, TableShards

    quieten_libraries()
    side = config.export.side
    processes = find_processes("cpu" if side == "table" else config.run.accelerator, config.run.threads)
    run = open_run(config.run, may_extend=side == "item")
    shards: Shards
    match side:
        case "item":
            shards = ItemShards(run, config)
        case "query":
            shards = QueryShards(run, config)
        case _:
            shards = TableShards(run, config)
    with joined(processes):
        if config.export.since is not None:
            shards = ChangedItems(run, config)
        done = (prove if config.export.verify else write_shards)(shards, run, config, processes)
    if processes.is_first:
        print(f"{shards.num_rows * shards.interests} {shards.told} of checkpoint {run.checkpoint.name} {done}")


if __name__ == "__main__":
    run_command(main)
