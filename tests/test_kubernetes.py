"""launch/*.yaml against the API's schemas, and what their containers run, run as it stands."""

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubeflow_trainer_api.models as kubeflow
import kubernetes_validate
import pytest
import yaml

from tests.commands import REPOSITORY, succeed
from tests.pods import Pod, unable
from trainer.runtime import checkpoint

INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
MODELS = {"JobSet": kubeflow.JobsetV1alpha2JobSet, "TrainJob": kubeflow.TrainerV1alpha1TrainJob,
          "TrainingRuntime": kubeflow.TrainerV1alpha1TrainingRuntime}  # fmt: skip


def documents(manifest: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((REPOSITORY / "launch" / manifest).read_text()))


def jobs(manifest: str) -> dict[str, dict[str, Any]]:
    """Specs of the Jobs in it by name, those of a JobSet and of a runtime of Trainer, which is one, too."""
    found = {}
    for document in documents(manifest):
        spec = document["spec"]
        match document["kind"]:
            case "Job":
                found[document["metadata"]["name"]] = spec
            case "JobSet":
                found |= {job["name"]: job["template"]["spec"] for job in spec["replicatedJobs"]}
            case "TrainingRuntime":
                found |= {job["name"]: job["template"]["spec"] for job in spec["template"]["spec"]["replicatedJobs"]}
    return found


def pods(manifest: str) -> dict[str, dict[str, Any]]:
    """Specs of the pods of each."""
    return {name: job["template"]["spec"] for name, job in jobs(manifest).items()}


@pytest.mark.parametrize("version", ["1.29", "1.33", "1.37"])
def test_what_kubernetes_itself_knows_is_as_its_schemas_say(version: str) -> None:
    """Strictly: no field that there is not. The Jobs in other workloads too."""
    for manifest in ("kubernetes.yaml", "kubernetes_results.yaml"):
        for document in documents(manifest):
            kubernetes_validate.validate(document, version, strict=True)
    for manifest in ("jobset.yaml", "trainjob.yaml"):
        for name, spec in jobs(manifest).items():
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}
            kubernetes_validate.validate(job, version, strict=True)


@pytest.mark.parametrize("manifest", ["jobset.yaml", "trainjob.yaml"])
def test_what_kubeflow_adds_is_as_its_models_say(manifest: str) -> None:
    """They drop what they do not know."""
    for document in documents(manifest):
        model = MODELS[document["kind"]].from_dict(document)
        assert dropped(document, model.to_dict()) == []


def dropped(given: Any, taken: Any, place: str = "") -> list[str]:
    """Fields that are given and not taken, or otherwise."""
    if not isinstance(given, dict | list):
        return [] if given == taken else [f"{place} is {taken}"]
    fields = given.items() if isinstance(given, dict) else enumerate(given)
    there = taken if isinstance(taken, dict) else dict(enumerate(taken))
    return [
        found
        for key, value in fields
        for found in (dropped(value, there[key], f"{place}.{key}") if key in there else [f"{place}.{key}"])
    ]


def test_no_manifest_says_anything_of_the_model() -> None:
    """Topology only, and where data and runs are."""
    manifests = ("kubernetes.yaml", "kubernetes_results.yaml", "jobset.yaml", "trainjob.yaml")
    for spec in [pod for manifest in manifests for pod in pods(manifest).values()]:
        [container] = spec["containers"]
        script, _, *overrides = container["args"]
        assert script == "launch/torchrun.sh"
        assert {override.split("=")[0] for override in overrides} <= {"data.dir", "run.dir", "run.data_dir"}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}


@pytest.fixture(name="storage")
def _storage(tmp_path: Path) -> Path:
    """What the claim is of, as the user in the image may write it."""
    folder = tmp_path / "storage"
    succeed("trainer.prepare", "data=generated", f"data.dir={folder}/prepared", "data.users=1000", "data.items=300")
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, 10001, 10001)
    return folder


class Workload:
    """Pods that run together: two for a training, one for what follows it."""

    def __init__(self, spec: dict[str, Any], names: list[str], subdomain: str, storage: Path, **override: str) -> None:
        addresses = [f"127.0.0.{place + 2}" for place in range(len(names))]
        hosts = {ip: f"{name}.{subdomain} {name}" for ip, name in zip(addresses, names, strict=True)}
        self.log, self.pods = storage.parent / f"{names[0]}.log", list[Pod]()
        for place, (name, address) in enumerate(zip(names, addresses, strict=True)):
            volumes = {"storage": storage}
            for volume in ("cache", "shm", "tmp"):
                volumes[volume] = storage.parent / name / volume
                volumes[volume].mkdir(parents=True, exist_ok=True)
                volumes[volume].chmod(0o777)
            fields = {INDEX: str(place), "status.podIP": address}
            own = {key: value.format(place) for key, value in override.items()}
            self.pods.append(Pod(spec, name, fields, hosts, volumes, own))

    def start(self) -> list[subprocess.Popen[bytes]]:
        return [pod.start(self.log) for pod in self.pods]

    def succeed(self) -> None:
        assert [each.wait(timeout=480) for each in self.start()] == [0] * len(self.pods), self.log.read_text()[-5000:]


CPU = {"NPROC_PER_NODE": "1"}
"""What a user changes who has no GPUs."""
needs_pods = pytest.mark.skipif(unable() is not None, reason=str(unable()))


@pytest.mark.cluster
@pytest.mark.timeout(1500)
@needs_pods
def test_an_indexed_job_trains_is_evicted_goes_on_and_others_follow(storage: Path) -> None:
    spec = pods("kubernetes.yaml")["two-tower-train"]
    names = ["two-tower-train-0", "two-tower-train-1"]
    training, run_dir = Workload(spec, names, "two-tower-train", storage, **CPU), storage / "runs" / "first"
    running = training.start()
    wait_until(lambda: checkpoint.newest(run_dir), running, training.log)
    for pod in running:  # as the kubelet does with what is evicted
        pod.terminate()
    assert [pod.wait(timeout=180) for pod in running] == [75, 75], training.log.read_text()[-5000:]
    training.succeed()
    assert "goes on from /storage/runs/first/checkpoints" in training.log.read_text()
    for command in ("evaluate", "export"):
        name = f"two-tower-{command}"
        Workload(pods("kubernetes_results.yaml")[name], [name], "", storage, **CPU).succeed()
    assert_results(run_dir)


@pytest.mark.cluster
@pytest.mark.timeout(1500)
@needs_pods
def test_a_jobset_trains_then_evaluates_and_exports(storage: Path) -> None:
    names = ["two-tower-train-0-0", "two-tower-train-0-1"]
    Workload(pods("jobset.yaml")["train"], names, "two-tower", storage, **CPU).succeed()
    for name in ("evaluate", "export"):
        pod = f"two-tower-{name}-0-0"
        Workload(pods("jobset.yaml")[name], [pod], "two-tower", storage, **CPU).succeed()
    assert_results(storage / "runs" / "first")


@pytest.mark.cluster
@pytest.mark.timeout(1500)
@needs_pods
def test_a_trainjob_trains(storage: Path) -> None:
    """Its place comes from Kubeflow Trainer's own variables, its arguments from the job instead of the runtime."""
    spec = pods("trainjob.yaml")["node"]
    _, job = documents("trainjob.yaml")
    spec["containers"][0]["args"] = job["spec"]["trainer"]["args"]
    names = [f"two-tower-train-node-0-{place}" for place in range(job["spec"]["trainer"]["numNodes"])]
    told = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": "{0}", "PET_MASTER_PORT": "29400",
            "PET_MASTER_ADDR": f"{names[0]}.two-tower-train"}  # fmt: skip
    Workload(spec, names, "two-tower-train", storage, **told).succeed()
    assert checkpoint.newest(storage / "runs" / "first") is not None


def assert_results(run_dir: Path) -> None:
    """Of a training over two ranks, and of what follows."""
    rows = yaml.safe_load((run_dir / "sharding.json").read_text())["user_id"]["rows_by_rank"]
    assert len(rows) == 2 and (run_dir / "metrics.json").is_file()
    assert (run_dir / "item_embeddings" / "_SUCCESS").is_file()


def wait_until(met: Callable[[], object], running: list[subprocess.Popen[bytes]], log: Path) -> None:
    deadline = time.monotonic() + 300
    while not met():
        assert all(pod.poll() is None for pod in running) and time.monotonic() < deadline, log.read_text()[-5000:]
        time.sleep(0.02)
