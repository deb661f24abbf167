"""The sampled softmax, as a pure function of embeddings already gathered."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Q queries of this rank, C of them in a chunk; P positives of theirs, p of them in a chunk; D embedding dim,
# N candidates: the distinct items of the global batch; M columns, those of them whose logits are formed

LOGITS_ON_A_CPU = 1 << 20
"""Held at once, which stay in its cache: 4 MB."""
_LOG2E = math.log2(math.e)
"""Logits are formed in base 2: exp2 is two to three times as fast as exp on a CPU."""
_LEAST = -1e38
"""Stands for the largest of no logits: finite, so that nothing is taken off infinity."""


@dataclass(frozen=True)
class Queries:
    """This rank's queries with their positives: one each, or any number."""

    embedding_QD: Tensor
    """float [Q, D], divided by the temperature."""
    positive_P: Tensor
    """int64 [P], column of the positive."""
    own_count_P: Tensor
    """float [P], how often the positive's column stands in its own denominator: once where accidental hits are removed,
    else as often as it was drawn."""
    weight_P: Tensor
    """float [P]. A query with nothing but weights of 0 contributes nothing, whatever its embedding."""
    query_P: Tensor | None = None
    """int64 [P] ascending, the query of each positive; None where every query has one."""

    @property
    def of_P(self) -> Tensor:
        """int64 [P], the query of each positive."""
        return self.positive_P.new_ones(len(self.positive_P)).cumsum(0) - 1 if self.query_P is None else self.query_P


@dataclass(frozen=True)
class Candidates:
    """What the softmax is over, each item once."""

    embedding_ND: Tensor
    """float [N, D]."""
    count_N: Tensor
    """float [N], how often it was drawn as a negative; 0 where it is there as a positive alone."""
    log_q_N: Tensor
    """float [N], log of the item's share of all draws, constant to the gradient; zeros correct nothing."""
    drawn_M: Tensor | None = None
    """int64, those whose count is not 0: others have no column, but are there for the queries whose positive they are.
    None where all have one."""


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
        logits_at_once: How many logits are held. On a CPU a million (4 MB) stay in its cache, and fewer gain nothing; a
            GPU wants some 64 million to be busy.
        products: to what matrix products and their factors are rounded, float32 being as they are; all else is of the
            embeddings' type.
    """

    def __init__(self, logits_at_once: int = LOGITS_ON_A_CPU, products: torch.dtype = torch.float32) -> None:
        self._logits_at_once, self.products = logits_at_once, products
        self._memory = torch.empty(0)

    def chunk_size(self, columns: int) -> int:
        """Queries whose logits are held at once."""
        return max(1, self._logits_at_once // columns)

    def logits(self, like: Tensor, columns: int) -> Tensor:
        """Uninitialised [chunk_size, columns] with dtype and device of another tensor, valid until the next call."""
        size = self.chunk_size(columns) * columns
        if self._memory.numel() < size or self._memory.dtype != like.dtype or self._memory.device != like.device:
            self._memory = like.new_empty(max(size, self._logits_at_once))
        return self._memory[:size].view(-1, columns)


def sampled_softmax(
    queries: Queries,
    candidates: Candidates,
    workspace: Workspace,
    excluded: Exclusions | None = None,
) -> Tensor:
    """Weighted sum over positives of log Z - l_positive, with l_j = <query, candidate_j> - log_q_j.

    Z is the sum of n_j exp(l_j) over columns, n_j being the column's count, its own count at the positive, and 0 where
    a column is excluded: so equal draws are merged, and the value is that of the cross-entropy in which each draw has a
    column of its own. Of several positives of a query none is another's negative: what they share, the sum over
    negatives, is formed once.

    Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations" (2019), equations 3 to
    5. As there, log q is taken off the positive's logit too: given the columns drawn, the chance that column j is the
    positive is proportional to exp(score_j) / q_j for each of them alike.

    Args:
        queries: Q of them; the gradient goes to their embeddings.
        candidates: N of them; likewise.
        workspace: the caller's, the same in every step.
        excluded: columns that are no negatives of a query, or None. The positives stay in, whatever they say.

    Returns:
        A scalar. NaN and infinity in what a weighted query sees come out as NaN or infinity.
    """
    return _SampledSoftmax.apply(
        queries.embedding_QD, candidates.embedding_ND, queries, candidates, workspace, excluded
    )


class _SampledSoftmax(torch.autograd.Function):
    """Walks over chunks of queries and forms the gradient while a chunk's logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, query_QD: Tensor, candidate_ND: Tensor, queries: Queries, candidates: Candidates,
        workspace: Workspace, excluded: Exclusions | None,
    ) -> Tensor:  # fmt: skip
        counts_P, positive_P, of_P = queries.weight_P != 0, queries.positive_P, queries.of_P
        query_QD = query_QD.where(_used(queries, counts_P)[:, None], 0)
        log_q_N, scaled_QD = candidates.log_q_N * _LOG2E, query_QD * _LOG2E
        columns = _Columns(candidate_ND, candidates.count_N.log2() - log_q_N, candidates.drawn_M)
        column_P, log_own_count_P = columns.of(positive_P), queries.own_count_P.where(counts_P, 1).log2()
        positive_PD = candidate_ND[positive_P]
        logit_P = (scaled_QD[of_P] * positive_PD).sum(1) - log_q_N[positive_P]
        logits_CM = workspace.logits(query_QD, len(columns.bias_M))
        factor_MD = _rounded(columns.candidate_MD, workspace)
        max_P, own_P, z_P = (torch.empty_like(logit_P) for _ in range(3))
        query_gradient_QD, column_gradient_MD = torch.empty_like(query_QD), torch.zeros_like(columns.candidate_MD)
        for chunk in _chunks(queries, len(logits_CM), excluded):
            of_p, logit_p = of_P[chunk.positives] - chunk.queries.start, logit_P[chunk.positives]
            query_CD = _rounded(scaled_QD[chunk.queries], workspace)
            l_CM = _affine(columns.bias_M, query_CD, factor_MD, out=logits_CM[: len(query_CD)])
            if excluded is not None:
                of_query, candidate = excluded.pairs(chunk.queries, chunk.excluded)
                l_CM[of_query, columns.of(candidate)] = -torch.inf
            l_CM[of_p, column_P[chunk.positives]] = -torch.inf  # what is left are the negatives

            # of a query that has neither, every logit is -inf
            max_C = l_CM.amax(1).scatter_reduce_(0, of_p, logit_p, "amax").clamp_(min=_LEAST)
            share_CM = l_CM.sub_(max_C[:, None]).exp2_()
            max_p = max_P[chunk.positives] = max_C[of_p]
            own_p = own_P[chunk.positives] = (logit_p - max_p + log_own_count_P[chunk.positives]).exp2_()
            z_p = z_P[chunk.positives] = share_CM.sum(1)[of_p].add_(own_p)

            # the derivative by a negative's logit is its share times scale, the sum of weight / Z
            each_p = queries.weight_P[chunk.positives] / z_p
            scale_C = each_p if queries.query_P is None else _summed(each_p[:, None], of_p, len(max_C))[:, 0]
            share_CM = _rounded(share_CM, workspace)
            torch.mul(share_CM @ factor_MD, scale_C[:, None], out=query_gradient_QD[chunk.queries])
            scaled_CD = _rounded(query_QD[chunk.queries] * scale_C[:, None], workspace)
            _add_product(column_gradient_MD, share_CM.T, scaled_CD)
        loss_P = (z_P.log2() + (max_P - logit_P)) / _LOG2E
        by_positive_P1 = (queries.weight_P / z_P * (own_P - z_P))[:, None]  # of the loss, by the positive's logit
        query_gradient_QD += _summed(by_positive_P1 * positive_PD, of_P, len(query_QD))
        candidate_gradient_ND = _summed(by_positive_P1 * query_QD[of_P], positive_P, len(candidate_ND))
        ctx.save_for_backward(query_gradient_QD, columns.added(column_gradient_MD, candidate_gradient_ND))
        return queries.weight_P @ loss_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query_gradient_QD, candidate_gradient_ND = ctx.saved_tensors
        return (query_gradient_QD * gradient, candidate_gradient_ND * gradient, *[None] * 4)


class _Columns:
    """Candidates whose logits are formed: all, or the drawn ones and a last one that stands for the others.

    That one weighs nothing, so to leave it out, as is done with positives and excluded ones, changes nothing.
    """

    def __init__(self, candidate_ND: Tensor, bias_N: Tensor, drawn_M: Tensor | None) -> None:
        self.candidate_MD, self.bias_M, self._drawn_M = candidate_ND, bias_N, drawn_M
        if drawn_M is not None:
            self.candidate_MD = F.pad(candidate_ND[drawn_M], (0, 0, 0, 1))
            self.bias_M = F.pad(bias_N[drawn_M], (0, 1), value=-torch.inf)
            self._column_N = torch.full((len(candidate_ND),), len(drawn_M), device=drawn_M.device)
            self._column_N[drawn_M] = torch.arange(len(drawn_M), device=drawn_M.device)

    def of(self, candidate: Tensor) -> Tensor:
        """Where candidates stand: int64 [any] both."""
        return candidate if self._drawn_M is None else self._column_N[candidate]

    def added(self, gradient_MD: Tensor, gradient_ND: Tensor) -> Tensor:
        """A gradient by columns upon one by candidates, in place of the latter."""
        if self._drawn_M is None:
            return gradient_ND.add_(gradient_MD)
        return gradient_ND.index_add_(0, self._drawn_M, gradient_MD[:-1])


def _summed(rows_PD: Tensor, place_P: Tensor, places: int) -> Tensor:
    """Rows added up by where they belong, as an embedding's gradient is: in the same order always, on a GPU too."""
    return torch.ops.aten.embedding_dense_backward(rows_PD, place_P, places, -1, False)


def _rounded(factor: Tensor, workspace: Workspace) -> Tensor:
    return factor.to(workspace.products) if workspace.products != torch.float32 else factor


def _affine(bias_M: Tensor, query_CD: Tensor, candidate_MD: Tensor, out: Tensor) -> Tensor:
    """Scores and their bias, [C, M] of the bias's type."""
    if query_CD.dtype == out.dtype:
        return torch.addmm(bias_M, query_CD, candidate_MD.T, out=out)
    return torch.add(query_CD @ candidate_MD.T, bias_M, out=out)


def _add_product(total: Tensor, first: Tensor, second: Tensor) -> None:
    """Adds a product to what may be of a wider type, without a copy of it where it is not."""
    if first.dtype == total.dtype:
        total.addmm_(first, second)
    else:
        total += first @ second


@dataclass(frozen=True)
class _Chunk:
    """A stretch of queries, with the stretch of their positives and the number of their excluded pairs."""

    queries: slice
    positives: slice
    excluded: int


def _chunks(queries: Queries, chunk_size: int, excluded: Exclusions | None) -> list[_Chunk]:
    """All queries in stretches; what the device alone knows of them is fetched at once."""
    ends = [*range(chunk_size, len(queries.embedding_QD), chunk_size), len(queries.embedding_QD)]
    is_known = queries.query_P is None and excluded is None
    told = torch.tensor([ends, ends, [0] * len(ends)], device="cpu" if is_known else queries.positive_P.device)
    if queries.query_P is not None:
        told[1] = torch.searchsorted(queries.query_P, told[0])
    if excluded is not None:
        told[2] = (excluded.end_Q - excluded.begin_Q).cumsum(0)[told[0] - 1] if ends[-1] else 0
    chunks, before = [], (0, 0, 0)
    for query, positive, pair in told.T.tolist():
        chunks.append(_Chunk(slice(before[0], query), slice(before[1], positive), pair - before[2]))
        before = (query, positive, pair)
    return chunks if ends[-1] else []


def _used(queries: Queries, counts_P: Tensor) -> Tensor:
    """Queries with a positive that counts, as bool [Q]."""
    if queries.query_P is None:
        return counts_P
    none_Q = torch.zeros(len(queries.embedding_QD), dtype=torch.uint8, device=counts_P.device)
    return none_Q.scatter_reduce_(0, queries.query_P, counts_P.byte(), "amax").bool()
