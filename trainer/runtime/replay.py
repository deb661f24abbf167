"""Rows of a step that was not finite, seen once more by a checkpoint: where does it show?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import Awaitable
from torchrec.sparse.jagged_tensor import KeyedTensor

from trainer.data.assembly import BatchAssembler
from trainer.errors import UserError
from trainer.model.two_tower import dense_parameters
from trainer.runtime import saved_model
from trainer.runtime.gather import gather_objects
from trainer.runtime.loading import SavedRun
from trainer.runtime.lockstep import sizes_of_all
from trainer.runtime.processes import Processes
from trainer.runtime.sharding import local_shards
from trainer.runtime.training_loss import TrainingLoss

_ROWS_AT_ONCE = 1 << 16
"""Of a table that is looked through, which may leave little of a GPU's memory."""


def read_rows(run: SavedRun, path: str) -> pa.Table:
    """Training rows that a run has written.

    Raises:
        UserError: the file is none of those.
    """
    try:
        rows = pq.read_table(path, columns=run.assembler.columns(run.config.data.layout))
    except (OSError, pa.ArrowException) as error:
        there = ", ".join(str(file) for file in sorted(Path(path).parent.glob("*.parquet"))) or "there is none"
        raise UserError("replay.rows", path, f"a file of RUN/non_finite ({error})", f"name one: {there}") from None
    if not len(rows):
        raise UserError("replay.rows", path, "at least one row", "name another file")
    return rows


def replay(run: SavedRun, model: DistributedModelParallel, rows: pa.Table, processes: Processes) -> list[str]:
    """Takes the rows through model and loss, forward and backward; nothing is updated, hidden or dropped.

    Returns:
        A line for everything that is not finite, in the order in which it comes about, the same on every rank.
    """
    told = _tables(model)
    for group in model.fused_optimizer.param_groups:
        group["lr"] = 0.0
    model.fused_optimizer.step()
    kept = replace(run.config.model, id_dropout=0.0, list_dropout=0.0)
    assembler = BatchAssembler(run.schema, run.assembler.features, run.catalog, kept)
    batch = assembler.training_batch(rows, run.config.data.layout, 0, np.empty(0, np.int64)).to(processes.device)
    sizes = sizes_of_all(batch)
    loss_of = TrainingLoss(run.config.model.loss, len(run.catalog), processes)
    loss_of.load_state_dict(saved_model.load_rest(run.checkpoint)["loss"])
    with _watched(model.module, told):
        query_QD, item_UD = model(batch.with_slots(sizes.slots))
    loss = loss_of.to(processes.device)(query_QD / model.module.temperature(), item_UD, batch, sizes)
    loss.backward()
    _look(told, "loss", loss)
    for name, parameter in dense_parameters(model).items():
        if parameter.grad is not None:
            _look(told, f"gradient of {name}", parameter.grad)
    return list(dict.fromkeys(line for of_rank in gather_objects(told) for line in of_rank))


def _tables(model: DistributedModelParallel) -> list[str]:
    """The tables with rows that are not finite themselves."""
    bad = [(table, first + number * _ROWS_AT_ONCE + int(row)) for table, rows, (first, _), _ in local_shards(model)
           for number, part in enumerate(rows.split(_ROWS_AT_ONCE))
           for row in (~part.isfinite().all(dim=1)).nonzero()]  # fmt: skip
    return [f"table {table} itself: row {row}" for table, row in bad]


@contextmanager
def _watched(model: nn.Module, told: list[str]) -> Iterator[None]:
    """Looks at what every layer gives, for the duration of a block."""
    tables = cast(nn.Module, model.embeddings)
    layers = [(name, layer) for name, layer in model.named_modules()
              if not next(layer.children(), None) and not name.startswith("embeddings")]  # fmt: skip
    handles = [layer.register_forward_hook(partial(_look_at_layer, told, name)) for name, layer in layers]
    handles.append(tables.register_forward_hook(partial(_look_at_lookups, told)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _look_at_layer(told: list[str], name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor):
        _look(told, f"output of {name}", output)


def _look_at_lookups(told: list[str], tables: nn.Module, inputs: Any, output: Awaitable | KeyedTensor) -> KeyedTensor:
    looked_up = output if isinstance(output, KeyedTensor) else output.wait()
    for name, values in looked_up.to_dict().items():
        _look(told, f"lookup of {name}", values)
    return looked_up


def _look(told: list[str], what: str, values: Tensor) -> None:
    bad = int((~torch.isfinite(values.detach())).sum())
    if bad:
        told.append(f"{what}: {bad:,} of {values.numel():,} numbers")
