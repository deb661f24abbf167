"""Prepared data -> checkpoints.

torchrun --nproc-per-node 2 -m trainer.train data.dir=DATA run.dir=RUN model=two_tower
"""

import hydra
from omegaconf import DictConfig

from trainer.checks import check_train_config
from trainer.config import CONFIG_DIR, TrainConfig, register_configs, run_command, typed
from trainer.data.schema import read_schema
from trainer.errors import user_errors
from trainer.first_imports import first_imports

register_configs()


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="train")
def main(config: DictConfig) -> None:
    """Command line."""
    with user_errors():
        train(typed(config, TrainConfig))


def train(config: TrainConfig) -> dict[str, float]:
    """Trains a model, resuming from the newest checkpoint of its run directory.

    Args:
        config: of the run.

    Returns:
        Validation metrics of the best checkpoint.

    Raises:
        UserError: see `fit`.
    """
    check_train_config(config)
    # `fit` reads it again: what most often is wrong is told seconds sooner here
    read_schema(config.data.dir).select(config.model.query.features, config.model.candidate.features)
    with first_imports():  # after the config is known to be sound
        from trainer.runtime.fit import fit

    return fit(config)


if __name__ == "__main__":
    run_command(main)
