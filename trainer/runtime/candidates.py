"""The candidates of all ranks, with what the loss wants to know of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trainer.data.batch import RetrievalBatch
from trainer.runtime.gather import gather, gather_with_gradient

# C candidates on this rank, G of all ranks in rank order, N distinct ones of these, D embedding dim


@dataclass(frozen=True)
class GlobalCandidates:
    """Each item that is a candidate of any rank, once, in ascending order of catalogue rows.

    Attributes:
        embedding_ND: float32, with gradient to the first rank that has the item.
        row_N: int64, catalogue rows.
        positive_count_N: float32, queries of all ranks whose positive it is.
        uniform_count_N: float32, draws of it by all ranks.
        train_share_N: float32, its share of the training events.
        own_C: int64, where this rank's own stand.
    """

    embedding_ND: Tensor
    row_N: Tensor
    positive_count_N: Tensor
    uniform_count_N: Tensor
    train_share_N: Tensor
    own_C: Tensor


def gather_candidates(
    candidate_CD: Tensor, batch: RetrievalBatch, sizes: Sequence[int], gradient_scale: float | None = None
) -> GlobalCandidates:
    """Every rank's candidates on every rank.

    An item that several ranks have has the same embedding on each, dropout inside the item tower apart; so it is taken
    from the first of them, which gets the gradient of all.

    Args:
        candidate_CD: this rank's.
        batch: of this rank.
        sizes: C of each rank.
        gradient_scale: see gather_with_gradient.
    """
    row_C, share_C = batch.item_row[: batch.num_candidates], batch.train_share
    if len(sizes) == 1:
        own_C = torch.arange(len(row_C), device=row_C.device)
        return GlobalCandidates(candidate_CD, row_C, batch.positive_count, batch.uniform_count, share_C, own_C)
    told = row_C, batch.positive_count, batch.uniform_count, share_C
    # float64 holds rows and counts exactly, so that one exchange does for all
    told_G4 = gather_ragged(torch.stack([column.double() for column in told], dim=1), sizes)
    embedding_GD = _without_padding(gather_with_gradient(_padded(candidate_CD, max(sizes)), gradient_scale), sizes)
    row_N, column_G = told_G4[:, 0].long().unique(return_inverse=True)
    place_G = torch.arange(len(column_G), device=column_G.device)
    first_N = torch.empty_like(row_N).scatter_reduce_(0, column_G, place_G, "amin", include_self=False)
    count_N2 = told_G4.new_zeros(len(row_N), 2).index_add_(0, column_G, told_G4[:, 1:3]).float()
    before = sum(sizes[: dist.get_rank()])
    return GlobalCandidates(
        embedding_GD.index_select(0, first_N), row_N, count_N2[:, 0], count_N2[:, 1],
        told_G4[first_N, 3].float(), column_G[before : before + len(row_C)],
    )  # fmt: skip


def gather_ragged(local: Tensor, sizes: Sequence[int]) -> Tensor:
    """Concatenates tensors of known sizes over ranks, without gradient."""
    return _without_padding(gather(_padded(local, max(sizes))), sizes)


def _padded(local: Tensor, size: int) -> Tensor:
    return F.pad(local, (0, 0, 0, size - len(local))) if len(local) < size else local


def _without_padding(everyone: Tensor, sizes: Sequence[int]) -> Tensor:
    if min(sizes) == max(sizes):
        return everyone
    return torch.cat([part[:size] for part, size in zip(everyone.chunk(len(sizes)), sizes, strict=True)])
