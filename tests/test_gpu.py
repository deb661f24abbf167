import json
from pathlib import Path

import pytest
import torch

from tests.commands import succeed
from tests.test_reader import reader, rows_of
from trainer.runtime.row_wise import route

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and the gpu extra"),
]


def test_batches_come_pinned_and_are_copied_beside_the_computation(prepared: Path) -> None:
    batch = next(iter(reader(prepared, pinned=True)))
    tensors = (batch.query_dense, batch.item_dense, batch.item_row, batch.train_share)
    assert all(tensor.is_pinned() for tensor in (*tensors, batch.sparse_features.values()))
    moved = batch.to(torch.device("cuda"), non_blocking=True)
    torch.cuda.synchronize()
    assert rows_of(moved.to(torch.device("cpu"))) == rows_of(batch)


def test_parts_of_bags_take_the_routes_of_the_cpu() -> None:
    wanted_WFS, held_FWS, units_F = torch.rand(3, 4, 20) < 0.4, torch.rand(4, 3, 20) < 0.4, torch.tensor([4, 1, 1, 2])
    expected = vars(route(wanted_WFS, held_FWS, units_F))
    found = vars(route(wanted_WFS.cuda(), held_FWS.cuda(), units_F.cuda()))
    for name, value in expected.items():
        assert found[name].cpu().equal(value) if isinstance(value, torch.Tensor) else found[name] == value, name


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    succeed("trainer.prepare", "data=generated", f"data.dir={folder}", "data.users=2500", "data.items=2000")
    return folder


def train(data: Path, run: Path, accelerator: str, *more: str, ranks: int = 1) -> None:
    succeed(
        "trainer.train", f"data.dir={data}", f"run.dir={run}", f"run.accelerator={accelerator}", "run.epochs=3",
        "data.global_batch_size=256", *more, ranks=ranks,
    )  # fmt: skip


def recall(run: Path, accelerator: str, ranks: int = 1) -> float:
    """Of the test queries, at 10."""
    succeed("trainer.evaluate", f"run.dir={run}", f"run.accelerator={accelerator}", ranks=ranks)
    return json.loads((run / "metrics.json").read_text())["test/recall@10"]


def test_the_main_job_on_a_gpu_agrees_with_the_cpu(data: Path, tmp_path: Path) -> None:
    """Trained on either device with the same seed and order, test recall@10 agrees to 0.02."""
    found = {}
    for trained_on in ("gpu", "cpu"):
        train(data, tmp_path / trained_on, trained_on, "run.monitor=val/recall@10")
        found[trained_on] = {where: recall(tmp_path / trained_on, where) for where in ("gpu", "cpu")}
        assert found[trained_on]["gpu"] == pytest.approx(found[trained_on]["cpu"], abs=0.002)
    assert found["gpu"]["gpu"] == pytest.approx(found["cpu"]["cpu"], abs=0.02)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@pytest.mark.parametrize("exchange", ["float32", "float16"])
def test_two_gpus_learn_what_one_does(data: Path, tmp_path: Path, exchange: str) -> None:
    """Over NCCL, with tables spread by rows: test recall@10 agrees to 0.02."""
    found = []
    for ranks in (1, 2):
        train(data, tmp_path / str(ranks), "gpu", f"sharding.exchange={exchange}", ranks=ranks)
        found.append(recall(tmp_path / str(ranks), "gpu", ranks))
    assert found[1] == pytest.approx(found[0], abs=0.02)
