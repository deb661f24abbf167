"""In processes of their own: what is set aside stays so."""

import subprocess
import sys

import pytest

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
