"""The sampled softmax, as a pure function of embeddings already gathered."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Q queries of this rank, C of them in a chunk, W ranks, D embedding dim,
# N columns: the distinct items of each rank's batch, over all ranks


@dataclass(frozen=True)
class Queries:
    """This rank's queries, each with its positive."""

    embedding_QD: Tensor
    """float [Q, D], divided by the temperature."""
    positive_Q: Tensor
    """int64 [Q], column of the positive."""
    own_count_Q: Tensor
    """float [Q], how often the positive's column stands in the query's own denominator: once where accidental hits
    are removed, else as often as it was drawn."""
    weight_Q: Tensor
    """float [Q]. A query of weight 0 contributes nothing, whatever its embedding."""


@dataclass(frozen=True)
class Candidates:
    """The columns of the softmax. An item that several ranks drew has a column for each of them."""

    embedding_ND: Tensor
    """float [N, D]."""
    count_N: Tensor
    """float [N], how often the column was drawn as a negative; 0 where it is there as a positive alone."""
    log_q_N: Tensor
    """float [N], log of the item's share of all draws, constant to the gradient; zeros correct nothing."""


@dataclass(frozen=True)
class Exclusions:
    """Columns that are no negatives of a query: stretches of one array, which queries may share."""

    column_E: Tensor
    """int64 [E]."""
    begin_Q: Tensor
    """int64 [Q], where each query's stretch begins."""
    end_Q: Tensor
    """int64 [Q], one past its end."""

    def pairs(self, chunk: slice, how_many: int) -> tuple[Tensor, Tensor]:
        """Places to leave out in a chunk's logits: two int64 [how_many], queries within the chunk and columns.

        Args:
            chunk: of the queries.
            how_many: pairs of the chunk, which the caller knows, so that a GPU need not be waited for.
        """
        begin_C = self.begin_Q[chunk]
        length_C = self.end_Q[chunk] - begin_C
        query = torch.repeat_interleave(length_C, output_size=how_many)
        before_C = length_C.cumsum(0) - length_C
        place = torch.arange(how_many, device=query.device) + (begin_C - before_C)[query]
        return query, self.column_E[place]


class Workspace:
    """Memory for the logits of one chunk of queries, kept from step to step.

    Taken anew in every step, it would be given back to the system and faulted in again, which takes longer than the
    arithmetic.

    Args:
        logits_at_once: How many logits are held. On a CPU two million (8 MB) stay in its cache, and fewer gain nothing;
            a GPU wants some 64 million to be busy.
    """

    def __init__(self, logits_at_once: int = 1 << 21) -> None:
        self._logits_at_once = logits_at_once
        self._memory = torch.empty(0)

    def chunk_size(self, columns: int) -> int:
        """Queries whose logits are held at once."""
        return max(1, self._logits_at_once // columns)

    def logits(self, like: Tensor, columns: int) -> Tensor:
        """Uninitialised [chunk_size, N] with dtype and device of another tensor, valid until the next call."""
        size = self.chunk_size(columns) * columns
        if self._memory.numel() < size or self._memory.dtype != like.dtype or self._memory.device != like.device:
            self._memory = like.new_empty(max(size, self._logits_at_once))
        return self._memory[:size].view(-1, columns)


def sampled_softmax(
    queries: Queries,
    candidates: Candidates,
    workspace: Workspace,
    excluded: Exclusions | None = None,
    same_item_QW: Tensor | None = None,
) -> Tensor:
    """Weighted sum over queries of log Z - l_positive, with l_j = <query, candidate_j> - log_q_j.

    Z is the sum of n_j exp(l_j) over columns, n_j being the column's count, the query's own count at its positive, and
    0 where a column is excluded: so equal draws are merged, and the value is that of the cross-entropy in which each
    draw has a column of its own.

    Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations" (2019), equations 3 to
    5. As there, log q is taken off the positive's logit too: given the columns drawn, the chance that column j is the
    positive is proportional to exp(score_j) / q_j for each of them alike.

    Args:
        queries: Q of them; the gradient goes to their embeddings.
        candidates: N of them; likewise.
        workspace: the caller's, the same in every step.
        excluded: columns that are no negatives of a query, or None. The positive stays in, whatever they say.
        same_item_QW: int64 [Q, W], columns of other ranks with the positive's own item, -1 where there is none; they
            are no negatives either. None keeps them.

    Returns:
        A scalar. NaN and infinity in what a weighted query sees come out as NaN or infinity.
    """
    return _SampledSoftmax.apply(
        queries.embedding_QD, candidates.embedding_ND, queries, candidates, workspace, excluded, same_item_QW
    )


class _SampledSoftmax(torch.autograd.Function):
    """Walks over chunks of queries and forms the gradient while a chunk's logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, query_QD: Tensor, candidate_ND: Tensor, queries: Queries, candidates: Candidates,
        workspace: Workspace, excluded: Exclusions | None, same_item_QW: Tensor | None,
    ) -> Tensor:  # fmt: skip
        used_Q = queries.weight_Q != 0
        query_QD = query_QD.where(used_Q[:, None], 0)
        log_own_count_Q = queries.own_count_Q.where(used_Q, 1).log()
        bias_N = candidates.count_N.log() - candidates.log_q_N
        logits_CN = workspace.logits(query_QD, len(candidate_ND))
        chunks = _chunks(len(query_QD), len(logits_CN), excluded)
        loss_Q = torch.empty_like(queries.weight_Q)
        query_gradient_QD, candidate_gradient_ND = torch.empty_like(query_QD), torch.zeros_like(candidate_ND)
        for chunk, pairs in chunks:
            query_CD, positive_C, weight_C = query_QD[chunk], queries.positive_Q[chunk], queries.weight_Q[chunk]
            positive_logit_C = (query_CD * candidate_ND[positive_C]).sum(1) - candidates.log_q_N[positive_C]
            l_CN = torch.addmm(bias_N, query_CD, candidate_ND.T, out=logits_CN[: len(query_CD)])
            if excluded is not None:
                l_CN[excluded.pairs(chunk, pairs)] = -torch.inf
            if same_item_QW is not None:
                hit_CW = same_item_QW[chunk]
                l_CN.scatter_(1, hit_CW.where(hit_CW >= 0, positive_C[:, None]), -torch.inf)
            # after the exclusions, so that none of them takes the positive out
            l_CN.scatter_(1, positive_C[:, None], (positive_logit_C + log_own_count_Q[chunk])[:, None])

            max_C = l_CN.amax(1)
            share_CN = l_CN.sub_(max_C[:, None]).exp_()
            z_C = share_CN.sum(1)
            loss_Q[chunk] = z_C.log() + (max_C - positive_logit_C)

            # the derivative by a logit is weight / Z times this, which sums to 0 over a row
            share_CN.scatter_add_(1, positive_C[:, None], -z_C[:, None])
            scale_C1 = (weight_C / z_C)[:, None]
            torch.mm(share_CN, candidate_ND, out=query_gradient_QD[chunk]).mul_(scale_C1)
            candidate_gradient_ND.addmm_(share_CN.T, query_CD * scale_C1)
        ctx.save_for_backward(query_gradient_QD, candidate_gradient_ND)
        return queries.weight_Q @ loss_Q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query_gradient_QD, candidate_gradient_ND = ctx.saved_tensors
        return (query_gradient_QD * gradient, candidate_gradient_ND * gradient, *[None] * 5)


def _chunks(num_queries: int, chunk_size: int, excluded: Exclusions | None) -> list[tuple[slice, int]]:
    """Stretches of queries, each with the number of its excluded pairs, fetched from the device at once."""
    chunks = [slice(start, min(start + chunk_size, num_queries)) for start in range(0, num_queries, chunk_size)]
    if excluded is None or not chunks:
        return [(chunk, 0) for chunk in chunks]
    length_Q = excluded.end_Q - excluded.begin_Q
    pairs = torch.stack([length_C.sum() for length_C in length_Q.split(chunk_size)]).tolist()
    return list(zip(chunks, pairs, strict=True))
