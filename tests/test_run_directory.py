from dataclasses import replace
from pathlib import Path

import pytest

from tests.prepared import SCHEMA
from trainer.config import TrainConfig
from trainer.data.schema import read_schema
from trainer.errors import UserError
from trainer.runtime import checkpoint, run_directory


def config(run_dir: Path, **model: object) -> TrainConfig:
    result = TrainConfig()
    result.data.dir, result.run.dir = "data", str(run_dir)
    result.model = replace(result.model, **model)
    return result


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A claimed run with a checkpoint."""
    folder = tmp_path / "run"
    run_directory.claim(config(folder), SCHEMA)
    (folder / "checkpoints" / checkpoint.name(5)).mkdir(parents=True)
    return folder


def test_config_and_schema_are_read_back(run_dir: Path) -> None:
    assert run_directory.read_config(run_dir) == config(run_dir)
    assert run_directory.read_schema_of(run_dir) == SCHEMA


def test_the_same_run_goes_on_also_elsewhere_and_for_longer(run_dir: Path) -> None:
    again = config(run_dir)
    again.run.epochs, again.run.patience, again.data.dir, again.sharding.ids = 99, 7, "moved", "table_wise"
    run_directory.claim(again, SCHEMA)


def test_another_configuration_is_refused_with_what_differs(run_dir: Path) -> None:
    other = config(run_dir, temperature=0.5)
    other.run.seed = 3
    with pytest.raises(UserError, match=r"model.temperature=0.1 \(now 0.5\), run.seed=0 \(now 3\)"):
        run_directory.claim(other, SCHEMA)


def test_before_the_first_checkpoint_nothing_is_bound(tmp_path: Path) -> None:
    run_directory.claim(config(tmp_path / "run"), SCHEMA)
    other = config(tmp_path / "run", temperature=0.5)
    run_directory.claim(other, replace(SCHEMA, num_items=7))
    assert run_directory.read_config(tmp_path / "run") == other


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="expected a new or empty folder"):
        run_directory.claim(config(tmp_path), SCHEMA)
    with pytest.raises(UserError, match="expected a new or empty folder"):
        run_directory.claim(config(tmp_path / "thesis.txt"), SCHEMA)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (replace(SCHEMA, fingerprint="other ids"), "fingerprint was by hand, is other ids"),
        (replace(SCHEMA, features=SCHEMA.features[1:]), "features.user_id.name was user_id, is absent"),
        (
            replace(SCHEMA, num_events=SCHEMA.num_events | {"train": 9}),
            "the 1000 training rows of the run",
        ),
    ],
)
def test_other_data_is_refused(run_dir: Path, schema: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_directory.claim(config(run_dir), schema)


@pytest.mark.parametrize("damage", [lambda text: text[:-40], lambda text: text.replace('"mean"', '"men"'),
                                    lambda text: text.replace('"version": 1', '"version": 2')])  # fmt: skip
def test_a_damaged_schema_is_one_message(tmp_path: Path, damage: object) -> None:
    (tmp_path / "schema.json").write_text(damage(SCHEMA.to_json()))
    with pytest.raises(UserError, match="expected a schema.json of version 1 as trainer.prepare writes it"):
        read_schema(tmp_path)


def test_a_damaged_config_is_one_message(run_dir: Path) -> None:
    (run_dir / "config.yaml").write_text("model:\n  embeding_dim: 3\n")
    with pytest.raises(UserError, match="expected a config of this version's trainer.train"):
        run_directory.read_config(run_dir)
