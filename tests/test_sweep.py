"""Several runs by one command, Hydra's --multirun, against the same runs by a command each."""

import json
from pathlib import Path

import pytest

from tests.forked import succeed


@pytest.mark.slow
def test_each_job_of_a_sweep_is_what_its_own_command_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over two processes, which form a group for each job; Hydra's own note is all that lies beside the runs."""
    monkeypatch.chdir(tmp_path)
    succeed("trainer.prepare", "data=generated", "data.dir=data", "data.users=300", "data.items=200")
    settings = ("data.dir=data", "experiment=generated", "data.global_batch_size=256", "run.epochs=1")
    succeed("trainer.train", "--multirun", *settings, "optimizer.dense_learning_rate=0.001,0.01",
            "run.dir=runs/lr-${optimizer.dense_learning_rate}", ranks=2)  # fmt: skip
    found = {}
    for rate in ("0.001", "0.01"):
        succeed(
            "trainer.train", *settings, f"optimizer.dense_learning_rate={rate}", f"run.dir=alone/lr-{rate}", ranks=2
        )
        alone, swept = (
            json.loads((tmp_path / name / f"lr-{rate}" / "checkpoints" / "best.json").read_text())
            for name in ("alone", "runs")
        )
        assert swept == alone
        found[rate] = swept["metrics"]
    assert found["0.001"] != found["0.01"]
    assert {path.name for path in tmp_path.iterdir()} == {"data", "runs", "alone", "multirun"}
    assert {path.name for path in tmp_path.glob("multirun/**/*") if path.is_file()} == {"multirun.yaml"}
