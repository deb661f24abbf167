"""The Dockerfile as it stands, built by buildah upon a new root of this machine's own distribution.

Not part of `make test`: `make test-image` runs it, as root, and downloads what an image holds, some gigabytes.
"""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import REPOSITORY

TOOLS = ("buildah", "debootstrap")
CERTIFICATES = Path("/usr/local/share/ca-certificates")
BASE = "localhost/base:test"


def unable() -> str | None:
    """Why no image can be built here, if so."""
    if os.geteuid() != 0:
        return "only root can build an image here"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"needs {', '.join(missing)}" if missing else None


pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(unable() is not None, reason=str(unable())),
]


class Images:
    """buildah with a store of its own."""

    def __init__(self, store: Path) -> None:
        self._options = ["--root", str(store / "root"), "--runroot", str(store / "runroot")]

    def __call__(self, *arguments: object) -> str:
        """Runs it to its end, which must be a good one; returns what it says."""
        command = ["buildah", *self._options, *map(str, arguments)]
        done = subprocess.run(command, env=os.environ | {"BUILDAH_ISOLATION": "chroot"}, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}"
        return done.stdout

    def build(self, variant: str, context: Path = REPOSITORY) -> str:
        """The image `test:VARIANT`."""
        base = (f"--build-arg={name}_BASE={BASE}" for name in ("CPU", "GPU"))
        return self("build", "--layers", "--tag", f"localhost/test:{variant}",
                    f"--build-arg=VARIANT={variant}", *base, context)  # fmt: skip

    def run(self, image: str, *command: object, volume: Path | None = None) -> str:
        """A command in a new container."""
        container = self("from", "--quiet", "--pull-never", f"localhost/test:{image}").split()[-1]
        try:
            volumes = [] if volume is None else [f"--volume={volume}:/data"]
            return self("run", *volumes, container, "--", "tini", "-s", "--", *command)
        finally:
            self("rm", container)


@pytest.fixture(name="images", scope="module")
def _images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    folder = tmp_path_factory.mktemp("images")
    images, base = Images(folder), folder / "base"
    source = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
                            check=True, capture_output=True, text=True).stdout.split()[0]  # fmt: skip
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    subprocess.run(["debootstrap", "--variant=minbase", release, base, source], check=True, capture_output=True)
    if CERTIFICATES.is_dir():  # whom this machine trusts: a network may have a proxy that signs for others
        shutil.copytree(CERTIFICATES, base / CERTIFICATES.relative_to("/"), dirs_exist_ok=True)
    container = images("from", "scratch").split()[-1]
    images("add", "--quiet", container, base, "/")
    images("commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(base)
    yield images
    images("rmi", "--all", "--force")


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_an_image_holds_what_the_trainer_needs_and_no_tools(images: Images, variant: str) -> None:
    images.build(variant)
    found = images.run(variant, "sh", "-c", "id -u; command -v pip pip3 gcc cc make; ls /var/lib/apt/lists; pwd; ls")
    assert found.split() == ["10001", "/opt/two-tower-trainer", "LICENSE", "configs", "launch", "trainer"]
    refused = images.run(variant, "sh", "-c", "touch trainer/new configs/new /opt/venv/new 2>&1; echo ended")
    assert refused.count("Permission denied") == 3
    assert "Prepared data -> checkpoints." in images.run(variant, "python", "-m", "trainer.train", "--help")
    # that for CUDA can be imported where the driver is alone, which the container's runtime brings
    script = "from importlib.metadata import version; print(version('torchrec'), version('fbgemm-gpu%s'))"
    images.run(variant, "python", "-c", script % {"cpu": "-cpu", "gpu": ""}[variant])


def test_a_change_of_code_keeps_the_layer_of_the_wheels(images: Images, tmp_path: Path) -> None:
    images.build("cpu")
    for name in ("Dockerfile", "LICENSE", "configs", "launch", "trainer", "pyproject.toml", ".dockerignore"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "trainer" / "new.py").write_text('print("new")\n')
    project = tmp_path / "pyproject.toml"
    project.write_text(project.read_text() + "\n# no dependency\n")
    told = images.build("cpu", tmp_path)
    wheels = told.index("pip --python /opt/venv install --requirement")
    assert told[wheels:].split("--> ")[1].startswith("Using cache"), told
    assert images.run("cpu", "python", "-m", "trainer.new").split()[-1] == "new"


def test_a_container_prepares_trains_over_processes_evaluates_and_exports(images: Images, tmp_path: Path) -> None:
    images.build("cpu")
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:  # pytest keeps them to itself
        parent.chmod(0o755)
    (tmp_path / "job.sh").write_text("""set -eu
export OMP_NUM_THREADS=1 NPROC_PER_NODE=2
python -m trainer.prepare data=generated data.dir=/data/prepared data.users=300 data.items=200
launch/torchrun.sh train data.dir=/data/prepared run.dir=/data/run run.epochs=1 data.global_batch_size=512
launch/torchrun.sh evaluate run.dir=/data/run
launch/torchrun.sh export run.dir=/data/run
launch/torchrun.sh export run.dir=/data/run export.verify=true
""")
    told = images.run("cpu", "bash", "/data/job.sh", volume=tmp_path)
    assert "each there once" in told
    assert "test/recall@10" in json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (tmp_path / "run" / "item_embeddings" / "_SUCCESS").exists()
    assert (tmp_path / "run" / "item_embeddings").stat().st_uid == 10001
