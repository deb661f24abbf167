"""launch/completion.bash, as bash calls it."""

import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from tests.commands import environment
from trainer.config import OptimizerConfig

ROOT = Path(__file__).parent.parent
CALL = """
. launch/completion.bash
COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDBREAKS=$2
_trainer_overrides "${1%% *}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(line: str, breaks: str = "\"'@><=;|&(:") -> list[str]:
    result = subprocess.run(
        ["bash", "-c", CALL, "bash", line, breaks],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == ""
    return result.stdout.split()


@pytest.mark.parametrize("command", ["python -m trainer.train", "torchrun --nproc-per-node 2 -m trainer.train",
                                     "launch/torchrun.sh train"])  # fmt: skip
def test_fields_are_completed_however_the_command_is_started(command: str) -> None:
    found = completed(f"{command} run.epochs=2 optimizer.embedding")
    assert set(found) == {f"optimizer.{field.name}=" for field in fields(OptimizerConfig) if "embedding" in field.name}


def test_choices_are_completed_where_bash_parts_words_at_the_equals_sign_and_where_not() -> None:
    models = {"dssm", "factorization_machine", "matrix_factorization", "multi_interest", "sequence", "two_tower"}
    assert set(completed("python -m trainer.train model=")) == models
    assert set(completed("python -m trainer.train model=m", " ")) == {
        "model=matrix_factorization",
        "model=multi_interest",
    }


def test_other_modules_are_left_to_bash() -> None:
    assert completed("python -m pytest tests") == []
    assert completed("python -m trainer.train") == []
