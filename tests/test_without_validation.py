"""The last run, on everything but test, of settings that validation has chosen before."""

from pathlib import Path

import pytest

from tests.forked import run, succeed
from tests.test_end_to_end import metrics
from trainer.data.schema import read_schema
from trainer.runtime import checkpoint

SETTINGS = ("data.global_batch_size=256", "data.streams=16", "run.monitor=null", "run.validate_every=0.5")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("everything") / "data"
    succeed("trainer.prepare", "data=generated", f"data.dir={folder}", "data.users=600", "data.items=300",
            "data.split.validation=0")  # fmt: skip
    return folder


@pytest.mark.survival
def test_a_run_without_validation_keeps_its_newest_checkpoint_and_resumes(data: Path, tmp_path: Path) -> None:
    assert read_schema(data).num_events["validation"] == 0
    arguments = (f"data.dir={data}", *SETTINGS)
    told = succeed("trainer.train", f"run.dir={tmp_path / 'whole'}", *arguments, "run.epochs=2")
    assert "nothing was validated" in told
    for epochs in (1, 2):
        succeed("trainer.train", f"run.dir={tmp_path / 'resumed'}", *arguments, f"run.epochs={epochs}")
        best = checkpoint.find(tmp_path / "resumed", "best")
        assert best == checkpoint.newest(tmp_path / "resumed")
        assert len(checkpoint.names(best.parent)) == 2  # run.keep_checkpoints
    assert best.name == checkpoint.newest(tmp_path / "whole").name
    assert queries_of(tmp_path / "resumed") == queries_of(tmp_path / "whole")
    succeed("trainer.evaluate", f"run.dir={tmp_path / 'whole'}")
    found = metrics(tmp_path / "whole")
    assert found["test/recall@100"] > found["test/popularity/recall@100"]


def queries_of(run_dir: Path) -> bytes:
    """Its test queries' embeddings, which all tables of the query side and the item table are behind."""
    succeed("trainer.export", f"run.dir={run_dir}", "export.side=query")
    return (run_dir / "query_embeddings" / "part-00000.parquet").read_bytes()


@pytest.mark.parametrize(
    ("module", "overrides", "message"),
    [
        ("trainer.train", ["data.dir={data}", "run.dir={run}/new", *SETTINGS, "run.monitor=val/recall@10"],
         "run.monitor=val/recall@10: expected null, for {data} holds nothing out for validation"),
        ("trainer.evaluate", ["run.dir={run}", "evaluate.split=validation"],
         "events/validation, not 0 (it was prepared with data.split.validation=0)"),
        ("trainer.prepare", ["data=generated", "data.dir={run}/new", "data.split.validation=-0.1"],
         "data.split.validation=-0.1: expected a share in [0, 1)"),
    ],
)  # fmt: skip
def test_asking_for_validation_where_there_is_none_is_refused(
    data: Path, tmp_path_factory: pytest.TempPathFactory, module: str, overrides: list[str], message: str
) -> None:
    trained = tmp_path_factory.getbasetemp() / "trained_on_everything"
    if not trained.exists():
        succeed("trainer.train", f"data.dir={data}", f"run.dir={trained}", *SETTINGS, "run.epochs=1")
    result = run(module, *(override.format(data=data, run=trained) for override in overrides))
    assert result.returncode == 2, result.stderr
    assert message.format(data=data) in result.stderr and "Traceback" not in result.stderr
