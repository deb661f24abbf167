"""A loss or a gradient that is not finite: kept away from tables and layers, and traced to its rows."""

from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import Awaitable
from torchrec.sparse.jagged_tensor import KeyedTensor

from trainer.config import RunConfig
from trainer.data.batch import RetrievalBatch
from trainer.data.events import TrainingReader
from trainer.errors import UserError, tell
from trainer.model.two_tower import dense_parameters
from trainer.runtime.gather import gather, gather_objects
from trainer.runtime.processes import Processes

# R rows on this rank, Q queries, P positives, U items, D embedding dim, W ranks

IN_A_ROW = 20
"""Steps that may be left out one after another; a model that has diverged would leave out all that are left."""


class NonFiniteSteps:
    """Looks at what comes back to the tables in each backward pass, before their fused optimizer does.

    Where any rank's loss or gradient is not finite, the tables of all ranks are given a gradient of zero instead, and
    the layers none.

    Args:
        model: sharded.
        config: whether such a step ends the run or is left out.
        reader: of the rows.
        processes: this process's place.
    """

    def __init__(
        self, model: DistributedModelParallel, config: RunConfig, reader: TrainingReader, processes: Processes
    ) -> None:
        self._config, self._reader, self._processes = config, reader, processes
        cast(nn.Module, model.module.embeddings).register_forward_hook(self._watch)
        self._dense = [*dense_parameters(model).values()]
        self._is_bad_W = torch.zeros(processes.world_size, dtype=torch.bool, device=processes.device)
        self._expected: tuple[RetrievalBatch, Tensor, Tensor, Tensor] | None = None
        self.left_out = 0
        """Steps left out since the run began."""
        self._in_a_row = 0

    def expect(self, batch: RetrievalBatch, query_QD: Tensor, item_UD: Tensor, loss: Tensor) -> None:
        """Takes a forward pass whose backward pass comes next."""
        query_QD.retain_grad()
        item_UD.retain_grad()
        self._expected = batch, query_QD, item_UD, loss.detach()

    def settle(self) -> None:
        """After the backward pass and before the layers' optimizer: ends the run, or leaves out the step.

        Raises:
            UserError: the step was not finite, and the run is to stop then or has left out as many as it may.
        """
        assert self._expected is not None
        (batch, query_QD, item_UD, loss), self._expected = self._expected, None
        if self._is_finite():
            self._in_a_row = 0
            return
        for parameter in self._dense:
            parameter.grad = None
        self.left_out, self._in_a_row = self.left_out + 1, self._in_a_row + 1
        ranks = self._ranks_to_blame(query_QD, item_UD, loss)
        if self._processes.rank in ranks:
            is_bad_R = offending_rows(batch, query_QD, item_UD)
            write_rows(self._reader.rows(batch.step), is_bad_R, self._config.dir, batch.step, self._processes.rank)
        losses = [round(value, 4) for value in gather(loss[None]).tolist()]
        what = f"step {batch.step:,}: loss or gradient not finite on ranks {ranks} (losses {losses})"
        where = f"{self._config.dir}/non_finite/step-{batch.step:09d}-rank-*.parquet"
        if self._config.on_non_finite == "stop" or self._in_a_row > IN_A_ROW:
            stops = self._config.on_non_finite == "stop"
            expected = "finite numbers" if stops else f"finite numbers in one of {IN_A_ROW} steps in a row"
            raise UserError(
                "training", what, f"{expected}; the rows are in {where}",
                "look at them; a lower optimizer.embedding_learning_rate or a dense_gradient_clip, in a run.dir of its "
                "own, keeps a run from diverging; run.on_non_finite=leave_out goes on from the newest checkpoint and "
                "leaves out such steps",
            )  # fmt: skip
        if self._processes.is_first:
            tell(f"left out {what}; rows in {where}")

    def _is_finite(self) -> bool:
        """The same on every rank: gradients of layers are means over all of them."""
        is_finite = ~self._is_bad_W.any()
        if gradients := [parameter.grad for parameter in self._dense if parameter.grad is not None]:
            is_finite &= torch.nn.utils.get_total_norm(gradients).isfinite()
        return bool(is_finite)

    def _ranks_to_blame(self, query_QD: Tensor, item_UD: Tensor, loss: Tensor) -> list[int]:
        """Those where it shows first: in embeddings, else in the loss, else in a gradient, which others can cause."""
        shows = (
            not (query_QD.isfinite().all() and item_UD.isfinite().all()),
            not loss.isfinite(),
            bool(self._is_bad_W[self._processes.rank]),
        )
        everyone = gather_objects(shows)
        return [rank for rank, of_rank in enumerate(everyone) if of_rank == max(everyone)]

    def _watch(self, module: nn.Module, inputs: Any, output: Awaitable | KeyedTensor) -> KeyedTensor:
        # what has been awaited goes on in the place of what was to be: it cannot be awaited twice
        looked_up = output if isinstance(output, KeyedTensor) else output.wait()
        if looked_up.values().requires_grad:
            looked_up.values().register_hook(self._check)
        return looked_up

    def _check(self, gradient: Tensor) -> Tensor | None:
        if self._expected is None:  # a backward pass that was not announced: someone else's
            return None
        loss = self._expected[-1]
        # a sum is finite only if all it sums up is: one pass, and no mask in memory
        self._is_bad_W = gather(~(gradient.sum() + loss).isfinite()[None])
        is_bad = self._is_bad_W.any()
        return gradient.masked_fill(is_bad, 0.0) if gradient.is_cuda or is_bad else None


def offending_rows(batch: RetrievalBatch, query_QD: Tensor, item_UD: Tensor) -> Tensor:
    """Rows of a batch, bool [R], whose query or positive has an embedding or else a gradient that is not finite.

    All of them where no single one stands out. `retain_grad` has been called on both embeddings.
    """
    positive_query_P = batch.positive_query
    if positive_query_P is None:
        positive_query_P = torch.arange(len(batch.positive), device=batch.positive.device)
    row_Q = batch.query_row if batch.query_row is not None else torch.arange(len(query_QD), device=query_QD.device)
    num_rows = int(row_Q.max()) + 1
    for query, item in ((query_QD, item_UD), (query_QD.grad, item_UD.grad)):
        if query is None or item is None:
            continue
        is_bad_Q = ~query.detach().isfinite().flatten(1).all(dim=1)
        is_bad_P = ~item.detach()[batch.positive].isfinite().all(dim=1)
        is_bad_R = torch.zeros(num_rows, dtype=torch.bool, device=row_Q.device)
        is_bad_R[row_Q[is_bad_Q]] = True
        is_bad_R[row_Q[positive_query_P[is_bad_P]]] = True
        if is_bad_R.any():
            return is_bad_R.cpu()
    return torch.ones(num_rows, dtype=torch.bool)


def write_rows(rows: pa.Table, is_bad_R: Tensor, run_dir: str, step: int, rank: int) -> Path:
    """Writes the offending rows, as they are in the prepared folder, to RUN/non_finite/step-N-rank-R.parquet."""
    folder = Path(run_dir) / "non_finite"
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{step:09d}-rank-{rank}.parquet"
    pq.write_table(rows.filter(pa.array(is_bad_R.numpy())), path)
    return path
