"""launch/: the topology reaches torchrun, and everything else reaches Hydra as it was typed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
BASH = shutil.which("bash") or "/bin/bash"

# Words that a shell would split, expand or drop if the scripts quoted carelessly.
OVERRIDES = ["run.dir=my runs/$HOME", "model.query.hidden=[256, 128]", "data.dir='a b'", "+x=*", "y=", "", 'z="q"']


def write_executable(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def recorded_torchrun(tmp_path: Path, arguments: list[str], **environment: str) -> list[str]:
    """What torchrun is called with when bash runs `arguments` with this environment and no other."""
    record = tmp_path / "argv"
    record.unlink(missing_ok=True)
    write_executable(tmp_path / "bin" / "torchrun", f"#!{BASH}\nprintf '%s\\0' \"$@\" >'{record}'\n")
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    subprocess.run([BASH, *arguments], check=True, cwd=ROOT, env={"PATH": path, **environment})
    return record.read_text().split("\0")[:-1]


def option(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1]


@pytest.mark.parametrize("command", ["train", "evaluate", "export"])
def test_overrides_arrive_as_typed(tmp_path: Path, command: str) -> None:
    argv = recorded_torchrun(tmp_path, ["launch/torchrun.sh", command, *OVERRIDES], NPROC_PER_NODE="2")
    assert argv[argv.index("-m") + 1 :] == [f"trainer.{command}", *OVERRIDES]


def test_one_node_by_default(tmp_path: Path) -> None:
    argv = recorded_torchrun(tmp_path, ["launch/torchrun.sh", "train"])
    assert argv[: argv.index("-m")] == [
        "--nnodes", "1", "--nproc-per-node", "1", "--max-restarts", "0",
        "--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "--shutdown-timeout", "120",
        "--standalone", "--local-addr", "localhost",
    ]  # fmt: skip


def test_one_process_a_gpu_where_there_are_gpus(tmp_path: Path) -> None:
    write_executable(tmp_path / "bin" / "nvidia-smi", f"#!{BASH}\n")
    argv = recorded_torchrun(tmp_path, ["launch/torchrun.sh", "train"])
    assert option(argv, "--nproc-per-node") == "gpu"


def test_several_nodes_meet_at_the_endpoint(tmp_path: Path) -> None:
    argv = recorded_torchrun(
        tmp_path,
        ["launch/torchrun.sh", "train"],
        NNODES="1:4",
        RDZV_ENDPOINT="host0:29400",
        NODE_RANK="0",
        LOCAL_ADDR="10.0.0.7",
        MAX_RESTARTS="3",
    )
    assert "--standalone" not in argv
    assert option(argv, "--nnodes") == "1:4"
    assert option(argv, "--rdzv-backend") == "c10d"
    assert option(argv, "--rdzv-endpoint") == "host0:29400"
    assert option(argv, "--rdzv-conf") == "read_timeout=600,is_host=true"
    assert option(argv, "--local-addr") == "10.0.0.7"
    assert option(argv, "--max-restarts") == "3"


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "usage: launch/torchrun.sh train|evaluate|export|replay"),
        (["prepare", "data=movielens"], {}, "usage: launch/torchrun.sh train|evaluate|export|replay"),
        (["train"], {"NNODES": "2"}, "NNODES=2 needs RDZV_ENDPOINT=HOST:PORT"),
    ],
)
def test_refuses_what_it_cannot_launch(arguments: list[str], environment: dict[str, str], message: str) -> None:
    environment = {"PATH": os.environ["PATH"], **environment}
    result = subprocess.run(
        [BASH, "launch/torchrun.sh", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert message in result.stderr


def test_slurm_runs_torchrun_sh_on_every_node(tmp_path: Path) -> None:
    head = shutil.which("head")
    write_executable(tmp_path / "bin" / "head", f'#!{BASH}\nexec {head} "$@"\n')
    write_executable(tmp_path / "bin" / "bash", f'#!{BASH}\nexec {BASH} "$@"\n')
    write_executable(tmp_path / "bin" / "scontrol", f"#!{BASH}\nprintf 'node07\\nnode08\\n'\n")
    # The task of the second node.
    write_executable(
        tmp_path / "bin" / "srun",
        f'#!{BASH}\nwhile [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=1 exec "$@"\n',
    )
    argv = recorded_torchrun(
        tmp_path,
        ["launch/slurm.sbatch", "train", *OVERRIDES],
        SLURM_JOB_ID="12345",
        SLURM_JOB_NUM_NODES="2",
        SLURM_JOB_NODELIST="node[07-08]",
        SLURM_SUBMIT_DIR=str(ROOT),
        SLURM_RESTART_COUNT="1",
        NPROC_PER_NODE="8",
    )
    assert option(argv, "--nnodes") == "2"
    assert option(argv, "--nproc-per-node") == "8"
    assert option(argv, "--rdzv-endpoint") == "node07:22345"
    assert option(argv, "--rdzv-id") == "12345.1"
    assert option(argv, "--rdzv-conf").endswith("is_host=false")
    assert argv[argv.index("-m") + 1 :] == ["trainer.train", *OVERRIDES]


def batch_script(tmp_path: Path, task: str, **environment: str) -> subprocess.Popen[str]:
    """launch/slurm.sbatch, with a task that does something else; what scontrol is told to requeue is written down."""
    hosts = 'if [[ $1 == show ]]; then echo node07; else echo "$@" >>'
    write_executable(tmp_path / "bin" / "scontrol", f"#!{BASH}\n{hosts}'{tmp_path / 'requeued'}'; fi\n")
    write_executable(tmp_path / "bin" / "srun", f"#!{BASH}\n{task}\n")
    given = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "node07"}
    given |= {"SLURM_SUBMIT_DIR": str(ROOT), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    return subprocess.Popen([BASH, "launch/slurm.sbatch", "train"], cwd=ROOT, env=given | environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


@pytest.mark.parametrize(
    ("status", "environment", "is_requeued"),
    [
        (0, {}, False),
        (1, {}, False),
        (75, {}, True),
        (75, {"SLURM_RESTART_COUNT": "2", "MAX_REQUEUES": "3"}, True),
        (75, {"SLURM_RESTART_COUNT": "3", "MAX_REQUEUES": "3"}, False),
    ],
)
def test_a_slurm_job_that_was_preempted_goes_back_into_the_queue(
    tmp_path: Path, status: int, environment: dict[str, str], is_requeued: bool
) -> None:
    script = batch_script(tmp_path, f"exit {status}", **environment)
    out, err = script.communicate(timeout=30)
    assert script.returncode == status
    assert (tmp_path / "requeued").exists() == is_requeued
    if is_requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 12345\n"
    assert ("into the queue" in out + err) == (status == 75)


@pytest.mark.parametrize(("name", "is_requeued"), [("USR1", True), ("TERM", False)])
def test_what_slurm_signals_to_the_batch_script(tmp_path: Path, name: str, is_requeued: bool) -> None:
    """USR1, before the time is over, reaches the task. After TERM what becomes of the job is for SLURM to say."""
    ready, end = tmp_path / "ready", tmp_path / "end"
    task = f"trap 'exit 75' USR1\ntouch '{ready}'\nwhile [[ ! -e '{end}' ]]; do sleep 0.05; done\nexit 75"
    script = batch_script(tmp_path, task)
    while not ready.exists():
        time.sleep(0.01)
    script.send_signal(signal.Signals[f"SIG{name}"])
    if name == "TERM":
        time.sleep(0.3)
        assert script.poll() is None  # the task has not ended yet
        end.touch()
    script.communicate(timeout=30)
    assert script.returncode == 75
    assert (tmp_path / "requeued").exists() == is_requeued


def test_kubernetes_container_runs_torchrun_sh(tmp_path: Path) -> None:
    service, job = yaml.safe_load_all((ROOT / "launch" / "kubernetes.yaml").read_text())
    spec = job["spec"]
    [container] = spec["template"]["spec"]["containers"]
    # What the kubelet fills in for the second pod.
    fields = {"metadata.annotations['batch.kubernetes.io/job-completion-index']": "1", "status.podIP": "10.0.0.9"}
    environment = {
        variable["name"]: variable["value"]
        if "value" in variable
        else fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        for variable in container["env"]
    }
    argv = recorded_torchrun(tmp_path, container["args"], **environment)
    assert int(option(argv, "--nnodes")) == spec["completions"] == spec["parallelism"]
    assert option(argv, "--nproc-per-node") == "gpu"
    assert option(argv, "--rdzv-conf").endswith("is_host=false")
    assert option(argv, "--local-addr") == "10.0.0.9"
    assert argv[argv.index("-m") + 1 :] == ["trainer.train", *container["args"][2:]]

    # Pod 0 of an Indexed Job is JOB-0, and SUBDOMAIN makes it JOB-0.SERVICE.
    name, subdomain = job["metadata"]["name"], spec["template"]["spec"]["subdomain"]
    assert option(argv, "--rdzv-endpoint").rpartition(":")[0] == f"{name}-0.{subdomain}"
    assert service["metadata"]["name"] == subdomain
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


@pytest.mark.slow
def test_two_nodes_of_the_real_torchrun_meet() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NNODES": "2",
        "NPROC_PER_NODE": "1",
        "RDZV_ENDPOINT": f"127.0.0.1:{port}",
        "LOCAL_ADDR": "127.0.0.1",
    }
    nodes = [
        subprocess.Popen(
            [BASH, "launch/torchrun.sh", "train", "--help"],
            cwd=ROOT,
            env={**environment, "NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for node in nodes:
            output, _ = node.communicate(timeout=120)
            assert node.returncode == 0, output
            assert "run.dir" in output or "run:" in output, output
    finally:
        for node in nodes:
            node.kill()


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; the dev extra brings it")
    scripts = [".ci/run", "launch/slurm.sbatch", *sorted(str(path) for path in (ROOT / "launch").glob("*.sh"))]
    result = subprocess.run([shellcheck, *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
