"""Item embeddings outside training: all ranks step together, since every lookup is an exchange."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from trainer.data.assembly import BatchAssembler


@torch.no_grad()
def embed_items(
    model: nn.Module,
    assembler: BatchAssembler,
    rows: range | np.ndarray,
    steps: int,
    batch_size_per_rank: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Candidate embeddings of rows of the catalogue, float32 [up to batch_size_per_rank, D] a step.

    Args:
        model: sharded TwoTower, in evaluation mode.
        assembler: lays out its inputs.
        rows: catalogue rows of this rank; they may run out before the steps do.
        steps: of every rank.
        batch_size_per_rank: of every step; short batches are filled up, so that all have the same shape everywhere.
        device: of the model.
    """
    for start in range(0, steps * batch_size_per_rank, batch_size_per_rank):
        here = np.asarray(rows[start : start + batch_size_per_rank], np.int64)
        filled = np.zeros(batch_size_per_rank, np.int64)
        filled[: len(here)] = here
        _, item_UD = model(assembler.candidate_batch(filled).to(device))
        yield item_UD[: len(here)]
