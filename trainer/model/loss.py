"""The in-batch softmax, as a pure function of embeddings already gathered."""

import torch
import torch.nn.functional as F
from torch import Tensor

# B queries on this rank, N candidates over all ranks, D embedding dim


def in_batch_softmax(
    query_BD: Tensor,
    candidate_ND: Tensor,
    positive_B: Tensor,
    candidate_row_N: Tensor,
    candidate_log_q_N: Tensor,
    temperature: float,
    remove_accidental_hits: bool,
) -> Tensor:
    """Mean cross-entropy of each query's positive against all candidates of the global batch.

    Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations" (2019), equations 3 to
    5: a candidate comes into the batch as often as it is popular, so log q is taken off its score, the positive's too.

    Args:
        query_BD: float [B, D].
        candidate_ND: float [N, D].
        positive_B: int64 [B], column of each query's positive among the N.
        candidate_row_N: int64 [N], identity of each candidate.
        candidate_log_q_N: float [N], log of the probability with which each came into the batch; zeros correct nothing.
        temperature: divides the scores.
        remove_accidental_hits: whether other columns with the positive's identity are no negatives of the query.

    Returns:
        A scalar.
    """
    logits_BN = query_BD @ candidate_ND.T / temperature - candidate_log_q_N
    if remove_accidental_hits:
        same_item_BN = candidate_row_N[positive_B, None] == candidate_row_N[None, :]
        same_item_BN[torch.arange(len(positive_B), device=positive_B.device), positive_B] = False
        logits_BN = logits_BN.masked_fill(same_item_BN, float("-inf"))
    return F.cross_entropy(logits_BN, positive_B)
