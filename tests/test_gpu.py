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


def test_the_main_job_on_a_gpu_agrees_with_the_cpu(tmp_path: Path) -> None:
    """Trained on either device with the same seed and order, test recall@10 agrees to 0.02."""
    data = tmp_path / "data"
    succeed("trainer.prepare", "data=generated", f"data.dir={data}", "data.users=2500", "data.items=2000")
    recall = {}
    for accelerator in ("gpu", "cpu"):
        run = tmp_path / accelerator
        succeed(
            "trainer.train", f"data.dir={data}", f"run.dir={run}", f"run.accelerator={accelerator}", "run.epochs=3",
            "data.global_batch_size=256", "run.monitor=val/recall@10", ranks=1,
        )  # fmt: skip
        for evaluated_on in ("gpu", "cpu"):
            succeed("trainer.evaluate", f"run.dir={run}", f"run.accelerator={evaluated_on}", ranks=1)
            metrics = json.loads((run / "metrics.json").read_text())
            recall[accelerator, evaluated_on] = metrics["test/recall@10"]
        assert recall[accelerator, "gpu"] == pytest.approx(recall[accelerator, "cpu"], abs=0.002)
    assert recall["gpu", "gpu"] == pytest.approx(recall["cpu", "cpu"], abs=0.02)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@pytest.mark.parametrize("exchange", ["float32", "float16"])
def test_two_gpus_learn_what_one_does(tmp_path: Path, exchange: str) -> None:
    """Over NCCL, with tables spread by rows: test recall@10 agrees to 0.02."""
    data = tmp_path / "data"
    succeed("trainer.prepare", "data=generated", f"data.dir={data}", "data.users=2500", "data.items=2000")
    recall = []
    for ranks in (1, 2):
        run = f"run.dir={tmp_path}/{ranks}"
        succeed(
            "trainer.train", f"data.dir={data}", run, "run.accelerator=gpu", "run.epochs=3",
            "data.global_batch_size=256", f"sharding.exchange={exchange}", ranks=ranks,
        )  # fmt: skip
        succeed("trainer.evaluate", run, "run.accelerator=gpu", ranks=ranks)
        recall.append(json.loads((tmp_path / str(ranks) / "metrics.json").read_text())["test/recall@10"])
    assert recall[1] == pytest.approx(recall[0], abs=0.02)
