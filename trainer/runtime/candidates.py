"""The candidates of all ranks, with what the loss wants to know of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.batch import RetrievalBatch
from trainer.runtime.gather import gather, gather_with_gradient

# C candidates on this rank, N over all ranks in rank order, D embedding dim


@dataclass(frozen=True)
class GlobalCandidates:
    """An item that several ranks have is there several times.

    Attributes:
        embedding_ND: float32, with gradient to the ranks that they came from.
        row_N: int64, catalogue rows; ascending within those of one rank.
        positive_count_N: float32, queries of that rank whose positive it is.
        uniform_count_N: float32, draws of it by that rank.
        train_share_N: float32, its share of the training events.
    """

    embedding_ND: Tensor
    row_N: Tensor
    positive_count_N: Tensor
    uniform_count_N: Tensor
    train_share_N: Tensor


def gather_candidates(
    candidate_CD: Tensor, batch: RetrievalBatch, sizes: Sequence[int], gradient_scale: float | None = None
) -> GlobalCandidates:
    """Every rank's candidates on every rank.

    Args:
        candidate_CD: this rank's.
        batch: of this rank.
        sizes: C of each rank.
        gradient_scale: see gather_with_gradient.
    """
    row_C, count_C = batch.item_row[: batch.num_candidates], (batch.positive_count, batch.uniform_count)
    # float64 holds rows and counts exactly, so that one exchange does for all
    told_C4 = torch.stack([row_C.double(), *(count.double() for count in count_C), batch.train_share.double()], dim=1)
    row_N, positive_count_N, uniform_count_N, train_share_N = gather_ragged(told_C4, sizes).unbind(1)
    embedding_ND = _without_padding(gather_with_gradient(_padded(candidate_CD, max(sizes)), gradient_scale), sizes)
    return GlobalCandidates(
        embedding_ND, row_N.long(), positive_count_N.float(), uniform_count_N.float(), train_share_N.float()
    )


def gather_ragged(local: Tensor, sizes: Sequence[int]) -> Tensor:
    """Concatenates tensors of known sizes over ranks, without gradient."""
    return _without_padding(gather(_padded(local, max(sizes))), sizes)


def _padded(local: Tensor, size: int) -> Tensor:
    return F.pad(local, (0, 0, 0, size - len(local))) if len(local) < size else local


def _without_padding(everyone: Tensor, sizes: Sequence[int]) -> Tensor:
    if min(sizes) == max(sizes):
        return everyone
    return torch.cat([part[:size] for part, size in zip(everyone.chunk(len(sizes)), sizes, strict=True)])
