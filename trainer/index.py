"""Item embeddings -> an index for nearest neighbours, and how well it finds them.

python -m trainer.index run.dir=RUN                                                                       RUN/index/
python -m trainer.index run.dir=RUN index.kind=ivf_pq index.code_size=16 index.nprobe=[8,32]
"""

import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from trainer.checks import check_index_config
from trainer.config import CONFIG_DIR, IndexConfig, register_configs, run_command, typed
from trainer.errors import user_errors
from trainer.first_imports import first_imports

register_configs()


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="index")
def main(config: DictConfig) -> None:
    """Command line."""
    with user_errors():
        index(typed(config, IndexConfig))


def index(config: IndexConfig) -> None:
    """Builds RUN/index from RUN/item_embeddings, and searches it for held-out queries of RUN/query_tower.pt2.

    Raises:
        UserError: one of these is missing or of another model, or the settings do not fit.
    """
    check_index_config(config)
    with first_imports():  # after the config is known to be sound
        import faiss

        from trainer.retrieval.recommender import open_tower, refuse_other_model
        from trainer.runtime.index_building import build, check_index, measure
        from trainer.runtime.served_queries import ServedQueries
        from trainer.runtime.stored_items import StoredItems

    if config.run.threads is not None:
        faiss.omp_set_num_threads(config.run.threads)
    folder, asked = Path(config.run.dir) / "index", config.index
    items, tower = StoredItems(config.run.dir), open_tower(config.run.dir)
    refuse_other_model(tower, items.manifest["model"], f"{config.run.dir}: item_embeddings", "trainer.export")
    check_index(items, asked)
    query_QD = tower.run(ServedQueries(tower, config.run.dir, config.run.data_dir).last(asked.split, asked.queries))
    start = time.perf_counter()
    built = build(items, asked, folder)
    seconds = time.perf_counter() - start
    measured = measure(built, items, query_QD.numpy(), asked)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{asked.kind} index of {len(items):,} items of checkpoint {items.manifest['checkpoint']}, "
          f"{size / 1e6:,.1f} MB, built in {seconds:.1f} s, written to {folder}")  # fmt: skip
    print(f"{len(query_QD):,} queries of {asked.split}, one at a time on one thread, beside exact search")
    print(f"{'':<16}{f'recall@{min(asked.k, len(items))}':>12}{'p50 ms':>10}{'p99 ms':>10}")
    for of in measured:
        print(f"{of.setting:<16}{of.recall:>12.4f}{of.p50:>10.3f}{of.p99:>10.3f}")


if __name__ == "__main__":
    run_command(main)
