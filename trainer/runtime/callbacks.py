"""What happens around the steps: figures to watch, when to stop, what to keep."""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ProgressBar
from tqdm.auto import tqdm

from trainer.runtime import checkpoint


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
    """One bar over all steps of the run, on stderr, so that stdout holds results alone."""

    def __init__(self) -> None:
        super().__init__()
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
            desc="train", total=trainer.max_steps, initial=trainer.global_step, unit="step",
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


class KeepBestAndLast(Checkpoint):
    """A checkpoint after each validation and at the end; of all of them the best and the newest are kept.

    Args:
        run_dir: run directory.
        monitor: validation metric, the higher the better; None where nothing is validated and the newest is the best.
        every: steps between validations, or between checkpoints without them.
    """

    def __init__(self, run_dir: str, monitor: str | None, every: int) -> None:
        self._folder, self._monitor, self._every = Path(run_dir) / "checkpoints", monitor, every
        self._best: dict[str, Any] = {}
        self._saved_step = -1

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the best up again."""
        self._best = state_dict["best"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A resumed run has its newest checkpoint already."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Saves at its time, where no validation does."""
        if self._monitor is None and trainer.global_step % self._every == 0:
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares, saves, removes."""
        assert self._monitor is not None
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if not self._best or metrics[self._monitor] > self._best["metrics"][self._monitor]:
            self._best = {"step": trainer.global_step, "metrics": metrics}
        self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the steps after the last validation, if any."""
        if trainer.global_step > self._saved_step:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        if self._monitor is None:
            self._best = {"step": trainer.global_step, "metrics": {}}
        trainer.save_checkpoint(self._folder / checkpoint.name(trainer.global_step))
        self._saved_step = trainer.global_step
        self.tidy(trainer)

    def tidy(self, trainer: pl.Trainer) -> None:
        """Notes the best and removes all but it and the last; also what a run killed just before left undone."""
        if trainer.is_global_zero:
            checkpoint.keep(self._folder, self._best, last_step=trainer.global_step)


class EndOnSigterm(pl.Callback):
    """Lets SIGTERM end a process at once, with the exit status of a signal.

    Lightning would leave with status 0 and nothing saved, which reads as success; the checkpoints on disk are whole
    at every moment, and the same command resumes from the newest.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the system's own handler back in Lightning's place."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
