"""The query side alone, as torch.export takes it: whole tables, padded lists, and a batch of any size."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.batch import EventHistories
from trainer.data.schema import HISTORY_AGE, Feature
from trainer.model.tower import Tower

# B queries, L values of a list, H events of a history, P = H + 1 states, R rows, D embedding dim

LENGTH, WEIGHT = ".length", ".weight"
"""What the inputs with the lengths and the weights of a list have after its name."""


class Table(nn.Module):
    """Rows of a table.

    Args:
        rows_RD: float32; or int8 beside a scale.
        scale_R: float32, by which int8 rows are multiplied.
    """

    def __init__(self, rows_RD: Tensor, scale_R: Tensor | None = None) -> None:
        super().__init__()
        self.rows_RD: Tensor
        self.scale_R: Tensor | None
        self.register_buffer("rows_RD", rows_RD)
        self.register_buffer("scale_R", scale_R)

    def forward(self, row: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., D]."""
        found = F.embedding(row, self.rows_RD)  # which refuses numbers below 0
        return found if self.scale_R is None else found.float() * self.scale_R[row][..., None]


def int8_rows(rows_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as int8 and the scale of each: no number is off by more than 1/254 of its row's largest."""
    scale_R = rows_RD.abs().amax(dim=1) / 127
    return (rows_RD / scale_R.clamp(min=1e-38)[:, None]).round().to(torch.int8), scale_R


class QueryProgram(nn.Module):
    """Query embeddings from table rows and numbers; equal to those of TwoTower.

    Args:
        features: of the query, in the tower's order.
        tables: by name. A feature that is looked up in none of them comes as its row.
        items: embeddings of all items, the unknown one first, where an encoder sees them; or None.
        tower: trained.
        encoder: of the history, trained; or None.
        has_ages: whether the encoder is told how long ago events were.
    """

    def __init__(
        self, features: Sequence[Feature], tables: Mapping[str, Table], items: Table | None, tower: Tower,
        encoder: nn.Module | None, has_ages: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tables, self._number = nn.ModuleList(tables.values()), {name: k for k, name in enumerate(tables)}
        self.items, self.tower, self.encoder = items, tower, encoder
        self._features, self._has_ages = tuple(features), has_ages

    def example(self) -> dict[str, Tensor]:
        """Inputs of three queries, which say nothing: what `forward` is traced with."""
        B, inputs = 3, dict[str, Tensor]()
        for feature in self._features:
            if not feature.is_sparse:
                shape = (B, feature.dim) if feature.kind == "vector" else (B,)
                inputs[feature.name] = torch.zeros(shape)
            elif not self._is_encoded(feature) and feature.table not in self._number:
                inputs[feature.name] = torch.zeros(B, self.tower.widths[feature.name])
            elif feature.is_list:
                inputs[feature.name] = torch.zeros(B, feature.length, dtype=torch.int64)
                inputs[feature.name + LENGTH] = torch.zeros(B, dtype=torch.int64)
                if feature.weighted:
                    inputs[feature.name + WEIGHT] = torch.zeros(B, feature.length)
                if feature.kind == "history" and self._has_ages:
                    inputs[HISTORY_AGE] = torch.zeros(B, feature.length, dtype=torch.int64)
            else:
                inputs[feature.name] = torch.zeros(B, dtype=torch.int64)
        return inputs

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Inputs by name -> float32 [B, D], or [B, K, D] of several interests.

        Of a list, NAME is int64 [B, L] and NAME.length int64 [B]; what lies beyond is not looked at. Of a single value,
        NAME is int64 [B], of a table that is not inside float32 [B, D], of a numeric float32 [B], NaN where missing.
        """
        embedded = {f.name: self._embedded(f, inputs) for f in self._features if f.is_sparse}
        dense = [inputs[f.name].reshape(-1, f.dim) for f in self._features if not f.is_sparse]
        B = next(iter(inputs.values())).shape[0]
        return self.tower(embedded, torch.cat(dense, dim=1) if dense else torch.zeros(B, 0))

    def _is_encoded(self, feature: Feature) -> bool:
        return feature.kind == "history" and self.encoder is not None

    def _embedded(self, feature: Feature, inputs: Mapping[str, Tensor]) -> Tensor:
        value = inputs[feature.name]
        if self._is_encoded(feature):
            assert self.items is not None
            return self._encode(self.items(value), inputs[feature.name + LENGTH], inputs)
        if feature.table not in self._number:
            return value
        embedded = self.tables[self._number[feature.table]](value)
        if not feature.is_list:
            return embedded
        length_B = inputs[feature.name + LENGTH]
        is_there_BL = torch.arange(value.shape[1]) < length_B[:, None]
        counted_BL = inputs[feature.name + WEIGHT] if feature.weighted else 1 / length_B.clamp(min=1)[:, None].float()
        return torch.einsum("bl,bld->bd", torch.where(is_there_BL, counted_BL, 0.0), embedded)

    def _encode(self, event_BHD: Tensor, length_B: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """All rows padded to H events: what comes after a query's last is seen by no state that is asked for."""
        assert self.encoder is not None
        B, H = event_BHD.shape[:2]
        P, row_B = H + 1, torch.arange(B)
        state_BP = torch.arange(B * P).reshape(B, P)
        history = EventHistories(
            item=torch.arange(B * H),
            length=torch.full((B,), H),
            state_of_event=state_BP[:, 1:].reshape(-1),
            position=torch.arange(P).expand(B, P).reshape(-1),
            place=state_BP.reshape(-1),
            stretches=[(B, P, B * P)],
            row=row_B,
            state=row_B * P + length_B,
        )
        if self._has_ages:
            age_BH, is_there_BH = inputs[HISTORY_AGE], torch.arange(H) < length_B[:, None]
            gap_BH = torch.where(is_there_BH, torch.cat([age_BH[:, :1], age_BH[:, :-1]], dim=1) - age_BH, 0)
            history.gap = gap_BH.reshape(-1)
            last_B = age_BH.gather(1, (length_B - 1).clamp(min=0)[:, None])[:, 0]
            history.query_gap = torch.where(length_B > 0, last_B, 0)
        return self.encoder(event_BHD.flatten(0, 1), history, False)


def exported(program: QueryProgram) -> torch.export.ExportedProgram:
    """The program without this package, for batches of any size."""
    inputs = program.example()
    batch = torch.export.Dim("batch")
    sizes = {name: {0: batch} for name in inputs}
    return torch.export.export(program.eval(), (inputs,), dynamic_shapes=(sizes,))
