"""What happens around the steps: figures to watch, and when they say to stop."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ProgressBar
from tqdm.auto import tqdm


class Throughput(pl.Callback):
    """Logs training examples per second of all ranks, validation left out.

    Args:
        global_batch_size: examples of one step.
        every: steps between measurements.
    """

    def __init__(self, global_batch_size: int, every: int) -> None:
        self._global_batch_size, self._every = global_batch_size, every
        self._since: tuple[int, float] | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Closes a stretch of `every` steps."""
        step, now = trainer.global_step, time.perf_counter()
        if self._since is None:
            self._since = (step, now)
        elif step - self._since[0] >= self._every:
            rate = (step - self._since[0]) * self._global_batch_size / (now - self._since[1])
            pl_module.log("train/examples_per_second", rate, prog_bar=True)
            self._since = (step, now)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts anew after validation."""
        self._since = None


class StepProgressBar(ProgressBar):
    """One bar over all steps of the run, on stderr, so that stdout holds results alone.

    Args:
        num_steps: of the whole run.
    """

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self._num_steps = num_steps
        self._bar: tqdm | None = None
        self._shown = True

    def disable(self) -> None:
        """Called by Lightning on every process but the first."""
        self._shown = False

    def enable(self) -> None:
        """The opposite."""
        self._shown = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar at the step from which the run goes on."""
        self._bar = tqdm(
            desc="train", total=self._num_steps, initial=trainer.global_step, unit="step",
            disable=not self._shown, dynamic_ncols=True,
            mininterval=1.0 if sys.stderr.isatty() else 30.0,  # a log file wants few lines
        )  # fmt: skip

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Counts the step; figures are looked up only when the bar is drawn anew."""
        assert self._bar is not None
        if self._bar.update():
            metrics = {
                name.removeprefix("train/"): float(value) for name, value in trainer.progress_bar_metrics.items()
            }
            shown = {name: f"{value:,.0f}" if value > 100 else f"{value:.4f}" for name, value in metrics.items()}
            self._bar.set_postfix(shown, refresh=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the bar."""
        assert self._bar is not None
        self._bar.close()


class StopEarly(EarlyStopping):
    """Lightning's early stopping, counted in validations, which stays stopped when a finished run is resumed."""

    def __init__(self, monitor: str, mode: str, patience: int) -> None:
        super().__init__(monitor=monitor, mode=mode, patience=patience, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the count up again, but keeps the patience that is configured now."""
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops at once where patience had already run out."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True
