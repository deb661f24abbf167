"""Parts of bags that travel, against sums by hand."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ranks import RankPool
from trainer.runtime.processes import Processes
from trainer.runtime.row_wise import route, start_parts_to_bags


def parts_of(there_RWSF: Tensor, widths: list[int]) -> Tensor:
    """What each rank holds of every bag, [R, W * S, D]: whole numbers, whose sums are exact; zeros where none."""
    ranks, features = len(there_RWSF), len(widths)
    numbers = torch.randint(-9, 10, (ranks, ranks, there_RWSF.shape[2], sum(widths))).float()
    columns = torch.tensor([feature for feature in range(features) for _ in range(widths[feature])])
    return (numbers * there_RWSF[..., columns]).flatten(1, 2)


def exchanged(
    processes: Processes, there_RWSF: Tensor, parts_RPD: Tensor, units_F: Tensor, unit: int, slope_RSD: Tensor,
    scale: float | None,
) -> tuple[Tensor, Any]:  # fmt: skip
    rank = processes.rank
    wanted_WFS, held_FWS = there_RWSF[:, rank].transpose(1, 2), there_RWSF[rank].permute(2, 0, 1)
    parts = parts_RPD[rank].clone().requires_grad_()
    bags = start_parts_to_bags(parts, route(wanted_WFS, held_FWS, units_F), unit, scale)()
    (bags * slope_RSD[rank]).sum().backward()
    return bags.detach(), parts.grad


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("scale", [None, 64.0])
def test_bags_are_sums_of_the_parts_and_parts_get_their_gradient(
    ranks: RankPool, world_size: int, scale: float | None
) -> None:
    """Whichever parts there are, none at all too, and whatever the widths."""

    @given(
        st.lists(st.sampled_from([4, 8, 12]), min_size=1, max_size=4), st.integers(1, 5),
        st.floats(0, 1), st.integers(0, 2**32),
    )  # fmt: skip
    @settings(max_examples=15)
    def hold(widths: list[int], slots: int, share: float, seed: int) -> None:
        torch.manual_seed(seed)
        there_RWSF = torch.rand(world_size, world_size, slots, len(widths)) < share
        parts_RPD = parts_of(there_RWSF, widths)
        slope_RSD = torch.randint(-9, 10, (world_size, slots, sum(widths))).float()
        columns = torch.tensor([feature for feature, width in enumerate(widths) for _ in range(width)])
        units_F, unit = torch.tensor(widths) // 4, 4
        found = ranks.run(world_size, exchanged, there_RWSF, parts_RPD, units_F, unit, slope_RSD, scale)
        of_rank = parts_RPD.view(world_size, world_size, slots, -1)
        for rank, (bags, gradient) in enumerate(found):
            assert torch.equal(bags, of_rank[:, rank].sum(0))
            expected = slope_RSD * there_RWSF[rank][..., columns] / world_size
            torch.testing.assert_close(gradient.view_as(expected), expected, rtol=1 / 2048 if scale else 1e-6, atol=0)

    hold()


def in_order(processes: Processes) -> Tensor:
    """Of 1e8, -1e8 and 1 float32 keeps the 1 only where it comes last."""
    there_WFS = torch.ones(3, 1, 2, dtype=torch.bool)
    parts = torch.full((6, 4), [1e8, -1e8, 1.0][processes.rank])
    return start_parts_to_bags(parts, route(there_WFS, there_WFS.transpose(0, 1), torch.tensor([1])), 4)()


def test_parts_are_added_up_in_the_order_of_ranks(ranks: RankPool) -> None:
    assert all(torch.equal(bags, torch.ones(2, 4)) for bags in ranks.run(3, in_order))
