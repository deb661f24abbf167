"""In processes of their own: what is set aside stays so."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import environment

BEFORE = {
    "nothing": "",
    "torch": "sys.modules['torch'] = object()",
    "no collector": "gc.disable()",
}
CODE = """
import gc, sys
from trainer.first_imports import first_imports
{before}
found = []
try:
    with first_imports():
        found.append(gc.isenabled())
        {within}
except ImportError:
    found.append("not found")
print([*found, gc.isenabled(), gc.get_freeze_count() > 1000])
"""


def found(before: str, within: str = "import json") -> str:
    code = CODE.format(before=BEFORE[before], within=within)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ("nothing", "[False, True, True]"),
        ("torch", "[True, True, False]"),  # somebody else's process
        ("no collector", "[False, False, False]"),
    ],
)
def test_the_collector_rests_where_it_may(before: str, told: str) -> None:
    assert found(before) == told


def test_an_import_that_fails_leaves_the_collector_at_work() -> None:
    assert found("nothing", "import no_such_module") == "[False, 'not found', True, False]"


@pytest.mark.parametrize("override", ["data.dir=missing", "run.epochs=0", "model.query.features=[shoe_size]"])
def test_what_most_often_is_wrong_is_told_before_torch_is_imported(prepared: Path, override: str) -> None:
    code = ("import sys; from trainer.train import main; "
            "import atexit; atexit.register(lambda: print('torch' in sys.modules)); main()")  # fmt: skip
    command = [sys.executable, "-c", code, f"data.dir={prepared}", "run.dir=new", override]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "False\n")
    assert result.stderr.startswith(f"error: {override.split('=')[0]}=")
