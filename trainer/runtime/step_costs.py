"""What a training step takes on a rank: bytes held, bytes sent and seconds, by arithmetic over what it is made of.

Ids are taken to be spread evenly over the ranks that hold a table, and nothing to go on beside anything else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.config import ClusterConfig
from trainer.data.prefetch import DEPTH
from trainer.model.loss import LOGITS_ON_A_CPU
from trainer.runtime.step_sizes import StepSizes
from trainer.runtime.training_loss import LOGITS_ON_A_GPU

# W ranks, L of them on a machine, S slots, N candidates over all ranks, D embedding dim

HALF, FLOAT, DOUBLE, LONG, INT = 2, 4, 8, 8, 4
CACHED = 0.2
"""Share of the rows of a table in the host's memory that the GPU caches: TorchRec's default."""
_PASSES = 9
"""How often the loss reads or writes a logit."""


@dataclass(frozen=True)
class PlacedTable:
    """Where the planner has put a table."""

    name: str
    features: Sequence[str]
    sharding: str
    kernel: str
    dim: int
    rows_of_rank: Sequence[int]
    bytes_of_row: int
    state_of_row: int
    """Bytes of the optimizer's state for a row."""

    @property
    def is_split(self) -> bool:
        """Whether every rank holds some of its rows."""
        return self.sharding == "row_wise"

    @property
    def in_host_memory(self) -> bool:
        """Whether a GPU only caches it."""
        return "uvm" in self.kernel

    def weights(self, rank: int) -> float:
        """Bytes of rows on a rank's device."""
        return self._on_device(rank) * self.bytes_of_row

    def state(self, rank: int) -> float:
        """Bytes of the optimizer's state there."""
        return self._on_device(rank) * self.state_of_row

    def on_host(self, rank: int) -> int:
        """Bytes of a GPU's table in the host's memory."""
        return self.rows_of_rank[rank] * (self.bytes_of_row + self.state_of_row) if self.in_host_memory else 0

    def _on_device(self, rank: int) -> float:
        return self.rows_of_rank[rank] * (CACHED if self.in_host_memory else 1)


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind in a step."""

    what: str
    kind: Literal["gather", "all_to_all"]
    """gather: what each rank has goes to all, or is summed up from all, along rings; all_to_all: to each its own."""
    sent: float
    """Bytes that a rank sends: the one that sends most."""
    is_exact: bool = True
    """Whether all of it follows from the sizes of the batch; otherwise from which rows it looks up, too."""
    collectives: int = 1

    def seconds(self, cluster: ClusterConfig) -> float:
        """Whichever takes longer of the exchange within machines and that between them."""
        local = cluster.ranks_per_node
        ranks = cluster.nodes * local
        if ranks == 1:
            return 0.0
        others = self.sent * (ranks - local) / (ranks - 1)
        # what machines gather from one another enters each of them once, over the links of all its ranks
        within, between = (self.sent, others / local) if self.kind == "gather" else (self.sent - others, others)
        slower = max(within / cluster.intra_gb_s, between / cluster.inter_gb_s) / 1e9
        return slower / cluster.efficiency + self.collectives * cluster.collective_us / 1e6


def exchanges(
    sizes: StepSizes, tables: Sequence[PlacedTable], ranks: int, dim: int, exchanged: str, device: str
) -> list[Exchange]:
    """What a rank sends in a step, in this order.

    Args:
        sizes: of the batch, the same on all ranks.
        tables: placed.
        ranks: W.
        dim: D.
        exchanged: as what embeddings and their gradients are sent.
        device: cuda, where ranks also tell one another which layers they have used, or cpu.
    """
    if ranks == 1:
        return []
    number = HALF if exchanged == "float16" else FLOAT
    others, candidates = ranks - 1, sizes.negatives
    found = [Exchange("sizes of the batches", "gather", 5 * DOUBLE * others)]
    of_value = LONG + (FLOAT if sizes.is_weighted else 0)
    split = [table for table in tables if table.is_split]
    whole = [table for table in tables if not table.is_split]
    per_value = 4 if sizes.is_weighted else 3  # exchanges of a group of tables: sizes, lengths, ids and their weights
    if split:
        features = [name for table in split for name in table.features]
        parts = number * _parts(sizes, split, ranks) * others / ranks
        values = sum(sizes.values(name) for name in features)
        told = LONG * per_value * others + INT * len(features) * sizes.slots * others
        found += [
            Exchange("lengths of lists of ids, row-wise", "all_to_all", told, collectives=2),
            Exchange("ids, row-wise", "all_to_all", of_value * values * others / ranks, False, per_value - 2),
            Exchange("embeddings, row-wise", "all_to_all", parts, False),
            Exchange("gradients of embeddings, row-wise", "all_to_all", parts, False),
        ]
    if whole:
        numbers = _by_rank(whole, lambda table: len(table.features), ranks)
        values_of = _by_rank(whole, lambda table: sum(sizes.values(name) for name in table.features), ranks)
        widths_of = _by_rank(whole, lambda table: table.dim * len(table.features), ranks)
        told = LONG * per_value * others + INT * sizes.slots * _most_of_others(numbers)
        back = number * sizes.slots * _most_of_others(widths_of)
        found += [
            Exchange("lengths of lists of ids, table-wise", "all_to_all", told, collectives=2),
            Exchange("ids, table-wise", "all_to_all", of_value * _most_of_others(values_of), False, per_value - 2),
            Exchange("embeddings, table-wise", "all_to_all", number * sizes.slots * max(widths_of) * others),
            Exchange("gradients of embeddings, table-wise", "all_to_all", back),
        ]
    found += [
        Exchange("rows and counts of candidates", "gather", 4 * DOUBLE * candidates * others),
        Exchange("embeddings of candidates", "gather", number * dim * candidates * others),
        Exchange("gradients of candidates", "gather", number * dim * candidates * others),
    ]
    if sizes.tells_users:
        found.append(Exchange("who has chosen what", "gather", 2 * LONG * sizes.positives * others))
    if sizes.dense_parameters:
        of_layers = sum(sizes.dense_parameters) * FLOAT + len(sizes.dense_parameters) * INT * (device == "cuda")
        found.append(Exchange("gradients of the layers", "gather", 2 * of_layers * others / ranks, True, 2))
    return [*found, Exchange("whether all is finite", "gather", others)]


def memory(
    sizes: StepSizes, tables: Sequence[PlacedTable], ranks: int, dim: int, device: str, validated: int
) -> dict[str, float]:
    """Bytes on the device of the rank that holds most, by what they are for, as if all were there at once.

    Args:
        sizes: of a step.
        tables: placed.
        ranks: of the cluster.
        dim: D.
        device: cuda or cpu.
        validated: items that a validation ranks, between steps; 0 without any.
    """
    rank = max(range(ranks), key=lambda r: sum(table.weights(r) + table.state(r) for table in tables))
    here = [table for table in tables if table.rows_of_rank[rank]]
    everyone, on_gpu = ranks * sizes.negatives, device == "cuda"
    if sizes.negatives < sizes.candidates:
        everyone += sizes.candidates  # which are this rank's alone
    bags = sum(sizes.slots * table.dim * len(table.features) for table in here)
    received = sum(sizes.slots * table.dim * len(table.features) for table in tables)
    parts = _parts(sizes, [table for table in tables if table.is_split], ranks) if ranks > 1 else 0.0
    logits = max(LOGITS_ON_A_GPU if on_gpu else LOGITS_ON_A_CPU, everyone)
    of_a_step = {
        # bags of all ranks, their gradient; parts sent and received; bags, side by side, and their gradient
        "looked-up embeddings": FLOAT * (2.0 * (ranks * bags) + 2.0 * parts + 3.0 * received),
        "towers, kept and their gradients": 2.0 * sizes.activation_bytes,
        # gathered, their gradient, the same times the loss's, and a chunk of logits
        "candidates and logits": FLOAT
        * (everyone * (3 * dim + 16) + 3 * sizes.queries * dim * sizes.interests + logits)
        + 2.0 * LONG * sizes.positives * ranks,
    }
    catalogue = 2.0 * FLOAT * dim * validated / ranks  # as embedded, and in the order in which it is ranked
    return {
        "rows of tables": sum(table.weights(rank) for table in tables),
        "their optimizer's state": sum(table.state(rank) for table in tables),
        "layers, gradients, AdamW": 4.0 * FLOAT * sum(sizes.dense_parameters),
        # in hand, on its way, copied, and on a CPU those read ahead
        "batches": (3.0 if on_gpu else DEPTH + 4.0) * sizes.batch_bytes,
        **of_a_step,
        "what the catalogue takes more in a validation": max(0.0, catalogue - sum(of_a_step.values())),
    }


def seconds(
    sizes: StepSizes, tables: Sequence[PlacedTable], sent: Sequence[Exchange], cluster: ClusterConfig, dim: int
) -> dict[str, float]:
    """Of each part of a step, one after another."""
    ranks = cluster.nodes * cluster.ranks_per_node
    logits = sizes.queries * ranks * sizes.negatives  # as if no two ranks had an item in common
    bags = sum(sizes.slots * t.dim * len(t.features) for t in tables) * FLOAT * (ranks if ranks > 1 else 1)
    device = host = 0.0
    for table in tables:
        rows = sum(sizes.values(name) for name in table.features) * (table.bytes_of_row + table.state_of_row)
        device += rows
        host += rows * (1 - CACHED) if table.in_host_memory else 0.0
    flops, memory = (rate * cluster.efficiency for rate in (cluster.tflops * 1e12, cluster.memory_gb_s * 1e9))
    link = cluster.host_gb_s * 1e9 * cluster.efficiency
    layers = sum(sizes.dense_parameters) * FLOAT
    return {
        "exchange of ids": _of(sent, ("ids", "lengths", "sizes"), cluster),
        "lookup": (device + bags) / memory + host / link,
        "exchange of embeddings": _of(sent, ("embeddings, ",), cluster),
        "towers": sizes.tower_flops / flops + 2 * sizes.activation_bytes / memory,
        "exchange of candidates": _of(sent, ("rows and", "embeddings of", "who"), cluster),
        "loss": 6.0 * logits * dim / flops + _PASSES * FLOAT * logits / memory,
        "backward of the towers": sizes.tower_backward_flops / flops + 3 * sizes.activation_bytes / memory,
        "exchange of gradients": _of(sent, ("gradients", "whether"), cluster),
        "update": (2 * device + bags + 7 * layers) / memory + 2 * host / link,
        "Python, and starts of kernels": cluster.fixed_ms / 1e3,
    }


def _of(sent: Sequence[Exchange], begins: tuple[str, ...], cluster: ClusterConfig) -> float:
    return sum(exchange.seconds(cluster) for exchange in sent if exchange.what.startswith(begins))


def _parts(sizes: StepSizes, tables: Sequence[PlacedTable], ranks: int) -> float:
    """Numbers in the parts of all bags of a rank, of tables that are spread by rows."""
    return sum(table.dim * sizes.parts(name, ranks) for table in tables for name in table.features)


def _by_rank(tables: Sequence[PlacedTable], of: Callable[[PlacedTable], int], ranks: int) -> list[int]:
    """What each rank has of tables that lie on one rank each."""
    return [sum(of(table) for table in tables if table.rows_of_rank[rank]) for rank in range(ranks)]


def _most_of_others(by_rank: Sequence[int]) -> int:
    """What the rank with the least of its own sends to the others."""
    return sum(by_rank) - min(by_rank)
