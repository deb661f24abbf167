"""Exchanges that gloo is quick at, against those of TorchRec and DistributedDataParallel."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from tests.ranks import RankPool
from tests.training import config, trained, whole_tables
from trainer.config import TrainConfig
from trainer.model.two_tower import dense_parameters
from trainer.runtime import sharding
from trainer.runtime.processes import Processes
from trainer.runtime.row_wise import ShardedBags


def after_steps(
    processes: Processes, train: TrainConfig, folder: Path, quickly: bool
) -> tuple[dict[str, Tensor], list[float]]:
    average, make = sharding.average_quickly, vars(ShardedBags)["create_embedding_bag_sharding"]
    if not quickly:
        sharding.average_quickly = lambda model: None
        theirs = vars(ShardedEmbeddingBagCollection)["create_embedding_bag_sharding"]
        ShardedBags.create_embedding_bag_sharding = theirs  # type: ignore[method-assign]
    try:
        model, losses = trained(processes, train, folder, 5)
    finally:
        sharding.average_quickly = average
        ShardedBags.create_embedding_bag_sharding = make  # type: ignore[method-assign]
    layers = {name: value.detach() for name, value in dense_parameters(model).items()}
    return whole_tables(model) | layers, losses


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("kind", ["row_wise", "table_wise"])
def test_what_is_learned_is_the_same(ranks: RankPool, prepared: Path, kind: str, world_size: int) -> None:
    """Bit for bit with two ranks; with three the order in which they are added up differs."""
    several = ranks.run(world_size, after_steps, config(kind), prepared, True)
    expected, losses = ranks.run(world_size, after_steps, config(kind), prepared, False)[0]
    assert several[0][1] == (losses if world_size == 2 else pytest.approx(losses, rel=1e-5))
    assert len(several[1][0]) == 8  # layers
    tolerance = 0.0 if world_size == 2 else 1e-4
    for name, value in expected.items():
        torch.testing.assert_close(several[0][0][name], value, rtol=tolerance, atol=tolerance)
        # tables are told by the first rank alone
        assert all(torch.equal(found[name], several[0][0][name]) for found, _ in several if name in found), name
