from dataclasses import replace
from pathlib import Path

import pytest

from tests.prepared import SCHEMA
from trainer.config import TrainConfig
from trainer.data.order import TrainingOrder
from trainer.data.schema import read_schema
from trainer.errors import UserError
from trainer.runtime import checkpoint, run_directory

ORDER = TrainingOrder((60, 40), 10, 2, seed=0)


def config(run_dir: Path, **model: object) -> TrainConfig:
    result = TrainConfig()
    result.data.dir, result.run.dir = "data", str(run_dir)
    result.model = replace(result.model, **model)
    return result


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A claimed run with a checkpoint."""
    folder = tmp_path / "run"
    run_directory.claim(config(folder), SCHEMA, ORDER)
    (folder / "checkpoints" / checkpoint.name(5)).mkdir(parents=True)
    return folder


def test_config_and_schema_are_read_back(run_dir: Path) -> None:
    assert run_directory.read_config(run_dir) == config(run_dir)
    assert run_directory.read_schema_of(run_dir) == SCHEMA


def test_the_same_run_goes_on_also_elsewhere_and_for_longer(run_dir: Path) -> None:
    again = config(run_dir)
    again.run.epochs, again.run.patience, again.data.dir, again.sharding.ids = 99, 7, "moved", "table_wise"
    run_directory.claim(again, SCHEMA, ORDER)


def test_another_configuration_is_refused_with_what_differs(run_dir: Path) -> None:
    other = config(run_dir, id_dropout=0.5)
    other.run.seed = 3
    with pytest.raises(UserError, match=r"model.id_dropout=0.1 \(now 0.5\), run.seed=0 \(now 3\)"):
        run_directory.claim(other, SCHEMA, ORDER)


def test_before_the_first_checkpoint_nothing_is_bound(tmp_path: Path) -> None:
    run_directory.claim(config(tmp_path / "run"), SCHEMA, ORDER)
    (tmp_path / "run" / run_directory.STALLS).mkdir()  # it may have stalled before
    other = config(tmp_path / "run", id_dropout=0.5)
    run_directory.claim(other, replace(SCHEMA, num_items=7), ORDER)
    assert run_directory.read_config(tmp_path / "run") == other


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="expected a new or empty folder"):
        run_directory.claim(config(tmp_path), SCHEMA, ORDER)
    with pytest.raises(UserError, match="expected a new or empty folder"):
        run_directory.claim(config(tmp_path / "thesis.txt"), SCHEMA, ORDER)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (replace(SCHEMA, fingerprint="other ids"), "fingerprint was by hand, is other ids"),
        (replace(SCHEMA, features=SCHEMA.features[1:]), "it was trained on; feature user_id is gone"),
    ],
)
def test_other_data_is_refused(run_dir: Path, schema: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_directory.claim(config(run_dir), schema, ORDER)


def test_other_row_groups_are_refused(run_dir: Path) -> None:
    run_directory.claim(config(run_dir), SCHEMA, replace(ORDER, seed=1))  # the seed is the config's matter
    with pytest.raises(UserError, match=r"data.dir=data: expected the training rows .* in the same row groups"):
        run_directory.claim(config(run_dir), SCHEMA, replace(ORDER, row_group_sizes=(40, 60)))


@pytest.mark.parametrize("damage", [lambda text: text[:-40], lambda text: text.replace('"mean"', '"men"'),
                                    lambda text: text.replace('"version": 3', '"version": 1')])  # fmt: skip
def test_a_damaged_schema_is_one_message(tmp_path: Path, damage: object) -> None:
    (tmp_path / "schema.json").write_text(damage(SCHEMA.to_json()))
    with pytest.raises(UserError, match="expected a schema.json of version 3 as trainer.prepare writes it"):
        read_schema(tmp_path)


@pytest.mark.parametrize("content", [b"model:\n  embeding_dim: 3\n", b"\xff", b"- 1\n", b"3\n", b""])
def test_a_damaged_config_is_one_message(run_dir: Path, content: bytes) -> None:
    (run_dir / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match="expected a config of this version's trainer.train"):
        run_directory.read_config(run_dir)


def test_a_damaged_digest_of_row_groups_is_one_message(run_dir: Path) -> None:
    (run_dir / "order.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match="expected the training rows of the run so far"):
        run_directory.claim(config(run_dir), SCHEMA, ORDER)


def test_a_run_without_its_schema_is_one_message(run_dir: Path) -> None:
    (run_dir / "schema.json").unlink()
    with pytest.raises(UserError, match="expected a run of this version's trainer.train"):
        run_directory.read_schema_of(run_dir)


def test_a_run_of_another_version_is_one_message(run_dir: Path) -> None:
    (run_dir / "schema.json").write_text(SCHEMA.to_json().replace('"version": 3', '"version": 1'))
    with pytest.raises(UserError, match=r"expected a run of this version's trainer.train \(schema.json: it is of"):
        run_directory.read_schema_of(run_dir)
