"""When a checkpoint is saved, which are kept, and how a run ends."""

from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from trainer.config import RunConfig
from trainer.errors import Preempted, UserError, tell
from trainer.runtime import checkpoint
from trainer.runtime.checkpoint_writer import CheckpointWriter
from trainer.runtime.gather import gather, gather_objects
from trainer.runtime.module import RetrievalModule
from trainer.runtime.signals import Signals


class Saving(Checkpoint):
    """A checkpoint before each validation, at the end, and as often besides as is asked for.

    It is written while validation goes on. A run that goes on from such a checkpoint begins with the validation that
    follows it, so it does not matter whether that had been reached. When a signal comes, the step or the batch of
    validation in hand is finished, and what has been trained is saved.

    Args:
        config: of the run.
        every: steps between validations, or between checkpoints where nothing is validated.
        num_steps: of the whole run.
        writer: of checkpoints; it notes the best and removes others with each that it completes.
        signals: that ask the run to end.
    """

    def __init__(
        self, config: RunConfig, every: int, num_steps: int, writer: CheckpointWriter, signals: Signals
    ) -> None:
        self._config, self._folder = config, Path(config.dir) / "checkpoints"
        self._every, self._num_steps = every, num_steps
        self._writer, self._signals = writer, signals
        self._best: dict[str, Any] = {}
        self._best_before: dict[str, Any] = {}
        self._saved_step = 0
        self._unwritten: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the best up again, if it is still there: a later one may have taken its place, and been damaged."""
        self._best = state_dict["best"] if self._is_there(state_dict["best"]) else {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Goes on with the validation that was due when the checkpoint was saved."""
        self._signals.take_over()  # Lightning has put its own handlers there
        self._signals.training(True)
        self._saved_step = trainer.global_step
        cast(RetrievalModule, pl_module).pause_wanted = self._pause_wanted
        if trainer.global_step and self._validation_is_due(trainer.global_step):
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.restarting = False
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        trainer.should_stop |= trainer.global_step >= self._num_steps

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Saves where it is time to, and does what a signal or a checkpoint that failed asks for."""
        step, often = trainer.global_step, self._config.checkpoint_every_steps
        validates = self._validation_is_due(step)
        if validates or step % self._every == 0 or step == self._num_steps or (often and step % often == 0):
            self._save(trainer)
        if cast(RetrievalModule, pl_module).pause:
            self._look_at_failure(trainer)
            if not validates:  # else the first batch of validation asks again
                self._leave_if_asked(trainer)
        trainer.should_stop |= step >= self._num_steps

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Leaves a validation: the checkpoint before it has all that was trained."""
        self._leave_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes the best."""
        monitor = self._config.monitor
        assert monitor is not None
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if not self._best or metrics[monitor] > self._best["metrics"][monitor]:
            self._best_before, self._best = self._best, {"step": trainer.global_step, "metrics": metrics}
        if trainer.is_global_zero and not self._writer.is_busy:  # else it tidies up when it is done
            self._tidy()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Waits until the last checkpoint is complete."""
        self._signals.training(False)
        self._writer.wait()
        self._writer.failure = self._writer.failure or self._unwritten
        self._look_at_failure(trainer, at_the_end=True)
        if trainer.is_global_zero:
            self._tidy()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Lets the checkpoint that is being written be completed."""
        self._writer.wait()

    def _validation_is_due(self, step: int) -> bool:
        return self._config.monitor is not None and (step % self._every == 0 or step >= self._num_steps)

    def _pause_wanted(self) -> bool:
        return self._signals.received is not None or self._writer.failure is not None

    def _save(self, trainer: pl.Trainer) -> None:
        self._writer.wait()
        self._look_at_failure(trainer)
        self._unwritten = None
        if self._config.monitor is None:
            self._best_before, self._best = self._best, {"step": trainer.global_step, "metrics": {}}
        trainer.save_checkpoint(self._folder / checkpoint.name(trainer.global_step), storage_options=self._tidy)
        self._saved_step = trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics({"checkpoint/stall_seconds": self._writer.stall}, step=trainer.global_step)

    def _tidy(self) -> None:
        """Notes the best, removes what is not kept; by the first rank alone, while no checkpoint is being written."""
        best = self._best if self._is_there(self._best) else self._best_before
        checkpoint.keep(self._folder, best, self._config.keep_checkpoints)

    def _is_there(self, best: dict[str, Any]) -> bool:
        return bool(best) and (self._folder / checkpoint.name(best["step"])).is_dir()

    def _leave_if_asked(self, trainer: pl.Trainer) -> None:
        if not gather(torch.tensor([self._signals.received is not None])).any():
            return
        asked = [name for name in gather_objects(self._signals.received) if name]
        if self._saved_step < trainer.global_step:
            self._save(trainer)
        self._writer.wait()
        if trainer.is_global_zero:
            self._tidy()
        newest = checkpoint.newest(self._config.dir)
        raise Preempted(
            f"{asked[0]} received, ended after step {trainer.global_step:,}. The same command goes on from "
            + (f"{newest}" if newest else "the beginning: no checkpoint could be written")
            + (f", since the last could not be written: {self._writer.failure}" if self._writer.failure else "")
        )

    def _look_at_failure(self, trainer: pl.Trainer, at_the_end: bool = False) -> None:
        """Ends the run if a checkpoint could not be written, or tells of it, as configured."""
        self._writer.wait()
        failure, self._writer.failure = self._writer.failure, None
        if failure is None:
            return
        self._unwritten = failure
        if not self._is_there(self._best):
            self._best = self._best_before
        newest = checkpoint.newest(self._config.dir)
        before = f"the one before, {newest.name}, is whole" if newest else "there is none before it"
        if at_the_end or self._config.on_failed_checkpoint == "stop":
            raise UserError(
                "run.dir", self._config.dir, f"a checkpoint to be written there ({failure}; {before})",
                "make room and give the same command again, which goes on from there; run.on_failed_checkpoint=go_on "
                "trains on without that checkpoint",
            )  # fmt: skip
        if trainer.is_global_zero:
            tell(f"a checkpoint was not written: {failure}; {before}. Training goes on, as "
                 "run.on_failed_checkpoint=go_on asks")  # fmt: skip
