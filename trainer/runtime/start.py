"""A run that starts from what another one has learned, of a model that may differ from its own.

Tables are read from the files that the other run's ranks wrote, each rank its own rows; layers are small, and every
rank reads them whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel

from trainer.config import StartConfig
from trainer.data.catalog import Catalog
from trainer.data.schema import read_schema
from trainer.errors import UserError
from trainer.model.carrying import Carried, carried
from trainer.model.two_tower import dense_parameters, make_model
from trainer.runtime import checkpoint, run_directory, saved_model
from trainer.runtime.differences import Trained, refuse_unasked
from trainer.runtime.grown_tables import read_rows_of_both
from trainer.runtime.optimizers import groups_of_names
from trainer.runtime.training_loss import TrainingLoss, streaming_frequencies


@dataclass(eq=False)
class Start(pl.Callback):
    """What the run takes over, checked before any process group exists.

    As a callback it hands the dense optimizer its state once there is one.
    """

    config: StartConfig
    before: Trained
    now: Trained
    row_of_item: Tensor | None
    """int64, row in this run's catalogue of each item of the other's, -1 where it has none; None for the same rows."""
    carried: dict[str, Carried]
    """How each layer's parameters are filled, by name."""
    _adam: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """State of each dense parameter that the other run had, by name there."""

    def load(self, model: DistributedModelParallel, loss: TrainingLoss) -> str:
        """Fills this rank's shards and layers, and the estimate of the loss; the rest keeps its initial values.

        Args:
            model: sharded, with initial values.
            loss: of the run, on the CPU.

        Returns:
            A line that says what was taken over.

        Raises:
            UserError: the checkpoint is damaged.
        """
        if damaged := saved_model.damaged_files(self._path):
            expected = f"its files as written, which these are not: {', '.join(damaged)}"
            raise UserError("start.checkpoint", self._path, expected, "bring them back, or start from another")
        self._load_model(model)
        if self.config.state == "weights":
            return self._told("weights alone")
        rest = saved_model.load_rest(self._path)
        for state in rest["optimizer_states"]:
            names = [name for group in groups_of_names(self.before.model) for name in group]
            self._adam = {names[number]: values for number, values in state["state"].items()}
        tables = "optimizer state kept" if self._same_optimizer else "optimizer state of tables anew"
        return self._told(tables, self._load_frequencies(loss, rest))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives AdamW its moments of what layers have kept; those of new inputs are zero."""
        parameters = dense_parameters(cast(nn.Module, pl_module.model))
        for name, carry in self.carried.items():
            if carry.name in self._adam:
                saved, parameter = self._adam[carry.name], parameters[name]
                moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                for key, moment in moments.items():
                    carry.fill(moment, saved[key])
                trainer.optimizers[0].state[parameter] = {"step": saved["step"].clone(), **moments}
        self._adam = {}

    @property
    def _path(self) -> str:
        assert self.config.checkpoint is not None
        return self.config.checkpoint

    @property
    def _same_optimizer(self) -> bool:
        return self.before.config.optimizer.embedding == self.now.config.optimizer.embedding

    @torch.no_grad()
    def _load_model(self, model: DistributedModelParallel) -> None:
        here, fused = model.state_dict(), model.fused_optimizer.state_dict()
        layers = {name: torch.empty(p.shape) for name, p in dense_parameters(self.before.model).items()}
        wanted: dict[str, Any] = {"model": layers | {n: v for n, v in here.items() if _table(n) in self.before.tables}}
        if self.config.state == "all" and self._same_optimizer:
            kept = {n: state for n, state in fused["state"].items() if state and _table(n) in self.before.tables}
            wanted |= {"fused_optimizer": {"state": kept}} if kept else {}
        read_rows_of_both(wanted, self._path)
        for name in dense_parameters(model):
            if name in self.carried:
                self.carried[name].fill(here[name], layers[self.carried[name].name])
            else:
                here[name].zero_()
        for name, value in here.items():
            if isinstance(value, ShardedTensor) and _table(name) in self._begin_at_zero():
                for part in value.local_shards():
                    part.tensor.zero_()
        model.load_state_dict(here)
        model.fused_optimizer.load_state_dict(fused)

    def _begin_at_zero(self) -> set[str]:
        """New tables of features that are added up: no weight stands between them and the score."""
        sums = {f.table for f in self.now.features if getattr(self.now.config.model, f.side).combine == "sum"}
        return sums - self.before.tables.keys()

    def _load_frequencies(self, loss: TrainingLoss, rest: Mapping[str, Any]) -> str:
        if loss.frequencies is None:
            return ""
        if self.before.config.model.loss.log_q != "streaming":
            return "streaming estimate anew"
        other = streaming_frequencies(self.before.config.model.loss, self.before.schema.num_items)
        other.load_state_dict({name.removeprefix("frequencies."): value for name, value in rest["loss"].items()})
        loss.frequencies.go_on_from(other, rest["global_step"], self.row_of_item)
        return "streaming estimate kept"

    def _told(self, *more: str) -> str:
        old, new = self.before.tables, self.now.tables
        names = [{feature.name for feature in one.features} for one in (self.before, self.now)]
        told = []
        for name, table in new.items():
            kept = old[name].num_embeddings if name in old else 0
            gained = f" and {table.num_embeddings - kept:,} new" if table.num_embeddings > kept else ""
            told.append(f"{name} {kept:,} rows kept{gained}" if kept else f"{name} {table.num_embeddings:,} rows new")
        told += [f"feature {name} new" for name in sorted(names[1] - names[0])]
        told += [f"feature {name} gone" for name in sorted(names[0] - names[1])]
        return f"started from {self.config.checkpoint}: " + "; ".join([*told, *filter(None, more)])


def _table(name: str) -> str:
    """Of a parameter `embeddings.embedding_bags.TABLE.weight`; empty for a layer's."""
    return name.split(".")[-2] if "embeddings." in name else ""


def open_start(now: Trained, catalog: Catalog) -> Start | None:
    """Opens what the config names and compares it with the run's own model.

    Args:
        now: the run's.
        catalog: of its data.

    Returns:
        None where the run starts from initial values.

    Raises:
        UserError: there is no such checkpoint, the two models differ in more than was asked for, or the data of the
            other run is needed and not there.
    """
    start = now.config.start
    if start.checkpoint is None:
        return None
    folder = _run_of(Path(start.checkpoint))
    try:
        config, schema = run_directory.read_config(folder), run_directory.read_schema_of(folder)
    except UserError as error:
        remedy = "name a checkpoint of such a run, or set start.checkpoint=null"
        raise UserError("start.checkpoint", start.checkpoint, error.expected, remedy) from None
    features = schema.select(config.model.query.features, config.model.candidate.features)
    with torch.device("meta"):  # names and shapes, without memory
        before = Trained(config, schema, features, make_model(schema, features, config))
    refuse_unasked(before, now, start)
    return Start(start, before, now, _row_of_item(before, now, catalog), carried(before.model, now.model))


def _run_of(path: Path) -> Path:
    """The run directory of a checkpoint that is whole."""
    if (path / "checkpoints").is_dir():
        there = [str(path / "checkpoints" / name) for name in checkpoint.names(path / "checkpoints")]
        raise UserError("start.checkpoint", path, f"one of the checkpoints in it: {', '.join(there) or 'it has none'}",
                        f"set start.checkpoint={there[-1]}" if there else "train it first")  # fmt: skip
    if path.parent.name != "checkpoints" or path.name not in checkpoint.names(path.parent):
        raise UserError("start.checkpoint", path, "a folder RUN/checkpoints/step-N, written by trainer.train",
                        "correct it, or set start.checkpoint=null")  # fmt: skip
    return path.absolute().parent.parent


def _row_of_item(before: Trained, now: Trained, catalog: Catalog) -> Tensor | None:
    """Where the other run's items are in this one's catalogue, if both have a streaming estimate, which is by row."""
    log_q = {one.config.model.loss.log_q for one in (before, now)}
    same = before.schema.fingerprint == now.schema.fingerprint
    if log_q != {"streaming"} or same or now.config.start.state == "weights":
        return None
    data_dir, remedy = (
        before.config.data.dir,
        "bring it back, or set start.state=weights, which begins the estimate anew",
    )
    try:
        schema = read_schema(data_dir)
        if schema.fingerprint != before.schema.fingerprint:
            raise UserError("data.dir", data_dir, "the data that it was trained on", remedy)
        items = Catalog(data_dir, schema)
    except UserError as error:
        expected = f"the data of that run in {data_dir}, whose items its streaming estimate is of ({error.expected})"
        raise UserError("start.checkpoint", now.config.start.checkpoint, expected, remedy) from None
    return torch.from_numpy(catalog.rows_of(items))
