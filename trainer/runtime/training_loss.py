"""The loss of one step over all ranks: gathers what its pure part in model/loss.py is a function of."""

import torch
from torch import Tensor, nn

from trainer.config import LossConfig
from trainer.data.batch import RetrievalBatch
from trainer.model.exclusions import excluded_columns, with_other_rows_of_the_user
from trainer.model.frequencies import StreamingFrequencies, mixture_log_q
from trainer.model.loss import LOGITS_ON_A_CPU, Candidates, Exclusions, Queries, Workspace, sampled_softmax
from trainer.runtime.candidates import GlobalCandidates, gather_candidates, gather_ragged
from trainer.runtime.lockstep import Sizes
from trainer.runtime.processes import Processes

# R rows on this rank, Q queries, P positives, C candidates; N candidates of all ranks, D embedding dim, K interests

HASHES = 4
"""Of the streaming estimate: buckets that an item has where items share them."""
LOGITS_ON_A_GPU = 1 << 26
"""Held at once, which keep it busy: 256 MB."""


class TrainingLoss(nn.Module):
    """Softmax of this rank's queries over the candidates of all ranks.

    Args:
        config: of the loss.
        num_items: in the catalogue.
        processes: this process's place.
        products: to what matrix products are rounded.
        gradient_scale: of candidates' exchange; see gather_with_gradient.
    """

    def __init__(
        self, config: LossConfig, num_items: int, processes: Processes, products: torch.dtype = torch.float32,
        gradient_scale: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._gradient_scale = gradient_scale
        self._config, self._num_items = config, num_items
        at_once = LOGITS_ON_A_GPU if processes.device.type == "cuda" else LOGITS_ON_A_CPU
        self._workspace = Workspace(at_once, products)
        self.frequencies = streaming_frequencies(config, num_items) if config.log_q == "streaming" else None

    def forward(self, query_QD: Tensor, item_UD: Tensor, batch: RetrievalBatch, sizes: Sizes) -> Tensor:
        """Weighted sum whose mean over ranks is the mean over all positives.

        Args:
            query_QD: float32 [Q, D], or [Q, K, D] of several interests, of which the one nearest the positive is
                trained; divided by the temperature.
            item_UD: of this rank's items.
            batch: they are of.
            sizes: of all ranks' batches.
        """
        candidates = gather_candidates(item_UD[: batch.num_candidates], batch, sizes.candidates, self._gradient_scale)
        if query_QD.dim() == 3:
            query_QD = _nearest_interest(query_QD, item_UD[batch.positive])
        positive_P = candidates.own_C[batch.positive]
        count_N = candidates.uniform_count_N + candidates.positive_count_N * self._config.in_batch_negatives
        own_P = torch.ones_like(count_N[positive_P])
        if not self._config.remove_accidental_hits:
            own_P = count_N[positive_P] + (not self._config.in_batch_negatives)
        weight_P = torch.ones_like(own_P) if batch.weight is None else batch.weight
        scale = len(sizes.positives) / sizes.weight if sizes.weight else 0.0  # weights of 0 alone teach nothing
        drawn_M = None
        if not self._config.in_batch_negatives:
            drawn_M = torch.arange(len(candidates.row_M), device=count_N.device)
        return sampled_softmax(
            Queries(query_QD, positive_P, own_P, weight_P * scale, batch.positive_query),
            Candidates(candidates.embedding_ND, count_N, self._log_q(candidates, batch, sizes), drawn_M),
            self._workspace,
            self._exclusions(candidates.row_M, batch, sizes),
        )

    @torch.no_grad()
    def _log_q(self, candidates: GlobalCandidates, batch: RetrievalBatch, sizes: Sizes) -> Tensor:
        """Log of the share that each candidate has, in expectation, of a step's draws."""
        config = self._config
        if config.log_q == "none" or not config.in_batch_negatives:  # or all draws are uniform: nothing to correct
            return torch.zeros_like(candidates.train_share_N)
        if self.frequencies is None:
            log_q_N = candidates.train_share_N.log()
        else:
            self.frequencies.update(candidates.row_M, candidates.positive_count_N, batch.step)
            log_q_N = self.frequencies.log_q(candidates.row_M)
        return mixture_log_q(log_q_N, sum(sizes.positives), config.uniform_negatives, self._num_items)

    @torch.no_grad()
    def _exclusions(self, row_M: Tensor, batch: RetrievalBatch, sizes: Sizes) -> Exclusions | None:
        if batch.known_row is None or batch.known_length is None or not len(row_M):
            return None
        known = batch.known_row, batch.known_length
        if batch.user is not None:
            of_row = batch.query_row if batch.positive_query is None else batch.positive_query
            user_P = batch.user if of_row is None else batch.user[of_row]
            told_G2 = gather_ragged(torch.stack([user_P, batch.item_row[batch.positive]], dim=1), sizes.positives)
            known = with_other_rows_of_the_user(*known, batch.user, told_G2[:, 0].contiguous(), told_G2[:, 1])
        return excluded_columns(*known, row_M, batch.query_row, batch.known_seen)


def streaming_frequencies(config: LossConfig, num_items: int) -> StreamingFrequencies:
    """The estimate of a run at its start."""
    return StreamingFrequencies(num_items, config.streaming_buckets, HASHES, config.streaming_rate)


def _nearest_interest(query_QKD: Tensor, positive_QD: Tensor) -> Tensor:
    """The interest that would retrieve the positive learns from it: Cen et al. 2020, "ComiRec", its training."""
    nearest_Q = torch.einsum("qkd,qd->qk", query_QKD.detach(), positive_QD.detach()).argmax(dim=1)
    return query_QKD[torch.arange(len(query_QKD), device=query_QKD.device), nearest_Q]
