"""Open vSwitch of our own for a test: ovsdb-server and ovs-vswitchd with their own sockets and network namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ovs.sandbox import listens

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
DEADLINE = 20.0
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.01)


class OwnNamespace:
    """A network namespace without a name; it goes with its process."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen([*DIES_WITH_US, "unshare", "--net", "sleep", "infinity"])
        self.path = f"/proc/{self._holder.pid}/ns/net"
        self.pid = self._holder.pid
        mine = os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(self.path) != mine and self._is_asleep(), "a namespace")

    def _is_asleep(self) -> bool:
        return Path(f"/proc/{self.pid}/comm").read_text().strip() == "sleep"

    def run(self, *command: str) -> str:
        return subprocess.run(self.command(*command), check=True, text=True, capture_output=True).stdout

    def command(self, *command: str) -> list[str]:
        return ["nsenter", f"--net={self.path}", *command]

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


class PrivateOvs:
    """One host's Open vSwitch. `run_dir` has db.sock, the pid files and control sockets, as /run/openvswitch would."""

    def __init__(self) -> None:
        self.run_dir = tempfile.mkdtemp(prefix="tealnet-ovs-")
        self.socket = f"unix:{self.run_dir}/db.sock"
        self.env = os.environ | {name: self.run_dir for name in ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR")}
        self.namespace = OwnNamespace()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        subprocess.run(["ovsdb-tool", "create", f"{self.run_dir}/conf.db", SCHEMA], check=True)

    def start_db(self) -> None:
        options = [f"--remote=p{self.socket}", "--log-file", "--pidfile", "-vconsole:off"]
        self._start("ovsdb-server", [*DIES_WITH_US, "ovsdb-server", f"{self.run_dir}/conf.db", *options])
        until(lambda: listens(f"{self.run_dir}/db.sock"), "ovsdb-server")

    def start_vswitchd(self) -> None:
        command = [*DIES_WITH_US, "ovs-vswitchd", self.socket, "--log-file", "--pidfile", "-vconsole:off"]
        self._start("ovs-vswitchd", self.namespace.command(*command))

    def _start(self, name: str, command: list[str]) -> None:
        self._processes[name] = subprocess.Popen(command, env=self.env)

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def vsctl(self, *args: str) -> str:
        command = ["ovs-vsctl", f"--db={self.socket}", "--timeout=20", *args]
        return subprocess.run(command, env=self.env, check=True, text=True, capture_output=True).stdout.strip()

    def appctl(self, *args: str) -> str:
        command = ["ovs-appctl", *args]
        return subprocess.run(command, env=self.env, check=True, text=True, capture_output=True).stdout

    def add_devices(self, *names: str) -> None:
        """Veth pairs to plug; their other ends are called after them."""
        batch = "".join(f"ip link add name {name} type veth peer name p{name};" for name in names)
        self.namespace.run("sh", "-ec", batch)

    def close(self) -> None:
        for name in list(self._processes):
            self.kill(name)
        self.namespace.close()
        shutil.rmtree(self.run_dir)


@pytest.fixture
def private_ovs_factory() -> Iterator[Callable[[], PrivateOvs]]:
    """Makes running instances, ended with the test."""
    made: list[PrivateOvs] = []

    def make() -> PrivateOvs:
        instance = PrivateOvs()
        made.append(instance)
        instance.start_db()
        instance.vsctl("--no-wait", "init")
        instance.start_vswitchd()
        return instance

    if os.geteuid() != 0 or shutil.which("ovs-vswitchd") is None:
        pytest.skip("needs root and ovs-vswitchd")
    try:
        yield make
    finally:
        for instance in made:
            instance.close()


@pytest.fixture
def private_ovs(private_ovs_factory: Callable[[], PrivateOvs]) -> PrivateOvs:
    """One running instance."""
    return private_ovs_factory()


@pytest.fixture
def own_namespace_factory() -> Iterator[Callable[[], OwnNamespace]]:
    """Makes namespaces, gone with the test."""
    made: list[OwnNamespace] = []

    def make() -> OwnNamespace:
        made.append(OwnNamespace())
        return made[-1]

    try:
        yield make
    finally:
        for namespace in made:
            namespace.close()
