"""A lab host: a machine with its own Open vSwitch, uplink and agent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import yaml

from tealnet.lab import fabric
from tealnet.lab.errors import LabError
from tealnet.lab.fabric import Fabric, Network
from tealnet.lab.machine import Machine, call
from tealnet.lab.process import Process, below
from tealnet.lab.wait import wait_for

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
DATABASE = "/etc/openvswitch/conf.db"
SOURCES = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0
SWITCH = ("ovsdb-server", "ovs-vswitchd")
VSWITCHD_ENV = {"GLIBC_TUNABLES": "glibc.malloc.tcache_max=4096:glibc.malloc.tcache_count=127"}
"""As in deploy/ovs-vswitchd.conf, which says why."""
AGENT = "agent"


class Parts(StrEnum):
    """How much of a host there is."""

    ALL = "all"
    """Open vSwitch with the underlay bridge, and the agent."""
    SWITCH = "switch"
    """Open vSwitch with the underlay bridge; nothing of ours."""
    BARE = "bare"
    """A machine fresh from the shelf: addresses on its network card, no Open vSwitch running."""


class Family(StrEnum):
    """Family of the tunnel addresses. Hosts have both on the underlay; this chooses what agents use."""

    V4 = "v4"
    V6 = "v6"


def python_env() -> dict[str, str]:
    """Environment of our daemons: they run from the same sources as this process and never fork with gRPC open."""
    return {"PYTHONPATH": str(SOURCES), "PYTHONUNBUFFERED": "1", "GRPC_ENABLE_FORK_SUPPORT": "0"}


class Host(Machine):
    """One host; `number` is the last part of its addresses."""

    def __init__(self, name: str, directory: Path, *, number: int, parts: Parts, family: Family) -> None:
        super().__init__(name, directory)
        self.number = number
        self.parts = parts
        self.family = family
        self.switch_env: Mapping[str, str] = VSWITCHD_ENV  # of Open vSwitch's processes

    @property
    def vtep(self) -> str:
        """The tunnel address."""
        v6 = self.family is Family.V6
        return fabric.underlay_address6(self.number) if v6 else fabric.underlay_address(self.number)

    @property
    def management(self) -> str:
        """The address from which the agent speaks to the controller."""
        return fabric.management_address(self.number)

    @property
    def processes(self) -> tuple[str, ...]:
        """Names of what runs here when all is well."""
        return {Parts.ALL: (*SWITCH, AGENT), Parts.SWITCH: SWITCH, Parts.BARE: ()}[self.parts]

    # -- building it

    def build(self, cables: Fabric, *, mtu: int) -> None:
        """Start the machine, connect it and start its Open vSwitch; the agent is started by itself."""
        self.create()
        cables.connect(self, self.number, network=Network.UNDERLAY, device="eth0", mtu=mtu)
        cables.connect(self, self.number, network=Network.MANAGEMENT, device="mgmt0")
        # The card belongs to the bridge: did the kernel answer ARP on it too, peers would learn its MAC for the
        # address of the bridge, and Open vSwitch ends tunnels only at the MAC of the bridge.
        mute = ["link set eth0 addrgenmode none", "link set eth0 arp off"]
        card = self._addresses("eth0") if self.parts is Parts.BARE else mute
        self.ip(
            [
                "link set lo up",
                *card,
                "link set eth0 up",
                f"address add {self.management}/24 dev mgmt0",
                "link set mgmt0 up",
            ]
        )
        if self.parts is not Parts.BARE:
            self._build_switch()

    def _addresses(self, device: str) -> list[str]:
        return [
            f"address replace {fabric.underlay_address(self.number)}/24 dev {device}",
            f"address replace {fabric.underlay_address6(self.number)}/64 dev {device} nodad",
        ]

    def _build_switch(self) -> None:
        self.output(["ovsdb-tool", "create", DATABASE, SCHEMA])
        self.start("ovsdb-server")
        self.start("ovs-vswitchd")
        # Tunnels of the userspace datapath leave through a bridge that has the tunnel address and the network card.
        ids = f"external_ids:system-id={self.name} external_ids:hostname={self.name}"
        bridge = "add-br br-underlay -- set Bridge br-underlay datapath_type=netdev -- add-port br-underlay eth0"
        self.output(f"ovs-vsctl --timeout=30 set Open_vSwitch . {ids} -- {bridge}".split())
        # A restarted vswitchd makes the bridge's device anew, without addresses; a real machine's network
        # configuration puts them back, and so does the holder.
        batch = [*self._addresses("br-underlay"), "link set br-underlay up"]
        self.ask("keep", device="br-underlay", batch="\n".join(batch) + "\n")

    def configure_agent(self, *, servers: Sequence[str]) -> None:
        """Write the agent's settings; certificates lie beside them already."""
        settings = {
            "host": self.name,
            "servers": list(servers),
            "ca": "/etc/tealnet/ca.crt",
            "cert": "/etc/tealnet/host.crt",
            "key": "/etc/tealnet/host.key",
            "vtep": self.vtep,
            "uplink": "eth0",
            "underlay_bridge": "br-underlay",
            "state_dir": "/var/lib/tealnet",
            "run_dir": "/run/tealnet",
            "datapath": "netdev",
            "allow_netns": [],
            "allow_device": [],
            "log_level": "info",
        }
        (self.disk("/etc/tealnet") / "agent.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))

    # -- its processes

    def start(self, name: str) -> Process:
        """Start one of the host's processes and wait until it listens.

        Raises:
            LabError: it runs already, or it does not come up.
        """
        if name not in (*SWITCH, AGENT):
            raise LabError(f"no process {name!r}; there are: {', '.join((*SWITCH, AGENT))}")
        if name == AGENT:
            argv = [sys.executable, "-m", "agent", "--config", "/etc/tealnet/agent.yaml"]
            return self.spawn(name, argv, log="/var/log/tealnet/agent.log", env=python_env())
        options = ["--pidfile", f"--log-file=/var/log/openvswitch/{name}.log", "-vconsole:off"]
        words = [DATABASE, "--remote=punix:/run/openvswitch/db.sock"] if name == "ovsdb-server" else []
        started = self.spawn(
            name, [name, *words, *options], log=f"/var/log/openvswitch/{name}.out", env=self.switch_env
        )
        inside = self.record()["processes"][name]["inside"]
        where = "db.sock" if name == "ovsdb-server" else f"{name}.{inside}.ctl"
        wait_for(
            lambda: not started.alive() or self._listens(f"/run/openvswitch/{where}"),
            seconds=START_SECONDS,
            what=f"{name} on {self.name}",
        )
        if not started.alive():
            raise LabError(f"{name} on {self.name} ended at once: see `teal lab logs {self.name} {name}`")
        return started

    def agent_http(self, path: str) -> str:
        """What its agent says on its unix socket (`/status`, `/metrics`). Raises OSError if it does not answer."""
        holder = self.holder()
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(5)
            peer.connect(f"/proc/{holder.pid if holder else 0}/root/run/tealnet/agent.sock")
            peer.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            data = b"".join(iter(lambda: peer.recv(1 << 16), b""))
        return data.partition(b"\r\n\r\n")[2].decode()

    def rests(self) -> bool:
        """Nothing is being done on it, nor will be by itself: no link changes. True where no agent answers."""
        try:
            now = json.loads(self.agent_http("/status"))
        except (OSError, ValueError):
            return True
        return not now["spares"]["low"] and not any(layer["pending"] for layer in now["layers"].values())

    def _listens(self, path: str) -> bool:
        """Whether a unix socket inside the host accepts connections."""
        holder = self.holder()
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(f"/proc/{holder.pid}/root{path}" if holder else path)
            except OSError:
                return False
        return True

    # -- commands

    def argv(self, words: Sequence[str], *, netns: str = "", cwd: str = "") -> list[str]:
        """The command line that runs `words` inside the host; `netns` is a name in /run/netns or a path."""
        return [*self.enter(netns=netns, cwd=cwd), *words]

    def run(
        self, argv: Sequence[str], *, seconds: float = 30.0, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the host to its end. Any exit code is an answer; taking too long raises LabError."""
        return self._run(self.argv(argv), seconds=seconds, given=given)

    def run_in_netns(
        self, netns: str, argv: Sequence[str], *, seconds: float = 30.0, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The same in one of the host's network namespaces. /sys shows the host's own, not this one's."""
        return self._run(self.argv(argv, netns=netns), seconds=seconds, given=given)

    def output(self, argv: Sequence[str], *, seconds: float = 30.0) -> str:
        """What a command inside the host prints. Raises LabError if it fails."""
        return call(self.argv(argv), seconds=seconds)

    def popen(
        self, argv: Sequence[str], *, netns: str = "", out: IO[Any] | int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        """Start a command inside the host; end it with `stop`. Its errors go where its output goes."""
        return subprocess.Popen(
            self.argv(argv, netns=netns),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def _run(self, argv: Sequence[str], *, seconds: float, given: str | None) -> subprocess.CompletedProcess[str]:
        # A session of its own, so that at the deadline also what nsenter has forked can be ended.
        with subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if given is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(given, timeout=seconds)
            except subprocess.TimeoutExpired:
                raise LabError(f"{' '.join(argv)}: no end within {seconds:g} s") from None
            finally:
                stop(process)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)


def stop(process: subprocess.Popen[str], number: signal.Signals = signal.SIGKILL, *, seconds: float = 10.0) -> str:
    """End what `popen` started, with everything that started in turn, and return the output not yet read.

    The signal goes to the command and not to the nsenter above it: that one collects it and ends alike. Killed itself,
    it would leave a dead process to an outer process 1 that may be slow to collect it, and till then the machine's
    process namespace could not end.
    """
    if process.returncode is not None:
        return ""
    for pid in below(process.pid) or [process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return process.communicate(timeout=seconds)[0] or ""
