"""How much one training step holds and computes on a rank, counted on a batch of the prepared data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from trainer.config import TrainConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.batch import RetrievalBatch
from trainer.data.row_groups import RowGroups
from trainer.data.schema import Feature, Schema
from trainer.model.two_tower import dense_parameters, make_model

ROWS_THROUGH_TOWERS = 1024
"""At most; what they compute is proportional to rows."""


@dataclass(frozen=True)
class StepSizes:
    """Of the first rank's share of a step. Those that data decides are another rank's but by chance."""

    queries: int
    positives: int
    candidates: int
    negatives: int
    """Candidates that are drawn as negatives, and so have logits."""
    items: int
    slots: int
    """Bags of every looked-up feature."""
    bags: Mapping[str, Mapping[int, int]]
    """How many bags have how many ids, by feature: {ids of a bag: bags}."""
    is_weighted: bool
    tells_users: bool
    """Whether ranks tell one another who has chosen what."""
    interests: int
    batch_bytes: int
    dense_parameters: tuple[int, ...]
    """Numbers in each."""
    tower_flops: float
    """Forward."""
    tower_backward_flops: float
    activation_bytes: float
    """Kept by the towers for their backward pass."""

    def values(self, feature: str) -> int:
        """Ids looked up."""
        return sum(ids * bags for ids, bags in self.bags[feature].items())

    def parts(self, feature: str, ranks: int) -> float:
        """Parts into which its bags fall, in expectation, where each id lies on any of the ranks."""
        return sum(bags * ranks * (1 - (1 - 1 / ranks) ** ids) for ids, bags in self.bags[feature].items())


def step_sizes(
    config: TrainConfig, schema: Schema, features: Sequence[Feature], assembler: BatchAssembler, files: RowGroups,
    batch_size_per_rank: int, ranks: int, all_distinct: bool,
) -> StepSizes:  # fmt: skip
    """Lays out a batch as a training does, and counts.

    Args:
        config: of the training.
        schema: of the data.
        features: chosen from it.
        assembler: of the batch.
        files: of training rows.
        batch_size_per_rank: rows of the batch; of data that has fewer, rows come again.
        ranks: in all.
        all_distinct: whether no item of a batch is taken to be there twice, as of a catalogue larger than the data's.
    """
    rows, layout = _rows(files, batch_size_per_rank), config.data.layout
    drawn = assembler.uniform_rows(0, 0, ranks)
    batch = assembler.training_batch(rows, layout, 0, drawn)
    few = assembler.training_batch(rows.slice(0, ROWS_THROUGH_TOWERS), layout, 0, drawn[:ROWS_THROUGH_TOWERS])
    scale = max(1.0, batch_size_per_rank / ROWS_THROUGH_TOWERS)
    forward, backward, kept, dense = _towers(config, schema, features, few)
    keys, lengths = batch.sparse_features.keys(), batch.sparse_features.lengths().view(-1, batch.slots)
    of_items = {feature.name for feature in features if feature.side == "candidate"}
    positives, candidates, items = len(batch.positive), batch.num_candidates, len(batch.item_row)
    bags = {key: Counter(ids.tolist()) for key, ids in zip(keys, lengths, strict=True)}
    uniform = int(batch.uniform_count.count_nonzero())
    if all_distinct:
        others = items - candidates if batch.history is None else len(batch.history.item)
        candidates, uniform = positives + len(drawn), len(drawn)
        for name in of_items & bags.keys():
            bags[name] = Counter({n: round(count * (candidates + others) / items) for n, count in bags[name].items()})
        items = candidates + others
    return StepSizes(
        queries=len(batch.query_dense) if batch.query_dense is not None else 0,
        positives=positives,
        candidates=candidates,
        negatives=candidates if config.model.loss.in_batch_negatives else uniform,
        items=items,
        slots=max(batch.slots, items),
        bags=bags,
        is_weighted=batch.sparse_features.weights_or_none() is not None,
        tells_users=batch.user is not None,
        interests=config.model.history.interests,
        batch_bytes=_bytes(batch),
        dense_parameters=dense,
        tower_flops=forward * scale,
        tower_backward_flops=backward * scale,
        activation_bytes=kept * scale,
    )


def with_rows(schema: Schema, rows: Mapping[str, int]) -> Schema:
    """The schema with other numbers of rows in some tables."""
    changed = (replace(f, num_embeddings=rows.get(f.table, f.num_embeddings)) for f in schema.features)
    return replace(schema, features=tuple(changed))


def _rows(files: RowGroups, wanted: int) -> pa.Table:
    parts, have = [], 0
    for group in range(len(files.sizes)):
        parts.append(files.read(group).slice(0, wanted - have))
        have += len(parts[-1])
        if have >= wanted:
            break
    there = pa.concat_tables(parts)
    return there if have >= wanted else there.take(pa.array(np.arange(wanted) % have))


class _Zeros(nn.Module):
    """Embeddings for towers that are only to be counted."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__()
        self._dims = dims

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        keys = features.keys()
        dims = [self._dims[key] for key in keys]
        return KeyedTensor(keys, dims, torch.zeros(features.stride(), sum(dims), requires_grad=True))


def _towers(
    config: TrainConfig, schema: Schema, features: Sequence[Feature], batch: RetrievalBatch
) -> tuple[float, float, float, tuple[int, ...]]:
    """FLOPs forward and backward, bytes kept between them, and the numbers in each dense parameter."""
    model = make_model(schema, features, config)
    tables = model.embeddings.embedding_bag_configs()
    model.embeddings = _Zeros({name: table.embedding_dim for table in tables for name in table.feature_names})
    dense = dense_parameters(model)
    own = {parameter.untyped_storage().data_ptr() for parameter in dense.values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with FlopCounterMode(display=False) as forward:
            query, item = model(batch)
        total = sum(part.sum() for part in (query, item) if part is not None)
    with FlopCounterMode(display=False) as backward:
        total.backward()
    numbers = tuple(parameter.numel() for parameter in dense.values())
    return forward.get_total_flops(), backward.get_total_flops(), sum(kept.values()), numbers


def _bytes(part: Any) -> int:
    """Of all tensors in a batch."""
    if isinstance(part, Tensor):
        return part.nbytes
    if isinstance(part, KeyedJaggedTensor):
        weights = part.weights_or_none()
        return part.values().nbytes + part.lengths().nbytes + (0 if weights is None else weights.nbytes)
    if isinstance(part, RetrievalBatch) or hasattr(part, "__dataclass_fields__"):
        return sum(_bytes(getattr(part, entry.name)) for entry in fields(part))
    return 0
