"""The Lightning strategy: process group, sharded model, sharded checkpoints."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn
from torchrec.distributed import DistributedModelParallel

from trainer.model.two_tower import TwoTower
from trainer.runtime.checkpoint_writer import CheckpointWriter
from trainer.runtime.processes import Processes, join, leave
from trainer.runtime.saved_model import load, load_rest


class ShardedStrategy(DDPStrategy):
    """Lets Lightning drive a model whose tables are sharded by TorchRec.

    The module's `model` is replaced by its DistributedModelParallel, which itself averages the dense gradients over
    ranks; of DDPStrategy only the collectives are used.

    Args:
        processes: this process's place.
        shard: turns the module's plain model into the sharded one.
        writer: of checkpoints; takes what is to follow each as Lightning's storage_options.
    """

    def __init__(
        self, processes: Processes, shard: Callable[[TwoTower], DistributedModelParallel], writer: CheckpointWriter
    ) -> None:
        under_torchrun = TorchElasticEnvironment.detect()
        super().__init__(cluster_environment=TorchElasticEnvironment() if under_torchrun else LightningEnvironment())
        self._processes, self._shard, self._writer = processes, shard, writer

    @property
    def root_device(self) -> torch.device:
        """The device of this process."""
        return self._processes.device

    def setup_distributed(self) -> None:
        """Joins the process group."""
        self.set_world_ranks()
        join(self._processes)

    def setup(self, trainer: pl.Trainer) -> None:
        """Shards the model, then makes the optimizers of its dense layers."""
        assert self.accelerator is not None and self.lightning_module is not None
        self.accelerator.setup(trainer)
        self.lightning_module.model = self._shard(cast(TwoTower, self.lightning_module.model))
        cast(nn.Module, self.lightning_module.loss).to(self.root_device)
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """A checkpoint is read into the shards, so they must exist first."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Empty: tables and layers are saved by `save_checkpoint`, each rank its own rows."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Writes the sharded state of all ranks and what Lightning adds."""
        self._writer.save(self._sharded_model, checkpoint, filepath, then=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads the sharded state into this rank's shards and returns the rest for Lightning."""
        load(self._sharded_model, checkpoint_path)
        return load_rest(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Nothing: `load_checkpoint` has done it."""

    def teardown(self) -> None:
        """Leaves the process group.

        Lightning's own teardown would first copy the module, and with it every shard, into host memory.
        """
        assert self.accelerator is not None
        self.accelerator.teardown()
        leave(self._processes)

    @property
    def _sharded_model(self) -> DistributedModelParallel:
        assert self.lightning_module is not None
        return self.lightning_module.model
