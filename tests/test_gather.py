import pytest
import torch
from torch import Tensor

from tests.ranks import RankPool
from trainer.runtime.gather import (
    gather,
    gather_objects,
    gather_with_gradient,
    start_sum_to_owners,
)
from trainer.runtime.processes import Processes

WEIGHTS = torch.tensor([[1.0, 2, 3, 4, 5, 6], [7.0, 8, 9, 10, 11, 12], [0.0, 1, 0, 1, 0, 1]])


def gathered(processes: Processes) -> tuple[Tensor, Tensor, list[int]]:
    local = torch.arange(2.0)[:, None] + 10 * processes.rank
    local.requires_grad_()
    everyone = gather_with_gradient(local)
    (everyone[:, 0] ** 2 * WEIGHTS[processes.rank, : len(everyone)]).sum().backward()
    return gather(local.detach()), local.grad, gather_objects(processes.rank)


def gathered_in_half(processes: Processes, slope: float) -> tuple[Tensor, Tensor]:
    local = torch.tensor([[0.1], [1e6]], requires_grad=True)
    everyone = gather_with_gradient(local, gradient_scale=4096.0)
    (slope * everyone).sum().backward()
    return everyone.detach(), local.grad


@pytest.mark.parametrize(("slope", "found"), [(1e-9, 2e-9), (2.0, 4.0), (100.0, 65504 / 4096), (-3e38, -65504 / 4096)])
def test_half_the_bytes_keep_small_gradients_and_hold_large_ones(ranks: RankPool, slope: float, found: float) -> None:
    """Of 1e-9, float16 itself would leave nothing: each of two ranks adds one to every row."""
    for everyone, gradient in ranks.run(2, gathered_in_half, slope):
        assert everyone.flatten().tolist() == pytest.approx([0.1, 32752.0] * 2, rel=1 / 2048)
        torch.testing.assert_close(gradient, torch.full((2, 1), found), rtol=0.01, atol=0)


def test_every_rank_gets_all_rows_and_owners_get_all_gradients(ranks: RankPool) -> None:
    for world_size in (1, 2, 3):
        results = ranks.run(world_size, gathered)
        rows = torch.cat([torch.arange(2.0) + 10 * rank for rank in range(world_size)])
        # d/dx of sum over ranks of w x^2
        gradient = 2 * rows * WEIGHTS[:world_size, : len(rows)].sum(0)
        for rank, (everyone, grad, numbers) in enumerate(results):
            assert everyone[:, 0].tolist() == rows.tolist()
            assert grad[:, 0].tolist() == gradient[2 * rank : 2 * rank + 2].tolist()
            assert numbers == list(range(world_size))


def order_of_sums(processes: Processes) -> Tensor:
    """Of 1e8, -1e8 and 1 float32 keeps the 1 only where it comes last."""
    everyone = torch.full((6, 1), [1e8, -1e8, 1.0][processes.rank])
    return start_sum_to_owners(everyone)()


def test_ranks_are_added_up_in_their_order(ranks: RankPool) -> None:
    assert all(own[:, 0].tolist() == [1.0, 1.0] for own in ranks.run(3, order_of_sums))
