"""In processes of their own: what is set aside stays so."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import environment
from tests.training import config
from trainer.config import to_yaml
from trainer.runtime import checkpoint, run_directory

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


@pytest.fixture
def saved(prepared: Path, tmp_path: Path) -> Path:
    """A run, as far as it is looked at before anything of it is read."""
    settings = config()
    settings.data.dir, settings.run.dir = str(prepared), str(tmp_path)
    (tmp_path / run_directory.CONFIG).write_text(to_yaml(settings))
    (tmp_path / "checkpoints" / checkpoint.name(1)).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "override"),
    [
        *(("train", override) for override in ("data.dir=missing", "run.epochs=0", "model.query.features=[shoe_size]")),
        *((command, "run.dir=missing") for command in ("evaluate", "export", "query_tower", "replay")),
        *((command, "run.checkpoint=step-1") for command in ("evaluate", "export", "query_tower", "replay")),
        *((command, "run.data_dir=missing") for command in ("evaluate", "export", "query_tower", "replay")),
    ],
)
def test_what_most_often_is_wrong_is_told_before_torch_is_imported(
    prepared: Path, saved: Path, command: str, override: str
) -> None:
    code = (f"import sys; from trainer.{command} import main; "
            "import atexit; atexit.register(lambda: print('torch' in sys.modules)); main()")  # fmt: skip
    needed = (
        [f"data.dir={prepared}", "run.dir=new"] if command == "train" else [f"run.dir={saved}", "run.checkpoint=last"]
    )
    rows = ["replay.rows=rows"] if command == "replay" else []
    arguments = [sys.executable, "-c", code, *needed, *rows, override]
    result = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "False\n"), result.stderr
    assert result.stderr.startswith(f"error: {override.split('=')[0]}=")
