"""One training step, and validation: what Lightning calls."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.batch import QueryBatch, RetrievalBatch
from trainer.data.catalog import Catalog
from trainer.data.events import TrainingReader
from trainer.model.loss import in_batch_softmax
from trainer.model.two_tower import TwoTower
from trainer.runtime.evaluation import Evaluation, evaluate_model
from trainer.runtime.gather import gather, gather_with_gradient
from trainer.runtime.processes import Processes

# B queries on this rank, N candidates over all ranks, D embedding dim


class RetrievalModule(pl.LightningModule):
    """A two-tower model in training.

    Args:
        model: plain; the strategy replaces it by its sharded form.
        config: of the run.
        assembler: lays out the model's inputs.
        catalog: the items, for validation.
        reader: of training rows; told at every start where to begin.
        processes: this process's place.
    """

    def __init__(
        self, model: TwoTower, config: TrainConfig, assembler: BatchAssembler, catalog: Catalog,
        reader: TrainingReader, processes: Processes,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model: nn.Module = model
        self.reader = reader
        self._config, self._assembler, self._catalog = config, assembler, catalog
        self._processes = processes
        self._evaluation: Evaluation | None = None
        self._monitored_k = int(config.run.monitor.rpartition("@")[2])

    def training_step(self, batch: RetrievalBatch) -> Tensor:
        """Scores this rank's queries against the candidates of all ranks."""
        query_BD, candidate_BD = self.model(batch)
        candidate_ND = gather_with_gradient(candidate_BD)
        positive_B = torch.arange(len(query_BD), device=query_BD.device) + self._processes.rank * len(query_BD)
        model = self._config.model
        log_q_B = batch.candidate_log_q if model.log_q_correction else torch.zeros_like(batch.candidate_log_q)
        loss = in_batch_softmax(
            query_BD, candidate_ND, positive_B, gather(batch.candidate_row), gather(log_q_B),
            model.temperature, model.remove_accidental_hits,
        )  # fmt: skip
        if (self.global_step + 1) % self._config.run.log_every == 0:  # when Lightning writes to the logs
            self.log("train/loss", gather(loss.detach()[None]).mean(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with linear warm-up for the dense layers; tables are updated by their own kernels."""
        dense = [parameter for name, parameter in self.model.named_parameters() if "embeddings." not in name]
        if not dense:
            return None
        optimizer = torch.optim.Adam(dense, self._config.optimizer.dense_learning_rate)
        warmup = max(1, self._config.optimizer.warmup_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> TrainingReader:
        """The reader, beginning where the newest checkpoint ended."""
        self.reader.next_step = self.global_step
        return self.reader

    def transfer_batch_to_device(
        self, batch: RetrievalBatch | QueryBatch, device: torch.device, dataloader_idx: int
    ) -> RetrievalBatch | QueryBatch:
        """Does not wait for the copy, which from pinned memory goes on beside what the GPU still has to do."""
        return batch.to(device, non_blocking=True)

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
        assert self._evaluation is not None
        for name, value in self._evaluation.metrics(sorted({10, self._monitored_k})).items():
            self.log(f"val/{name}", value, prog_bar=f"val/{name}" == self._config.run.monitor)
        self._evaluation = None
