"""One layer of a causal transformer over rows of different lengths."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.batch import EventHistories
from trainer.model.padding import pad_rows, unpad_rows

# S states of all rows; n rows of a stretch, P states of its longest, D embedding dim, h half the width of a head

ROTARY_BASE = 1000.0
"""The slowest pair of a head turns once in some 6,000 events; histories are shorter than texts."""


class Block(nn.Module):
    """Attention, then a gated MLP, each added to what it was given the norm of.

    Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture" (the norm comes first); Su et al. 2021,
    "RoFormer", equation 34 (queries and keys turn with their position, so that attention knows how long ago an event
    was); Shazeer 2020, "GLU Variants Improve Transformer", equation 6 (SwiGLU).

    Args:
        dim: D.
        heads: of the attention; a divisor of D.
        layers: of the whole transformer, for the scale at which this one begins.
        dropout: share of what it adds that training sets to zero.
    """

    def __init__(self, dim: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        hidden = 8 * dim // 3  # as many weights as a plain MLP of width 4 D
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value, self.attended = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.gate, self.down = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.query_key_value, self.gate):
            nn.init.normal_(layer.weight, std=dim**-0.5)
        for layer in (self.attended, self.down):  # so that the sum over all layers begins as wide at any depth
            nn.init.normal_(layer.weight, std=(2 * layers * layer.in_features) ** -0.5)
        for layer in (self.gate, self.down):
            nn.init.zeros_(layer.bias)

    def forward(self, state_SD: Tensor, history: EventHistories) -> Tensor:
        """[S, D] -> [S, D]; a state sees those before it in its row."""
        parts = pad_rows(self.query_key_value(self.attention_norm(state_SD)), history)
        attended_SD = unpad_rows([self._attend(part) for part in parts], history)
        state_SD = state_SD + self.dropout(self.attended(attended_SD))
        value, gate = self.gate(self.mlp_norm(state_SD)).chunk(2, dim=1)
        return state_SD + self.dropout(self.down(F.silu(gate) * value))

    def _attend(self, query_key_value: Tensor) -> Tensor:
        """[n, P, 3 D] -> [n, P, D]; what pads a row stands at its end, where no state of it looks."""
        n, P, width = query_key_value.shape
        query, key, value = query_key_value.view(n, P, 3, self.heads, width // 3 // self.heads).permute(2, 0, 3, 1, 4)
        cos_Ph, sin_Ph = _angles(P, query.shape[-1] // 2, query.device)
        query, key = _rotate(query, cos_Ph, sin_Ph), _rotate(key, cos_Ph, sin_Ph)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return attended.transpose(1, 2).reshape(n, P, width // 3)


def _angles(positions: int, pairs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle by which each position turns each pair of numbers, both float32 [P, h].

    By float64: what float32 makes of a power, which differs on a GPU, would grow with the position.
    """
    speed_h = ROTARY_BASE ** (-torch.arange(pairs, device=device, dtype=torch.float64) / pairs)
    angle_Ph = torch.arange(positions, device=device)[:, None] * speed_h
    return angle_Ph.cos().float(), angle_Ph.sin().float()


def _rotate(value: Tensor, cos_Ph: Tensor, sin_Ph: Tensor) -> Tensor:
    """[n, heads, P, 2 h] turned; a pair are the numbers at i and h + i."""
    first, second = value.chunk(2, dim=-1)
    return torch.cat([first * cos_Ph - second * sin_Ph, second * cos_Ph + first * sin_Ph], dim=-1)
