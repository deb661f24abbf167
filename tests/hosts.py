"""Two hosts on one machine: network namespaces with a cable between them, each with a name that both know."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.commands import REPOSITORY


@dataclass(frozen=True)
class Host:
    """One of them.

    Attributes:
        name: by which the other reaches it.
        namespace: of its network.
    """

    name: str
    namespace: str

    def start(self, command: list[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Runs a command there, which takes the host's name for this machine's; appends to a log."""
        named = 'hostname "$0" && exec "$@"'
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", named, self.name]
        with log.open("ab") as stream:
            return subprocess.Popen([*inside, *command], cwd=REPOSITORY, env={**os.environ, **environment},
                                    stdout=stream, stderr=stream)  # fmt: skip

    def cut_power(self) -> None:
        """Kills whatever runs there, at once."""
        while pids := _run("ip", "netns", "pids", self.namespace).split():
            subprocess.run(["kill", "-KILL", *pids], check=False, stderr=subprocess.DEVNULL)


def unable() -> str | None:
    """Why there can be no hosts here, or None."""
    if shutil.which("ip") is None:
        return "ip is not installed: make test-slurm installs iproute2 on Debian, as root"
    probe = f"trainer-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True, check=False)
    return f"no network namespaces: {made.stderr.strip()}" if made.returncode else None


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Both up, on a network of their own; what runs there ends with them."""
    number = os.getpid()
    hosts = (Host("host0.test", f"trainer-{number}-0"), Host("host1.test", f"trainer-{number}-1"))
    addresses = [f"10.77.0.{place + 1}" for place in range(len(hosts))]
    names = "127.0.0.1 localhost\n" + "".join(
        f"{address} {host.name}\n" for address, host in zip(addresses, hosts, strict=True)
    )
    ends = [f"veth{number % 100000}{letter}" for letter in "ab"]
    with ExitStack() as stack:
        for host in hosts:
            _run("ip", "netns", "add", host.namespace)
            stack.callback(_run, "ip", "netns", "delete", host.namespace)
            stack.callback(host.cut_power)
            own = Path("/etc/netns") / host.namespace  # which `ip netns exec` lays over /etc
            own.mkdir(parents=True)
            stack.callback(shutil.rmtree, own)
            (own / "hosts").write_text(names)
        _run("ip", "link", "add", ends[0], "netns", hosts[0].namespace, "type", "veth",
             "peer", "name", ends[1], "netns", hosts[1].namespace)  # fmt: skip
        for host, end, address in zip(hosts, ends, addresses, strict=True):
            for arguments in (["address", "add", f"{address}/24", "dev", end], ["link", "set", end, "up"],
                              ["link", "set", "lo", "up"]):  # fmt: skip
                _run("ip", "-n", host.namespace, *arguments)
        yield hosts


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
