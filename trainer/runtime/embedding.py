"""Item embeddings outside training: all ranks step together, since every lookup is an exchange."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from trainer.data.assembly import BatchAssembler
from trainer.runtime.gather import gather
from trainer.runtime.processes import Processes


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
        yield _embed(model, assembler, here, batch_size_per_rank, device)[: len(here)]


def embed_catalogue(
    model: nn.Module, assembler: BatchAssembler, num_items: int, batch_size_per_rank: int, processes: Processes
) -> Tensor | None:
    """Embeddings of all items, float32 [1 + num_items, D] on the CPU of the first rank, after that of an unknown item.

    Args:
        model: sharded TwoTower, in evaluation mode.
        assembler: lays out its inputs.
        num_items: of the catalogue.
        batch_size_per_rank: of every step.
        processes: this process's place; each embeds its share of a step.
    """
    # catalogue row -1 stands for an unknown item
    return embed_on_first(model, assembler, np.arange(-1, num_items), batch_size_per_rank, processes)


@torch.no_grad()
def embed_on_first(
    model: nn.Module, assembler: BatchAssembler, rows: np.ndarray, batch_size_per_rank: int, processes: Processes
) -> Tensor | None:
    """Embeddings of catalogue rows, float32 [rows, D] on the CPU of the first rank, None on others.

    Args:
        model: sharded TwoTower, in evaluation mode.
        assembler: lays out its inputs.
        rows: int64, the same on every rank.
        batch_size_per_rank: of every step.
        processes: this process's place; each embeds its share of a step.
    """
    kept = []
    step = batch_size_per_rank * processes.world_size
    for start in tqdm(range(0, len(rows), step), desc="items", disable=not processes.is_first):
        first = start + processes.rank * batch_size_per_rank
        here = rows[first : first + batch_size_per_rank]
        everyone_UD = gather(_embed(model, assembler, here, batch_size_per_rank, processes.device))
        if processes.is_first:
            kept.append(everyone_UD[: len(rows) - start].cpu())
    return torch.cat(kept) if processes.is_first else None


def _embed(
    model: nn.Module, assembler: BatchAssembler, here: np.ndarray, batch_size_per_rank: int, device: torch.device
) -> Tensor:
    """Embeddings of rows and, below them, of the first item until there are batch_size_per_rank."""
    filled = np.zeros(batch_size_per_rank, np.int64)
    filled[: len(here)] = here
    _, item_UD = model(assembler.candidate_batch(filled).to(device))
    return item_UD
