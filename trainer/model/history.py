"""What a query tower makes of the user's events, each seen as the candidate tower embeds its item.

An encoder is given a row's events, oldest first, and gives a state for every number of them that a query can have seen:
state p knows the first p events and no later one, so that one pass serves all queries of a row.
"""

import math

import torch
from torch import Tensor, nn

from trainer.config import HistoryConfig
from trainer.data.batch import EventHistories

# R rows, Q queries, U items, T events of the longest row, P = T + 1 states, K interests, D embedding dim

TIME_BUCKETS = 36
"""Of the time between events, each twice as long as the one before: the last begins after a thousand years."""


class AttentionPooling(nn.Module):
    """Averages of the events seen, with weights that a small network gives them; one for each interest.

    Lin et al. 2017, "A Structured Self-attentive Sentence Embedding", equation 6; Cen et al. 2020, "ComiRec", section
    3.2.

    Args:
        dim: D.
        config: interests and dropout.
        max_events: the most of a row, each of which has a position of its own.
        has_times: whether the time between events is known.
    """

    def __init__(self, dim: int, config: HistoryConfig, max_events: int, has_times: bool) -> None:
        super().__init__()
        self.dim = dim
        self.input = _Events(dim, config.dropout, max_events, has_times)
        self.hidden, self.weigh = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, config.interests, bias=False)
        self.interests = config.interests

    def forward(self, item_UD: Tensor, history: EventHistories, query_row: Tensor | None) -> Tensor:
        """Items by number -> [Q, D], or [Q, K, D] for several interests; zeros where nothing has been seen."""
        event_RTD = item_UD[history.item]
        weight_RTK = self.weigh(torch.tanh(self.hidden(self.input(event_RTD, history))))
        if query_row is None:
            state_QKD = _average(weight_RTK, event_RTD, history.seen[:, None])[:, 0]
        else:
            most = torch.arange(history.item.shape[1] + 1, device=history.seen.device)
            state_RPKD = _average(weight_RTK, event_RTD, most.expand(len(history.item), -1))
            state_QKD = state_RPKD[query_row, history.seen]
        return state_QKD if self.interests > 1 else state_QKD[:, 0]


def _average(weight_RTK: Tensor, event_RTD: Tensor, seen_RP: Tensor) -> Tensor:
    """[R, P, K, D]: for each number of events seen, their average with the softmax of the weights among them."""
    place_T = torch.arange(weight_RTK.shape[1], device=seen_RP.device)
    hidden_RPT = place_T >= seen_RP[:, :, None]
    weight_RKPT = weight_RTK.transpose(1, 2)[:, :, None].masked_fill(hidden_RPT[:, None], -math.inf)
    share_RKPT = weight_RKPT.softmax(-1).nan_to_num(nan=0.0)
    return torch.einsum("rkpt,rtd->rpkd", share_RKPT, event_RTD)


class CausalTransformer(nn.Module):
    """Self-attention over the events so far: Kang & McAuley 2018, "SASRec", with the norm before each layer.

    Args:
        dim: D.
        config: layers, heads, dropout.
        max_events: the most of a row, each of which has a position of its own.
        has_times: whether the time between events is known.
    """

    def __init__(self, dim: int, config: HistoryConfig, max_events: int, has_times: bool) -> None:
        super().__init__()
        self.dim = dim
        self.input = _Events(dim, config.dropout, max_events, has_times)
        self.start_D = nn.Parameter(torch.randn(dim) * 0.02)
        self.gap = nn.Embedding(TIME_BUCKETS, dim) if has_times else None
        self.layers = nn.ModuleList(_layer(dim, config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)
        if self.gap is not None:
            nn.init.zeros_(self.gap.weight)

    def forward(self, item_UD: Tensor, history: EventHistories, query_row: Tensor | None) -> Tensor:
        """Items by number -> [Q, D]."""
        event_RTD = self.input(item_UD[history.item], history)
        event_RPD = torch.cat([self.start_D.expand(len(event_RTD), 1, -1), event_RTD], dim=1)
        mask_PP = nn.Transformer.generate_square_subsequent_mask(event_RPD.shape[1], device=event_RPD.device)
        for layer in self.layers:
            event_RPD = layer(event_RPD, mask_PP, is_causal=True)
        state_RPD = self.norm(event_RPD)
        row_Q = torch.arange(len(state_RPD), device=state_RPD.device) if query_row is None else query_row
        state_QD = state_RPD[row_Q, history.seen]
        if self.gap is not None and history.query_gap is not None:
            state_QD = state_QD + self.gap(time_bucket(history.query_gap))
        return state_QD


def _layer(dim: int, config: HistoryConfig) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(
        dim, config.heads, 4 * dim, config.dropout, activation="gelu", batch_first=True, norm_first=True
    )
    # weights of the attention are not dropped: the fused kernel of the CPU cannot, and takes a third of the time
    layer.self_attn.dropout = 0.0
    return layer


class _Events(nn.Module):
    """Events as the layers want them: scaled, with what tells their position and the time before them."""

    def __init__(self, dim: int, dropout: float, max_events: int, has_times: bool) -> None:
        super().__init__()
        self.position = nn.Embedding(max_events, dim)
        nn.init.normal_(self.position.weight, std=0.02)
        self.gap = nn.Embedding(TIME_BUCKETS, dim) if has_times else None
        if self.gap is not None:
            nn.init.zeros_(self.gap.weight)
        self.dropout = nn.Dropout(dropout)

    def forward(self, event_RTD: Tensor, history: EventHistories) -> Tensor:
        event_RTD = event_RTD * math.sqrt(event_RTD.shape[-1]) + self.position.weight[: event_RTD.shape[1]]
        if self.gap is not None and history.gap is not None:
            event_RTD = event_RTD + self.gap(time_bucket(history.gap))
        return self.dropout(event_RTD)


def time_bucket(seconds: Tensor) -> Tensor:
    """0 for no time, then 1 + floor(log2(seconds)), up to the last bucket; int64 of the same shape."""
    return (1 + torch.log2(seconds.clamp(min=0.5).double()).floor().long()).clamp(max=TIME_BUCKETS - 1)
