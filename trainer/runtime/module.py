"""One training step, and validation: what Lightning calls."""

import zlib
from collections.abc import Callable
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel

from trainer.config import TrainConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.batch import QueryBatch
from trainer.data.catalog import Catalog
from trainer.data.events import TrainingReader
from trainer.model.two_tower import TwoTower
from trainer.runtime.evaluation import Evaluation, evaluate_model
from trainer.runtime.gather import gather
from trainer.runtime.non_finite import NonFiniteSteps
from trainer.runtime.optimizers import dense_optimizer, schedule, set_table_learning_rate
from trainer.runtime.pipeline import Pipeline, StagedBatch
from trainer.runtime.placement import gradient_scale
from trainer.runtime.processes import Processes
from trainer.runtime.training_loss import TrainingLoss


class RetrievalModule(pl.LightningModule):
    """A two-tower model in training.

    Args:
        model: plain; the strategy replaces it by its sharded form.
        config: of the run.
        assembler: lays out the model's inputs.
        catalog: the items, for validation.
        reader: of training rows; told at every start where to begin.
        processes: this process's place.
        num_steps: of the whole run, for the schedule.
    """

    def __init__(
        self, model: TwoTower, config: TrainConfig, assembler: BatchAssembler, catalog: Catalog,
        reader: TrainingReader, processes: Processes, num_steps: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model: nn.Module = model
        self._products = getattr(torch, config.run.matrix_products)
        scale = gradient_scale(config.sharding, config.data.global_batch_size)
        self.loss = TrainingLoss(config.model.loss, len(catalog), processes, self._products, scale)
        self.reader = reader
        self._config, self._assembler, self._catalog = config, assembler, catalog
        self._processes, self._num_steps = processes, num_steps
        self._evaluation: Evaluation | None = None
        self.pause_wanted: Callable[[], bool] = lambda: False
        """Whether this rank has something for all to see to after the step in hand."""
        self.pause = False
        """Whether any rank had, when its sizes were told; so all pause after the same step."""

    def training_step(self, staged: StagedBatch) -> Tensor:
        """Scores this rank's queries against the candidates of all ranks."""
        batch, sizes = staged.batch, staged.sizes
        # what is dropped at a step is the same however often the run was interrupted before
        seed = zlib.crc32(f"{self._config.run.seed}/{batch.step}/{self._processes.rank}".encode())
        torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a stack where there is no GPU
        if self._processes.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        self.pause = sizes.pause
        rounds = self._products != torch.float32
        with torch.autocast(self._processes.device.type, self._products, enabled=rounds):
            query_QD, item_UD = self.model(batch, staged.exchange)
        self.pipeline.send_ids()  # of the next batch, while this one goes on
        temperature = cast(DistributedModelParallel, self.model).module.temperature()
        loss = self.loss(query_QD / temperature, item_UD, batch, sizes)
        if (batch.step + 1) % self._config.run.log_every == 0:  # when Lightning writes to the logs
            self.log("train/loss", gather(loss.detach()[None]).mean(), prog_bar=True)
            self.log("train/temperature", float(temperature))
            self.log("train/steps_left_out", float(self.non_finite.left_out))
        self.non_finite.expect(batch, query_QD, item_UD, loss)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Ends the run, or leaves out the step, where a loss or a gradient was not finite."""
        place = cast(DistributedModelParallel, self.model).module.temperature.place
        if place is not None:  # which DistributedDataParallel leaves out, see sharding.py
            place.grad = gather(place.grad[None]).mean()
        self.non_finite.settle()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW for the dense layers; tables are updated by their own kernels.

        The model is sharded by now, so that its backward pass can be watched from here on.
        """
        sharded = cast(DistributedModelParallel, self.model)
        self.pipeline = Pipeline(self.reader, sharded, self._processes, lambda: self.pause_wanted())
        self.non_finite = NonFiniteSteps(sharded, self._config.run, self.reader, self._processes)
        dense = dense_optimizer(self.model, self._config.optimizer, self._num_steps)
        if dense is None:
            return None
        optimizer, scheduler = dense
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, staged: StagedBatch, batch_idx: int) -> None:
        """Sets the tables' learning rate, where it changes."""
        config = self._config.optimizer
        if config.schedule != "constant":
            rate = config.embedding_learning_rate * schedule(config, self._num_steps)(staged.batch.step)
            set_table_learning_rate(cast(DistributedModelParallel, self.model), rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the loss has estimated and how many steps were left out, which every rank holds alike."""
        checkpoint["loss"] = self.loss.state_dict()
        checkpoint["steps_left_out"] = self.non_finite.left_out

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it up again."""
        self.loss.load_state_dict(checkpoint["loss"])
        self.non_finite.left_out = checkpoint["steps_left_out"]

    def train_dataloader(self) -> Pipeline:
        """The reader's batches, beginning where the newest checkpoint ended."""
        self.reader.next_step = self.global_step
        return self.pipeline

    def transfer_batch_to_device(
        self, batch: StagedBatch | QueryBatch, device: torch.device, dataloader_idx: int
    ) -> StagedBatch | QueryBatch:
        """Those of training are there already."""
        return batch if isinstance(batch, StagedBatch) else batch.to(device, non_blocking=True)

    def on_validation_epoch_start(self) -> None:
        """Embeds the catalogue."""
        at_once = self._config.run.validation_batch_size_per_rank
        self._evaluation = evaluate_model(
            self.model, self._assembler, self._catalog, "validation", at_once, self._processes
        )

    def validation_step(self, batch: QueryBatch) -> None:
        """Ranks the held-out items of all ranks' queries."""
        assert self._evaluation is not None
        self._evaluation.update(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs recall and its companions, the same on every rank, also over cold and warm items where there are any."""
        monitor = self._config.run.monitor
        assert self._evaluation is not None and monitor is not None
        for name, value in self._evaluation.metrics(sorted({10, int(monitor.rpartition("@")[2])})).items():
            self.log(f"val/{name}", value, prog_bar=f"val/{name}" == monitor)
        self._evaluation = None
