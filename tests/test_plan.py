"""trainer.plan against what training does on two ranks, and against arithmetic by hand."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from tests.prepared import ITEMS, USERS
from tests.ranks import RankPool
from tests.training import BATCH, STREAMS, config, sharded_model, trained
from trainer.config import ClusterConfig, PlanConfig, TrainConfig
from trainer.errors import UserError
from trainer.runtime import gather
from trainer.runtime.plan_text import told
from trainer.runtime.planning import ClusterPlan, Planning
from trainer.runtime.processes import Processes
from trainer.runtime.sharding import sharded_rows
from trainer.runtime.step_costs import Exchange, PlacedTable, exchanges
from trainer.runtime.step_sizes import StepSizes

TABLES = {"user_id": USERS + 1, "hour": 25, "item_id": ITEMS + 1, "genres": 6}


def planned_for(train: TrainConfig, folder: Path, **cluster: Any) -> PlanConfig:
    """Those of the tests' training, on two CPU ranks if nothing else is said."""
    train.run.dir = "none"
    train.data.dir, train.data.global_batch_size, train.data.streams = str(folder), BATCH, STREAMS
    sections = {name: getattr(train, name) for name in ("data", "model", "optimizer", "sharding", "run")}
    there = {"nodes": 1, "ranks_per_node": 2, "device": "cpu"} | cluster
    return PlanConfig(**sections, plan=ClusterConfig(**there))


def plan(found: PlanConfig) -> ClusterPlan:
    return Planning(found).plan(found)


class Sent(TorchDispatchMode):
    """Counts what this rank sends to others, as (operation, bytes); what gather.py does is a gather."""

    def __init__(self, ranks: int, rank: int) -> None:
        super().__init__()
        self.ranks, self.rank = ranks, rank
        self.found: list[tuple[str, float]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "c10d":
            kind, others = op._schema.name.removeprefix("c10d::"), self.ranks - 1
            if kind == "_allgather_base_":
                self.found.append((kind, args[1].nbytes * others))
            elif kind == "alltoall_base_":
                splits = args[4] or [len(args[1]) // self.ranks] * self.ranks
                size = args[1].nbytes * (1 - splits[self.rank] / max(1, sum(splits)))
                self.found.append(("gather" if called_by() == gather.__file__ else kind, size))
            else:
                assert kind == "allgather_", kind  # the test tells itself the loss
        return op(*args, **(kwargs or {}))


def called_by() -> str:
    """The innermost of the trainer's files on the stack."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(str(Path(gather.__file__).parent)):
        frame = frame.f_back
    return frame.f_code.co_filename if frame else ""


def sent_in_a_step(processes: Processes, train: TrainConfig, folder: Path) -> tuple[list[tuple[str, float]], Any]:
    train.run.log_every = 10**9  # a step that is not logged
    model, _ = trained(processes, train, folder, 2)  # in the second, layers' gradients are put into their last order
    batches = []
    model.register_forward_pre_hook(lambda module, inputs: batches.append(inputs[0]))
    with Sent(processes.world_size, processes.rank) as counted:
        trained(processes, train, folder, 1, start=2, model=model)
    batch = batches[0]
    ids = {name: [bag.tolist() for bag in of_feature.to_dense()]
           for name, of_feature in batch.sparse_features.to_dict().items()}  # fmt: skip
    return counted.found, (batch.slots, batch.num_shared, len(batch.positive), ids)


@pytest.mark.parametrize(
    "case", ["row_wise", "both", "table_wise", "weighted", "user", "half", "half table_wise", "uniform"]
)
def test_bytes_are_those_that_two_ranks_send(ranks: RankPool, prepared: Path, case: str) -> None:
    """To the byte, but for what is looked up in row-wise tables: within a third of what an even spread gives."""
    train = config("table_wise" if "table_wise" in case else "row_wise")
    train.sharding.exchange = "float16" if "half" in case else "float32"
    if case == "row_wise":
        train.sharding.categoricals = "row_wise"
    if case == "weighted":
        train.model.candidate.features = [*(train.model.candidate.features or []), "words"]
        train.sharding.tables["words"] = "row_wise"
    if case == "uniform":
        loss = train.model.loss
        loss.in_batch_negatives, loss.uniform_negatives, loss.log_q = False, 12, "none"
    if case == "user":
        train.model.loss.remove_known_positives = "user"
    found = plan(planned_for(train, prepared))
    several = ranks.run(2, sent_in_a_step, train, prepared)
    ids = [sizes[3] for _, sizes in several]
    for rank, (counted, (slots, _, positives, _)) in enumerate(several):
        most = max(sizes[1] for _, sizes in several)
        bags = {name: Counter(map(len, of_feature)) for name, of_feature in ids[rank].items()}
        sizes = replace(found.sizes, slots=slots, negatives=most, positives=positives, bags=bags)
        formulas = exchanges(sizes, found.tables, 2, 8, train.sharding.exchange, "cpu")
        of_kind = {"all_to_all": 0.0, "gather": 0.0}
        for operation, size in counted:
            of_kind["all_to_all" if operation == "alltoall_base_" else "gather"] += size
        ahead = formulas[0].sent  # sizes of the batch after it
        assert of_kind["gather"] - ahead == sum(e.sent for e in formulas if e.kind == "gather"), (counted, formulas)
        at_home, away = (
            sent_table_wise(found.tables, sizes, of_rank, 2 if "half" in case else 4) for of_rank in (rank, 1 - rank)
        )
        planned = [e.sent for e in formulas if "table-wise" in e.what]
        assert planned == [max(each) for each in zip(at_home, away, strict=True)]
        by_hand = sent_row_wise(found.tables, ids, rank, 12 if case == "weighted" else 8, 2 if "half" in case else 4)
        split = [e for e in formulas if "row-wise" in e.what]
        told = sum(e.sent for e in split if e.is_exact)
        assert of_kind["all_to_all"] == sum(at_home) + told + sum(by_hand)
        assert by_hand == [pytest.approx(e.sent, rel=1 / 3) for e in split if not e.is_exact]


def sent_row_wise(tables: list[PlacedTable], ids: list[Any], rank: int, of_id: int, number: int) -> list[float]:
    """Of tables spread over two ranks: ids, embeddings and their gradients, by hand."""
    asked, parts = 0, {rank: 0, 1 - rank: 0}
    split = [(table, name) for table in tables if table.is_split for name in table.features]
    for table, name in split:
        for asking in (rank, 1 - rank):
            elsewhere = [[id // table.rows_of_rank[0] for id in bag].count(1 - asking) for bag in ids[asking][name]]
            asked += of_id * sum(elsewhere) * (asking == rank)
            parts[asking] += number * table.dim * sum(map(bool, elsewhere))
    return [asked, parts[1 - rank], parts[rank]] if split else []


def sent_table_wise(tables: list[PlacedTable], sizes: StepSizes, rank: int, number: int) -> list[float]:
    """Of tables that lie on one of two ranks each: lengths, ids, embeddings and their gradients, by hand."""
    whole = [table for table in tables if not table.is_split]
    own = [table for table in whole if table.rows_of_rank[rank]]
    other = [(table, name) for table in whole if table not in own for name in table.features]
    if not whole:
        return []
    return [
        8 * (4 if sizes.is_weighted else 3) + sum(4 * sizes.slots for _ in other),
        sum((12 if sizes.is_weighted else 8) * sizes.values(name) for _, name in other),
        sum(number * sizes.slots * table.dim * len(table.features) for table in own),
        sum(number * sizes.slots * table.dim for table, _ in other),
    ]


def test_the_sharding_is_that_of_a_training(ranks: RankPool, prepared: Path) -> None:
    train = config("row_wise")
    placed = plan(planned_for(train, prepared)).tables
    assert {table.name: sum(table.rows_of_rank) for table in placed} == TABLES
    for rank, held in enumerate(ranks.run(2, rows_held, train)):
        assert held == {table.name: (table.rows_of_rank[rank], TABLES[table.name])
                        for table in placed if table.rows_of_rank[rank]}  # fmt: skip


def rows_held(processes: Processes, train: TrainConfig) -> dict[str, tuple[int, int]]:
    held = sharded_rows(sharded_model(processes, train))
    return {table: rows for table, rows in held.items() if rows[0]}


@pytest.mark.parametrize(("dtype", "number"), [("float32", 4), ("float16", 2)])
def test_memory_of_tables_and_layers_by_hand(prepared: Path, dtype: str, number: int) -> None:
    train = config("row_wise")
    train.model.table_dtype = dtype
    found = plan(planned_for(train, prepared, ranks_per_node=1))
    rows = USERS + 1 + ITEMS + 1
    assert found.memory["rows of tables"] == number * (rows * 8 + (25 + 6) * 4)
    assert found.memory["their optimizer's state"] == 4 * (rows + 25 + 6)
    # query: user 8, age 1, hour 4, history 8; candidate: item 8, genres 4, price 1, text 4; 16 hidden, 8 out
    layers = (21 + 1) * 16 + (17 + 1) * 16 + 2 * (16 + 1) * 8
    assert sum(found.sizes.dense_parameters) == layers
    assert found.memory["layers, gradients, AdamW"] == 16 * layers
    assert found.sent == [] and found.fits
    assert found.sizes.tower_flops == 2 * (21 * 16 + 16 * 8) * BATCH + 2 * (17 * 16 + 16 * 8) * found.sizes.items


def test_memory_of_a_validation_by_hand(prepared: Path) -> None:
    """Embeddings of 8 numbers, held twice by two ranks, between steps: so they take what a step has left, and more."""
    of_a_step = ("looked-up embeddings", "towers, kept and their gradients", "candidates and logits")
    beyond = "what the catalogue takes more in a validation"
    cluster = planned_for(config("row_wise"), prepared, rows={"item_id": 10**7})
    found = plan(cluster).memory
    assert found[beyond] == 2 * 4 * 8 * 10**7 / 2 - sum(found[name] for name in of_a_step) > 0
    cluster.run.monitor = None
    assert plan(cluster).memory == found | {beyond: 0}
    assert plan(planned_for(config("row_wise"), prepared)).memory[beyond] == 0


def test_a_row_of_sgd_has_no_state(prepared: Path) -> None:
    found = plan(planned_for(config("row_wise", "sgd"), prepared))
    assert found.memory["their optimizer's state"] == 0 < found.memory["rows of tables"]


def test_time_of_an_exchange_by_hand() -> None:
    cluster = ClusterConfig(nodes=2, ranks_per_node=2, intra_gb_s=100, inter_gb_s=10, efficiency=0.5, collective_us=0)
    # of 3 GB to three others 2 GB leave the machine: over one link, or over those of both ranks of a machine
    assert Exchange("x", "all_to_all", 3e9).seconds(cluster) == pytest.approx(2 / 5)
    assert Exchange("x", "gather", 3e9).seconds(cluster) == pytest.approx(1 / 5)
    cluster.nodes = 1
    assert Exchange("x", "gather", 1e9).seconds(cluster) == pytest.approx(1 / 50)


def large(folder: Path, rows: int = 10**9, **cluster: Any) -> PlanConfig:
    """A billion users on 64 GPUs."""
    found = planned_for(config("row_wise"), folder, **({"nodes": 8, "ranks_per_node": 8, "device": "cuda"} | cluster))
    found.model.embedding_dim, found.data.streams, found.data.global_batch_size = 64, 64, 4096
    found.plan.rows = {"user_id": rows}
    return found


def test_a_billion_rows_are_spread_evenly(prepared: Path) -> None:
    found = Planning(config := large(prepared)).fitting(config)
    user = next(table for table in found.tables if table.name == "user_id")
    assert user.rows_of_rank == [15_625_000] * 64 and user.kernel == "fused"
    assert user.weights(0) + user.state(0) == 15_625_000 * 260
    assert "1,000,000,000   64  row_wise    fused" in told(found)
    assert told(found).splitlines()[-2].startswith("fits 64 ranks on 8 machines: ")


@pytest.mark.slow
def test_what_does_not_fit_is_refused_and_each_change_offered_fits(prepared: Path) -> None:
    found = large(prepared, hbm_gib=20.0, rows=5 * 10**9)
    with pytest.raises(
        UserError, match="64 ranks on 8 machines, 1,280 GiB in all: .* is user_id with 1,210.7"
    ) as refused:
        Planning(found).fitting(found)
    offered = refused.value.remedy.split(": ", 1)[1].split("; or ")
    assert [change.split("=")[0] for change in offered] == [
        "model.table_dtype", "sharding.host_memory", "plan.nodes", "model.embedding_dim",
    ]  # fmt: skip
    for change in offered:
        changed = overridden(found, change.split())
        assert Planning(changed).fitting(changed).fits, change
    fewer, wider = (overridden(found, change.split()) for change in offered[2:])  # and is the smallest of its kind
    fewer.plan.nodes -= 1
    fewer.data.streams = fewer.data.global_batch_size = fewer.plan.nodes * 8
    wider.model.embedding_dim += 4
    for changed in (fewer, wider):
        with pytest.raises(UserError, match="room for tables"):
            Planning(changed).fitting(changed)


def overridden(found: PlanConfig, overrides: list[str]) -> PlanConfig:
    node = OmegaConf.merge(OmegaConf.structured(found), OmegaConf.from_dotlist(overrides))
    changed = OmegaConf.to_object(node)
    assert isinstance(changed, PlanConfig)
    return changed
