"""An Open vSwitch without a kernel: private ovsdb-server and ovs-vswitchd with the dummy datapath, in a temp directory.

    with Sandbox() as ovs:
        ovs.add_bridge("br-int")
        ovs.add_port("br-int", "p1", 1)                       # a dummy port with this OpenFlow number
        ovs.ofctl("add-flow", "br-int", "in_port=1,actions=drop")
        ovs.trace("br-int", "in_port=1,icmp,nw_src=10.0.0.1") # what a packet would meet, as text
        driver = FlowDriver(ovs.mgmt("br-int"), run_dir=ovs.run_dir)

Nothing of the machine's own Open vSwitch is touched, no device, namespace or route is made. Both daemons end with the
`with` block, and also when the test process is killed. The fixture `sandbox` (`tests/ovs/test_*.py`: import it from
here) gives one with a bridge `br-int`.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType

import pytest

from agent.devices import REVALIDATE_WITHIN
from agent.drivers.openflow import Era, FlowDriver
from agent.era import era
from agent.openflow.flow import Flow
from agent.pipeline import PULSE

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
DEADLINE = 20.0  # seconds for anything that has to happen
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until it is so; TimeoutError after DEADLINE."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.005)


def listens(path: str) -> bool:
    """Whether somebody takes connections there; the socket is there a moment before that."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


class CommandError(Exception):
    """A command failed; with what it said."""


class Sandbox:
    """A running Open vSwitch. `run_dir` is what /run/openvswitch is elsewhere: sockets, pid files, logs.

    `dummy`: "override" makes every port a dummy one, whatever its type; "" leaves tunnels as they are: what goes into
    one comes out of a bridge with the route to it.
    """

    def __init__(self, *, dummy: str = "override") -> None:
        self._dummy = f"--enable-dummy={dummy}" if dummy else "--enable-dummy"
        self.run_dir = tempfile.mkdtemp(prefix="tealnet-sandbox-")
        self.db = f"unix:{self.run_dir}/db.sock"
        self._env = os.environ | {name: self.run_dir for name in ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Sandbox:
        try:
            self._run("ovsdb-tool", "create", f"{self.run_dir}/conf.db", SCHEMA)
            self._start("ovsdb-server", f"{self.run_dir}/conf.db", f"--remote=p{self.db}")
            wait_until(lambda: listens(f"{self.run_dir}/db.sock"), "ovsdb-server")
            self.vsctl("--no-wait", "init")
            self.start_vswitchd()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End both daemons and remove the directory."""
        for name in reversed(list(self._processes)):
            self._end(name)
        shutil.rmtree(self.run_dir, ignore_errors=True)

    # -- the daemons

    def start_vswitchd(self) -> None:
        """Start it and wait until it answers; bridges are those that the database knows."""
        options = [self._dummy, "--disable-system", "--disable-system-route", "--no-chdir"]
        self._start("ovs-vswitchd", self.db, *options)
        wait_until(lambda: listens(self.vswitchd_ctl()), "ovs-vswitchd")
        # As the agent sets it. Tests often wait until no packet goes an old way: a second by default.
        pace = f"other_config:max-revalidator={REVALIDATE_WITHIN}"
        # Returns when it is applied.
        self.vsctl("set", "Open_vSwitch", ".", f"external-ids:starts={time.monotonic_ns()}", pace)

    def kill_vswitchd(self) -> None:
        """As a crash would: SIGKILL, and wait for its end. Flows and conntrack are gone with it."""
        self._end("ovs-vswitchd")

    def restart_vswitchd(self) -> None:
        """Crash and come back, as with a supervisor."""
        self.kill_vswitchd()
        self.start_vswitchd()

    def vswitchd_ctl(self) -> str:
        """Path of its control socket (see `agent.drivers.unixctl`); "" while it is not up."""
        path = Path(self.run_dir, "ovs-vswitchd.pid")
        text = path.read_text().strip() if path.exists() else ""
        return f"{self.run_dir}/ovs-vswitchd.{text}.ctl" if text else ""

    def _start(self, name: str, *arguments: str) -> None:
        options = ["-vconsole:off", "-vsyslog:off", "--pidfile", f"--log-file={self.run_dir}/{name}.log"]
        self._processes[name] = subprocess.Popen([*DIES_WITH_US, name, *options, *arguments], env=self._env)

    def _end(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        Path(self.run_dir, f"{name}.pid").unlink(missing_ok=True)

    # -- bridges and ports

    def add_bridge(self, name: str) -> None:
        """A bridge as the agent makes it: fail_mode secure, no in-band control, all OpenFlow versions."""
        versions = ",".join(f"OpenFlow1{minor}" for minor in range(6))
        settings = ["fail_mode=secure", f"protocols={versions}", "other-config:disable-in-band=true"]
        self.vsctl("add-br", name, "--", "set", "Bridge", name, "datapath_type=dummy", *settings)

    def add_port(self, bridge: str, name: str, ofport: int) -> None:
        """A dummy port with this OpenFlow port number."""
        self.vsctl(
            "add-port", bridge, name, "--", "set", "Interface", name, "type=dummy", f"ofport_request={ofport}"
        )  # fmt: skip

    def add_tunnel(self, bridge: str, name: str, ofport: int) -> None:
        """The VXLAN port of a host: remote_ip=flow, key=flow."""
        options = ["options:remote_ip=flow", "options:key=flow"]
        interface = ["set", "Interface", name, "type=vxlan", f"ofport_request={ofport}", *options]
        self.vsctl("add-port", bridge, name, "--", *interface)

    def mgmt(self, bridge: str) -> str:
        """Path of the bridge's OpenFlow management socket."""
        return f"{self.run_dir}/{bridge}.mgmt"

    # -- commands

    def vsctl(self, *arguments: str) -> str:
        """ovs-vsctl."""
        return self._run("ovs-vsctl", f"--db={self.db}", "--timeout=20", *arguments).strip()

    def ofctl(self, command: str, bridge: str, *arguments: str, text: str | None = None) -> str:
        """ovs-ofctl COMMAND BRIDGE … on OpenFlow 1.5; `text` is its standard input ("-" in the arguments)."""
        options, _, verb = command.rpartition(" ")
        line = ["ovs-ofctl", "-O", "OpenFlow15", *options.split(), verb, f"unix:{self.mgmt(bridge)}", *arguments]
        return self._run(*line, text=text)

    def appctl(self, *arguments: str) -> str:
        """ovs-appctl to ovs-vswitchd."""
        return self._run("ovs-appctl", *arguments)

    def flows(self, bridge: str, *, cookies: bool = False) -> list[str]:
        """All flows as ovs-ofctl says them, without statistics, sorted; without cookies unless asked for."""
        dump = self.ofctl("--no-stats --no-names dump-flows", bridge)
        lines = [line.strip() for line in dump.splitlines()]
        return sorted(line if cookies else re.sub(r"^cookie=0x[0-9a-f]+, ", "", line) for line in lines)

    def trace(self, bridge: str, flow: str, *options: str) -> str:
        """ofproto/trace of a packet given as a flow ("in_port=1,icmp,…"); options like "--ct-next", "trk,est"."""
        return self.appctl("ofproto/trace", bridge, flow, *options)

    def inject(self, port: str, packet: str) -> None:
        """Have a packet (a flow as for `trace`, or hex bytes) arrive at a dummy port, and wait for its upcall."""
        self.appctl("netdev-dummy/receive", port, packet)

    def _run(self, *command: str, text: str | None = None) -> str:
        done = subprocess.run(command, env=self._env, check=False, text=True, input=text, capture_output=True)
        if done.returncode:
            raise CommandError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout


@asynccontextmanager
async def connected(
    socket: str, *, run_dir: str, pulse: Flow | None = None, era: Era | None = None
) -> AsyncIterator[FlowDriver]:
    """A flow driver that is connected; it goes on reconnecting until the end of the block."""
    driver = FlowDriver(socket, run_dir=run_dir, pulse=pulse, era=era)
    task = asyncio.create_task(driver.run())
    try:
        async with asyncio.timeout(DEADLINE):
            await is_connected(driver)
        yield driver
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def as_agent(ovs: Sandbox) -> AbstractAsyncContextManager[FlowDriver]:
    """A flow driver for br-int that is connected and does all that an agent's does."""
    return connected(ovs.mgmt("br-int"), run_dir=ovs.run_dir, pulse=PULSE, era=era())


async def is_connected(driver: FlowDriver, *, connections: int = 1) -> None:
    """Wait for (at least) this many connections, the last of them in place."""
    async for facts in driver.changes():
        if facts.connected and facts.connections >= connections:
            return


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A sandbox with a bridge br-int."""
    with Sandbox() as ovs:
        ovs.add_bridge("br-int")
        yield ovs
