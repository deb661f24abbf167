"""The loss over ranks, each switch by value: against sums written out over all draws of the global batch."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.ranks import RankPool
from trainer.config import LossConfig
from trainer.data.batch import RetrievalBatch
from trainer.data.distinct import distinct_items
from trainer.runtime.lockstep import sizes_of_all
from trainer.runtime.processes import Processes
from trainer.runtime.training_loss import TrainingLoss

ITEMS, DIM, ROWS = 7, 3, 4
SHARE = np.linspace(0.05, 0.25, ITEMS) / np.linspace(0.05, 0.25, ITEMS).sum()


@dataclass
class Share:
    """One rank's part of a global batch; every row has some queries, in the order of its events."""

    user: list[int]
    known: list[list[int]]
    queries: list[tuple[int, int, int]]
    """Row, how many of the known it has seen, catalogue row of its positive."""
    uniform: list[int]
    query_QKD: Tensor
    weight: list[float]
    merged: bool = False
    """Whether the queries of a row, with all that is known seen, are one query: the row's, with several positives."""

    def batch(self, config: LossConfig) -> tuple[RetrievalBatch, Tensor]:
        """With the items' embeddings."""
        items = distinct_items(np.array([item for *_, item in self.queries]), np.array(self.uniform, np.int64),
                               np.array([8, 9]))  # two that only histories have # fmt: skip
        which = config.remove_known_positives
        batch = RetrievalBatch(
            KeyedJaggedTensor(["x"], torch.zeros(0), lengths=torch.zeros(len(items.row), dtype=torch.int32)),
            None, None, torch.from_numpy(items.row), torch.from_numpy(items.positive_count),
            torch.from_numpy(items.uniform_count),
            torch.from_numpy(SHARE[items.row[: len(items.positive_count)]]).float(),
            torch.from_numpy(items.positive),
            **{"positive_query" if self.merged else "query_row": torch.tensor([row for row, *_ in self.queries])},
            weight=torch.tensor(self.weight) if config.sample_weights else None,
            shared=None if config.in_batch_negatives else torch.from_numpy(items.uniform_count.nonzero()[0]),
        )  # fmt: skip
        if which != "none":
            batch.known_row = torch.tensor(list(itertools.chain(*self.known)))
            batch.known_length = torch.tensor([len(known) for known in self.known])
            seen = batch.known_length if self.merged else torch.tensor([seen for _, seen, _ in self.queries])
            batch.known_seen = seen if which == "history" else None
            batch.user = torch.tensor(self.user) if which == "user" else None
        return batch, embeddings()[batch.item_row % ITEMS]


def embeddings() -> Tensor:
    return torch.randn(ITEMS, DIM, generator=torch.Generator().manual_seed(5))


def make_share(seed: int, interests: int) -> Share:
    rng = np.random.default_rng(seed)
    known = [rng.integers(0, ITEMS, rng.integers(1, 5)).tolist() for _ in range(ROWS)]
    queries = [(row, seen, int(rng.integers(0, ITEMS))) for row in range(ROWS) for seen in range(len(known[row]))]
    query = torch.randn(len(queries), interests, DIM, generator=torch.Generator().manual_seed(seed))
    return Share(
        user=rng.integers(0, 4, ROWS).tolist(), known=known, queries=queries,
        uniform=rng.choice(ITEMS, 3, replace=False).tolist(), query_QKD=query,
        weight=rng.integers(0, 4, len(queries)).astype(float).tolist(),
    )  # fmt: skip


def of_rank(processes: Processes, shares: list[Share], config: LossConfig) -> dict[str, Any]:
    """Loss and gradients of this rank's part, of which a rank may have several shares."""
    share = shares[processes.rank]
    batch, item = share.batch(config)
    query = (share.query_QKD if share.query_QKD.shape[1] > 1 else share.query_QKD[:, 0]).clone().requires_grad_()
    item = item.clone().requires_grad_()
    loss = TrainingLoss(config, ITEMS, processes)(query, item, batch, sizes_of_all(batch))
    loss.backward()
    by_row = torch.zeros(ITEMS + 3, DIM).index_add_(0, batch.item_row, item.grad)
    return {"loss": loss.detach(), "query": query.grad.view(share.query_QKD.shape), "item": by_row[:ITEMS]}


def written_out(shares: list[Share], config: LossConfig) -> dict[str, Any]:
    """The same from every draw of the global batch in a column of its own."""
    item = embeddings().requires_grad_()
    queries = [share.query_QKD.clone().requires_grad_() for share in shares]
    positives = [positive for share in shares for *_, positive in share.queries]
    uniform = [row for share in shares for row in share.uniform] if config.uniform_negatives else []
    draws = [*(positives if config.in_batch_negatives else []), *uniform]
    # what the streaming estimate begins with
    count = {row: positives.count(row) / len(positives) for row in range(ITEMS)}
    share_of = {"counts": dict(enumerate(SHARE)), "streaming": count}.get(config.log_q)
    total = torch.zeros(())
    weights = sum(sum(share.weight) if config.sample_weights else len(share.queries) for share in shares)
    by_user: dict[int, set[int]] = {}
    for share in shares:
        for row, _, positive in share.queries:
            by_user.setdefault(share.user[row], set()).add(positive)
    for share, query_QKD in zip(shares, queries, strict=True):
        for number, (row, seen, positive) in enumerate(share.queries):
            excluded = set()
            if config.remove_known_positives == "history":
                excluded = set(share.known[row][: None if share.merged else seen])
            if config.remove_known_positives == "user":
                excluded = set(share.known[row]) | (by_user[share.user[row]] if share.user[row] else set())
            if share.merged:
                excluded |= {other for its_row, _, other in share.queries if its_row == row}
            query_KD = query_QKD[row if share.merged else number]
            best = int((query_KD @ item[positive]).argmax())

            def logit(row: int, query: Tensor = query_KD[best]) -> Tensor:
                if share_of is None or not config.in_batch_negatives:
                    return query @ item[row]
                drawn = len(positives) * share_of[row] + len(uniform) / ITEMS
                return query @ item[row] - math.log(drawn / (len(positives) + len(uniform)))

            negatives = [draw for draw in draws if draw != positive and draw not in excluded]
            own = 1 if config.remove_accidental_hits else draws.count(positive) + (not config.in_batch_negatives)
            terms = torch.stack([*map(logit, negatives), *[logit(positive)] * own])
            weight = share.weight[number] if config.sample_weights else 1.0
            total = total + weight / weights * (terms.logsumexp(0) - logit(positive))
    total.backward()
    return {"loss": total.detach(), "query": [query.grad for query in queries], "item": item.grad}


SWITCHES = {
    "plain": {},
    "without log q": {"log_q": "none"},
    "streaming": {"log_q": "streaming"},
    "uniform": {"uniform_negatives": 3},
    "uniform, streaming": {"uniform_negatives": 3, "log_q": "streaming"},
    "uniform alone": {"uniform_negatives": 3, "in_batch_negatives": False, "log_q": "none"},
    "accidental hits stay": {"remove_accidental_hits": False, "uniform_negatives": 3},
    "accidental hits stay among uniform": {
        "remove_accidental_hits": False, "uniform_negatives": 3, "in_batch_negatives": False, "log_q": "none",
    },
    "uniform alone, and who has chosen what": {
        "remove_known_positives": "user", "uniform_negatives": 3, "in_batch_negatives": False, "log_q": "none",
        "sample_weights": True,
    },
    "history": {"remove_known_positives": "history", "uniform_negatives": 3},
    "user": {"remove_known_positives": "user"},
    "weights": {"sample_weights": True},
    "everything": {
        "remove_known_positives": "user", "uniform_negatives": 3, "log_q": "streaming", "sample_weights": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("world_size", [1, 2])
def test_each_switch_by_value(ranks: RankPool, world_size: int, name: str) -> None:
    interests = 2 if name == "plain" else 1
    config = LossConfig(**SWITCHES[name])
    shares = [make_share(10 * world_size + rank, interests) for rank in range(world_size)]
    if not config.uniform_negatives:
        shares = [replace(share, uniform=[]) for share in shares]
    else:
        config.uniform_negatives = 3 * world_size
    assert_as_written_out(ranks, shares, config)


@pytest.mark.parametrize("drawn", [[[], [3, 5]], [[], []]])
def test_ranks_of_which_no_draw_is_left(ranks: RankPool, drawn: list[list[int]]) -> None:
    """As where those of items without training events are dropped; without any the loss is 0."""
    config = LossConfig(**SWITCHES["uniform alone, and who has chosen what"])
    shares = [replace(make_share(rank, 1), uniform=uniform) for rank, uniform in enumerate(drawn)]
    assert_as_written_out(ranks, shares, config)


def assert_as_written_out(ranks: RankPool, shares: list[Share], config: LossConfig) -> None:
    world_size, expected = len(shares), written_out(shares, config)
    found = ranks.run(world_size, of_rank, shares, config)
    # a rank's loss is its part of a sum whose mean over ranks is the loss; gradients of tables are averaged likewise
    assert sum(part["loss"] for part in found).item() / world_size == pytest.approx(float(expected["loss"]), rel=1e-5)
    for part, query in zip(found, expected["query"], strict=True):
        torch.testing.assert_close(part["query"] / world_size, query, atol=1e-6, rtol=1e-4)
    item = sum(part["item"] for part in found) / world_size
    torch.testing.assert_close(item, expected["item"], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("which", ["history", "user"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_several_positives_of_a_query_by_value(ranks: RankPool, world_size: int, which: str) -> None:
    config = LossConfig(remove_known_positives=which, uniform_negatives=3 * world_size, sample_weights=True)
    shares = []
    for rank in range(world_size):
        share = make_share(20 * world_size + rank, 1)
        shares.append(replace(share, query_QKD=share.query_QKD[:ROWS], merged=True))
    assert_as_written_out(ranks, shares, config)


def test_a_batch_of_weights_0_teaches_nothing(ranks: RankPool) -> None:
    share = replace(make_share(3, 1), uniform=[])
    share.weight = [0.0] * len(share.weight)
    (found,) = ranks.run(1, of_rank, [share], LossConfig(sample_weights=True))
    assert found["loss"] == 0 and not found["query"].any() and not found["item"].any()
