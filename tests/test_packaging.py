"""The wheel: its configs are inside, and each command explains itself where the repository is not."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# prepare has no default for what it reads.
COMMANDS = {"prepare": ["data=movielens"], "train": [], "evaluate": [], "export": [], "query_tower": [], "replay": [],
            "plan": []}  # fmt: skip


def run(*command: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    run(sys.executable, "-m", "pip", "wheel", *options, ROOT, cwd=folder)
    [path] = folder.glob("two_tower_trainer-*.whl")
    return path


@pytest.fixture(scope="module")
def installed_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a venv that holds the built wheel, and not torchrec.

    Everything else comes from this environment's packages: a path in a .pth file, so that the editable install among
    them, itself a .pth file, does not come along.
    """
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-index"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (packages / "no_torchrec.pth").write_text("import sys; sys.modules.update(torchrec=None, fbgemm_gpu=None)\n")
    return python


def test_wheel_holds_every_config(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("trainer/configs/")}
    expected = {f"trainer/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert packed == expected
    assert "trainer/configs/train.yaml" in packed


def test_wheel_holds_the_page_of_the_report(wheel: Path) -> None:
    assert "trainer/report/page.html.jinja" in zipfile.ZipFile(wheel).namelist()


def test_wheel_holds_the_licence_and_nothing_beside_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"trainer", "two_tower_trainer"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_installed_command_explains_itself_in_an_empty_folder(
    installed_python: Path, tmp_path: Path, command: str
) -> None:
    home = Path(run(installed_python, "-c", "import trainer; print(trainer.__file__)", cwd=tmp_path).strip())
    assert installed_python.parent.parent in home.parents

    explanation = run(installed_python, "-m", f"trainer.{command}", *COMMANDS[command], "--help", cwd=tmp_path)
    assert "dir=" in explanation
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_without_torchrec_a_command_says_how_to_install_it(
    installed_python: Path, prepared: Path, tmp_path: Path
) -> None:
    command = [installed_python, "-m", "trainer.train", f"data.dir={prepared}", f"run.dir={tmp_path}/run"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: torchrec is not installed. Remedy: ")
