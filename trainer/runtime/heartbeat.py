"""Where Lightning tells the watchdog that a run moves."""

from typing import Any

import pytorch_lightning as pl

from trainer.runtime.watchdog import Watchdog


class Heartbeat(pl.Callback):
    """A beat for every batch, of training and of validation, and for what lies between them.

    Args:
        watchdog: already watching.
    """

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tables are sharded; a checkpoint is to be read."""
        self._watchdog.beat("sharding")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All is there that the first step needs."""
        self._watchdog.beat(f"step {trainer.global_step}")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """A step is done."""
        self._watchdog.beat(f"step {trainer.global_step}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The catalogue is to be embedded."""
        self._watchdog.beat(f"step {trainer.global_step}, before its validation")

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                                batch_idx: int, dataloader_idx: int = 0) -> None:  # fmt: skip
        """Queries are ranked."""
        self._watchdog.beat(f"step {trainer.global_step}, batch {batch_idx + 1} of its validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is over."""
        self._watchdog.beat(f"step {trainer.global_step} and its validation")

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        """A checkpoint is to be written."""
        self._watchdog.beat(f"step {trainer.global_step}, before its checkpoint")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All steps are done."""
        self._watchdog.beat(f"step {trainer.global_step}, the last")
