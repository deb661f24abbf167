"""Imports go downward only: commands > report > runtime > model, data > config. See CONTRIBUTING.md."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "trainer"
FLOOR = {
    "errors": 0,
    "config": 1,
    "checks": 1,
    "model": 2,
    "data": 2,
    "serving": 2,
    "retrieval": 2,
    "runtime": 3,
    "report": 4,
}
COMMANDS = 5
FORBIDDEN = {
    "model": (
        "pytorch_lightning",
        "lightning",
        "hydra",
        "omegaconf",
        "pyarrow",
        "torch.distributed",
        "trainer.runtime",
    ),
    "data": ("pytorch_lightning", "lightning", "hydra", "omegaconf", "torch.distributed", "trainer.model"),
    "serving": ("torchrec", "numpy", "pyarrow", "torch.distributed", "trainer.config", "trainer.model"),
    "retrieval": ("torchrec", "hydra", "omegaconf", "torch.distributed", "trainer.config", "trainer.model"),
    "runtime": ("hydra", "omegaconf", "duckdb"),
    "report": ("pytorch_lightning", "lightning", "hydra", "omegaconf", "duckdb", "torch.distributed"),
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Full names of all that a file imports, inside functions too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    floor = FLOOR.get(room(path), COMMANDS)
    for name in imports(path):
        if name.startswith("trainer."):
            target = name.split(".")[1]
            assert FLOOR.get(target, COMMANDS) <= floor, f"{path} imports {name} from a floor above"
        for forbidden in FORBIDDEN.get(room(path), ()):
            assert not f"{name}.".startswith(f"{forbidden}."), f"{path} imports {name}"


def test_the_rule_would_see_an_import_upward(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from trainer.runtime import fit\n    import torch.distributed as dist\n")
    assert imports(file) == ["trainer.runtime.fit", "torch.distributed"]
