"""What a query tower makes of the user's events, each seen as the candidate tower embeds its item.

A row of P - 1 events has P states, of which state p knows its first p events and no later one; so one pass serves all
queries of a row.
"""

import math

import torch
from torch import Tensor, nn

from trainer.config import HistoryConfig
from trainer.data.batch import EventHistories
from trainer.model.padding import pad_rows, unpad_rows
from trainer.model.transformer import Block

# R rows, Q queries, U items, H events, S = H + R states; n rows of a stretch, P states of the longest, K interests,
# D embedding dim

TIME_BUCKETS = 36
"""Of the time between events, each twice as long as the one before: the last begins after a thousand years."""


class ItemMean(nn.Module):
    """The average of the items that a query has seen; zeros where there is none."""

    def forward(self, item_UD: Tensor, history: EventHistories, one_query_a_row: bool) -> Tensor:
        """Items by number -> [Q, D]."""
        event_HD = item_UD[history.item]
        if not one_query_a_row and history.own is None:
            state_SD = _after_events(event_HD, history)
            mean_SD = unpad_rows([sums.cumsum(1) for sums in pad_rows(state_SD, history)], history)
            return mean_SD[history.state] / history.position[history.state].clamp(min=1)[:, None]
        # unsafe: unchecked, since for what is checked a GPU would be waited for
        sum_RD = torch.segment_reduce(event_HD, "sum", lengths=history.length, initial=0, unsafe=True)
        sum_QD, seen_Q = sum_RD[history.row], history.length[history.row]
        if history.own is not None:
            sum_QD, seen_Q = sum_QD - event_HD[history.own], seen_Q - 1
        return sum_QD / seen_Q.clamp(min=1)[:, None]


class AttentionPooling(nn.Module):
    """Averages of the items seen, with weights that a small network gives the events; one for each interest.

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
        self.input = _Events(dim, config.dropout, max_events, has_times)
        self.hidden, self.weigh = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, config.interests, bias=False)

    def forward(self, item_UD: Tensor, history: EventHistories, one_query_a_row: bool) -> Tensor:
        """Items by number -> [Q, D], or [Q, K, D] for several interests; zeros where nothing has been seen."""
        event_HD = item_UD[history.item]
        weight_HK = self.weigh(torch.tanh(self.hidden(self.input(event_HD, history))))
        events, weights, seen = (
            pad_rows(value, history)
            for value in (_after_events(event_HD, history), _after_events(weight_HK, history), history.position)
        )
        pool = _average_at_the_end if one_query_a_row else _average_at_each_state
        pooled = [pool(weight, event, at) for weight, event, at in zip(weights, events, seen, strict=True)]
        state_QKD = torch.cat(pooled)[history.row] if one_query_a_row else unpad_rows(pooled, history)[history.state]
        return state_QKD if state_QKD.shape[1] > 1 else state_QKD[:, 0]


def _average_at_the_end(weight_nPK: Tensor, event_nPD: Tensor, seen_nP: Tensor) -> Tensor:
    """[n, K, D]: of all events of each row. State 0 is no event, and padding has 0 events before it too."""
    share_nPK = weight_nPK.masked_fill(seen_nP[:, :, None] == 0, -math.inf).softmax(1).nan_to_num(nan=0.0)
    return torch.einsum("npk,npd->nkd", share_nPK, event_nPD)


def _average_at_each_state(weight_nPK: Tensor, event_nPD: Tensor, seen_nP: Tensor) -> Tensor:
    """[n, P, K, D]: of the events up to each state."""
    P = weight_nPK.shape[1]
    unseen_PP = torch.ones(P, P, dtype=torch.bool, device=seen_nP.device).triu(1)
    hidden_nPP = unseen_PP | (seen_nP == 0)[:, None, :]
    weight_nKPP = weight_nPK.transpose(1, 2)[:, :, None, :].masked_fill(hidden_nPP[:, None], -math.inf)
    return torch.einsum("nkpe,ned->npkd", weight_nKPP.softmax(-1).nan_to_num(nan=0.0), event_nPD)


class CausalTransformer(nn.Module):
    """Self-attention over the events so far: Kang & McAuley 2018, "SASRec", in the form of later transformers.

    Args:
        dim: D.
        config: layers, heads, dropout.
        max_events: the most of a row, each of which has a position of its own.
        has_times: whether the time between events is known.
    """

    def __init__(self, dim: int, config: HistoryConfig, max_events: int, has_times: bool) -> None:
        super().__init__()
        self.input = _Events(dim, config.dropout, max_events, has_times)
        self.start_D = nn.Parameter(torch.randn(dim) * 0.02)
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.layers, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.gap = _time_embedding(dim, has_times)

    def forward(self, item_UD: Tensor, history: EventHistories, one_query_a_row: bool) -> Tensor:
        """Items by number -> [Q, D]."""
        event_HD = self.input(item_UD[history.item], history)
        state_SD = self.start_D.expand(history.position.shape[0], -1).index_copy(0, history.state_of_event, event_HD)
        for block in self.blocks:
            state_SD = block(state_SD, history)
        state_QD = self.norm(state_SD[history.state])
        if self.gap is not None and history.query_gap is not None:
            state_QD = state_QD + self.gap(time_bucket(history.query_gap))
        return state_QD


class _Events(nn.Module):
    """Events as the layers want them: scaled, with what tells their position and the time before them."""

    def __init__(self, dim: int, dropout: float, max_events: int, has_times: bool) -> None:
        super().__init__()
        self.position = nn.Embedding(max_events, dim)
        nn.init.normal_(self.position.weight, std=0.02)
        self.gap = _time_embedding(dim, has_times)
        self.dropout = nn.Dropout(dropout)

    def forward(self, event_HD: Tensor, history: EventHistories) -> Tensor:
        place_H = history.position[history.state_of_event] - 1
        event_HD = event_HD * (0.5 * math.sqrt(event_HD.shape[1])) + self.position(place_H)
        if self.gap is not None and history.gap is not None:
            event_HD = event_HD + self.gap(time_bucket(history.gap))
        return self.dropout(event_HD)


def _after_events(value: Tensor, history: EventHistories) -> Tensor:
    """Values of events as those of the states after them, zeros before the first: [H, ...] -> [S, ...]."""
    # of len(), torch.export would make a constant
    states = value.new_zeros(history.position.shape[0], *value.shape[1:])
    return states.index_copy(0, history.state_of_event, value)


def _time_embedding(dim: int, has_times: bool) -> nn.Embedding | None:
    """Begins at zero, so that at first time says nothing."""
    if not has_times:
        return None
    embedding = nn.Embedding(TIME_BUCKETS, dim)
    nn.init.zeros_(embedding.weight)
    return embedding


def time_bucket(seconds: Tensor) -> Tensor:
    """0 for no time, then 1 + floor(log2(seconds)), up to the last bucket; int64 of the same shape."""
    return (1 + torch.log2(seconds.clamp(min=0.5).double()).floor().long()).clamp(max=TIME_BUCKETS - 1)
