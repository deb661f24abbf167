"""Pods without a cluster: a manifest's containers as the kubelet and a runtime would start them, in namespaces.

Each has a root of its own, read-only as the manifest has it, in which this repository lies where the image has it; the
volumes where the manifest mounts them; its user, without privileges; its host name and addresses; its command line and
variables as they stand. What a machine without a container runtime lacks is not there: image, GPUs, seccomp.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.commands import REPOSITORY

IMAGE = {
    "PATH": "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": "/opt/two-tower-trainer",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
}
"""What the Dockerfile sets."""
_WORKDIR, _VENV = "/opt/two-tower-trainer", "/opt/venv"
_ENTER = """\
set -euo pipefail
root=$1 upper=$2 name=$3 user=$4 hosts=$5 mounts=$6; shift 6
mount --make-rprivate /
mount -t tmpfs none "$upper"
mkdir "$upper/changes" "$upper/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$upper/changes,workdir=$upper/work" "$root"
for place in proc dev sys; do mount --rbind "/$place" "$root/$place"; done
chmod a+rx "$root/root"  # where Python may lie
while IFS=: read -r from to; do
    mkdir -p "$root$to"
    mount --bind "$from" "$root$to"
done <<<"$mounts"
mount --bind "$hosts" "$root/etc/hosts"
mount -o remount,ro,bind "$root"
hostname "$name"
exec chroot "$root" setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs --bounding-set=-all -- \
    env --chdir=/opt/two-tower-trainer -i "$@"
"""


@dataclass(frozen=True)
class Pod:
    """One of a workload.

    Attributes:
        spec: of the pod, as the manifest has it.
        name: its host name, by which it knows itself.
        fields: what it is told of itself, by fieldPath.
        hosts: names by address, for all pods of the workload.
        volumes: folder of each volume, by its name.
        override: variables that a user would change for CPUs.
    """

    spec: dict[str, Any]
    name: str
    fields: Mapping[str, str]
    hosts: Mapping[str, str]
    volumes: Mapping[str, Path]
    override: Mapping[str, str]

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        """Its init containers to their end, then its container, which is still running."""
        for container in self.spec.get("initContainers", []):
            status = self._started(container, log).wait(timeout=60)
            assert status == 0, f"{container['name']} ended with {status}: {log.read_text()}"
        [container] = self.spec["containers"]
        return self._started(container, log)

    def _started(self, container: dict[str, Any], log: Path) -> subprocess.Popen[bytes]:
        security, user = container["securityContext"], self.spec["securityContext"]["runAsUser"]
        assert security["readOnlyRootFilesystem"] and security["capabilities"] == {"drop": ["ALL"]}
        assert "command" not in container, "the image's entrypoint hands over to args"
        environment = {**IMAGE, "OMP_NUM_THREADS": "1", **self._variables(container), **self.override}
        # scripts of the environment name their Python by its place, so it is there as well
        bound = [f"{REPOSITORY}:{_WORKDIR}", f"{sys.prefix}:{_VENV}", f"{sys.prefix}:{sys.prefix}"]
        bound += [f"{self.volumes[mount['name']]}:{mount['mountPath']}" for mount in container["volumeMounts"]]
        scratch = Path(tempfile.mkdtemp(prefix="pod-", dir=log.parent))
        for name in ("root", "upper"):
            (scratch / name).mkdir()
        hosts = scratch / "hosts"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {names}\n" for ip, names in self.hosts.items()))
        arguments = [_expanded(argument, environment) for argument in container["args"]]
        inside = [str(scratch / "root"), str(scratch / "upper"), self.name, str(user), str(hosts), "\n".join(bound)]
        variables = [f"{name}={value}" for name, value in environment.items()]
        command = ["unshare", "--mount", "--uts", "bash", "-c", _ENTER, "pod", *inside, *variables, *arguments]
        with log.open("ab") as stream:
            return subprocess.Popen(command, stdout=stream, stderr=stream)

    def _variables(self, container: dict[str, Any]) -> dict[str, str]:
        return {
            variable["name"]: variable["value"]
            if "value" in variable
            else self.fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
            for variable in container.get("env", [])
        }


def _expanded(argument: str, environment: Mapping[str, str]) -> str:
    """As the kubelet does with $(NAME)."""
    return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), argument)


def unable() -> str | None:
    """Why no pod can run here, or None."""
    if os.geteuid() != 0:
        return "pods without a cluster take namespaces and mounts, so root"
    with tempfile.TemporaryDirectory(prefix="pod-") as folder:
        script = (
            f"cd {folder} && mount --make-rprivate / && mount -t tmpfs none . && cd {folder} && mkdir a b c && "
            "mount -t overlay overlay -o lowerdir=/,upperdir=a,workdir=b c"
        )
        tried = subprocess.run(["unshare", "--mount", "--uts", "bash", "-c", script], capture_output=True, text=True,
                               check=False)  # fmt: skip
    return f"no namespaces or overlays: {tried.stderr.strip()}" if tried.returncode else None
