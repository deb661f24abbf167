"""--help tells of every field what is written below its declaration."""

import inspect
import subprocess
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import trainer.config
from tests.commands import run
from trainer.config import TrainConfig
from trainer.config.help import documentation_of

CONFIGS = [kind for _, kind in inspect.getmembers(trainer.config, is_dataclass)]
COMMANDS = [
    "prepare data=movielens",
    "train",
    "evaluate",
    "export",
    "query_tower",
    "index",
    "recommend",
    "replay",
    "plan",
]


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_field_is_documented_where_it_is_declared(kind: type) -> None:
    documented = documentation_of(kind)
    sections = {field.name for field in fields(kind) if "Config" in str(field.type)}
    assert {field.name for field in fields(kind)} - documented.keys() <= sections
    assert all(len(told) > 3 for told in documented.values())


def leaves(kind: type, path: str = "") -> list[str]:
    """Dotted names of a config's fields, through the sections."""
    found = []
    for field in fields(kind):
        section = field.default_factory if is_dataclass(field.default_factory) else None
        found += leaves(section, f"{path}{field.name}.") if section else [f"{path}{field.name}"]
    return found


def test_all_fields_of_a_training_are_told_with_what_they_are_now() -> None:
    told = run("trainer.train", "--help", "model.query.hidden=[8,4]", "run.epochs=7", "experiment=generated").stdout
    lines = told.splitlines()
    for name in leaves(TrainConfig):
        assert any(line.startswith(f"  {name}=") for line in lines), name
    assert "  model.query.hidden=[8, 4]" in lines and "  run.epochs=7" in lines
    at = lines.index("  data.dir=???  (has no default)")
    assert lines[at + 1] == "      Folder written by trainer.prepare."
    choices = sorted(path.stem for path in Path(trainer.config.CONFIG_DIR, "model").iterdir())
    assert f"model=... takes one of: {', '.join(choices)}" in lines


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_begins_with_what_it_is_for(command: str) -> None:
    module, *overrides = command.split()
    result: subprocess.CompletedProcess[str] = run(f"trainer.{module}", *overrides, "--help")
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and result.stderr == ""
    assert lines[0][0].isupper() and lines[1].startswith(("  python -m trainer.", "  torchrun "))
    assert any(f"trainer.{module} " in line for line in lines[1:3])
