"""SLURM itself, on this machine as two nodes: a controller, two daemons and munge, in a folder that goes with them."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NODES = (socket.gethostname().split(".")[0], "zzz-second")
"""In SLURM's order, by name; the first is this machine's own, where launch/slurm.sbatch has the nodes meet."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
_CONFIG = """\
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0
NodeName={nodes[0]} NodeHostname=localhost Port={ports[1]} CPUs={cpus} State=UNKNOWN
NodeName={nodes[1]} NodeHostname=localhost Port={ports[2]} CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def unable() -> str | None:
    """Why no SLURM can run here, or None."""
    lacking = [program for program in PROGRAMS if _found(program) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed: make test-slurm installs slurm-wlm and munge on Debian, as root"
    try:
        with socket.socket() as own:
            own.bind((NODES[0], 0))
    except OSError as error:
        return f"this machine's own name, {NODES[0]}, does not lead to it ({error}): add it to /etc/hosts"
    return None if os.geteuid() == 0 else "SLURM's daemons start jobs, which takes root"


class Cluster:
    """What a user of it types.

    Args:
        environment: of its commands.
        folder: with the logs of its daemons.
    """

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.environment, self.folder = environment, folder

    def run(self, *command: str, **more: str) -> str:
        """Standard output of a command that must succeed."""
        result = subprocess.run(command, env=self.environment | more, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, f"{' '.join(command)}: {result.stdout}{result.stderr}"
        return result.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """All that scontrol says of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, met: Callable[[dict[str, str]], object], seconds: float = 480) -> dict[str, str]:
        """A job once it is as wanted."""
        deadline = time.monotonic() + seconds
        while not met(job := self.job(number)):
            ended = job["JobState"] in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL")
            assert not ended and time.monotonic() < deadline, f"{job}\n{self.log(job)}"
            time.sleep(0.1)
        return job

    def wait_until_idle(self) -> None:
        """Until both nodes are up, and whatever ran there is gone."""
        _until(lambda: self._states() == "idle\nidle")

    def _states(self) -> str:
        """Of the nodes; nothing as long as the controller is not up."""
        told = subprocess.run(["sinfo", "--noheader", "--Node", "--format=%T"], env=self.environment, text=True,
                              capture_output=True, check=False)  # fmt: skip
        return told.stdout.strip()

    def log(self, job: dict[str, str]) -> str:
        """What a job has written so far."""
        path = Path(job.get("StdOut", ""))
        return path.read_text() if path.is_file() else ""


@contextmanager
def slurm_cluster(**environment: str) -> Iterator[Cluster]:
    """A cluster that is up; its jobs and daemons end with it.

    Args:
        environment: of its commands and jobs, besides this process's.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # where the user munge may enter
    folder.chmod(0o755)
    config = folder / "slurm.conf"
    cpus = len(os.sched_getaffinity(0))
    config.write_text(_CONFIG.format(folder=folder, ports=_free_ports(3), nodes=NODES, cpus=cpus))
    cluster = Cluster(os.environ | {"SLURM_CONF": str(config)} | environment, folder)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(_daemon(_munge(folder)))
        _until((folder / "munge" / "socket").exists)
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        stack.enter_context(_daemon([_found("slurmctld") or "", "-D", "-f", str(config)]))
        for node in NODES:
            stack.enter_context(_daemon([_found("slurmd") or "", "-D", "-N", node, "-f", str(config)]))
        cluster.wait_until_idle()
        stack.callback(cluster.run, "scancel", "--signal=KILL", "--full", "--user=root")
        yield cluster


def _munge(folder: Path) -> list[str]:
    place = folder / "munge"
    place.mkdir(mode=0o755)
    (place / "key").write_bytes(secrets.token_bytes(128))
    (place / "key").chmod(0o400)
    for path in (place, place / "key"):
        shutil.chown(path, "munge", "munge")
    files = [f"--{kind}={place / name}" for kind, name in
             (("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("seed-file", "seed"))]  # fmt: skip
    return ["runuser", "-u", "munge", "--", _found("munged") or "", "--foreground", *files]


@contextmanager
def _daemon(command: list[str]) -> Iterator[None]:
    daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        daemon.terminate()
        try:
            daemon.wait(timeout=20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _until(met: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not met():
        assert time.monotonic() < deadline, "the cluster is not as it should be"
        time.sleep(0.1)


def _found(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_ports(how_many: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(how_many)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
