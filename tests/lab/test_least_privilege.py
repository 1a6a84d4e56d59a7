"""The daemons do their work with what the systemd units in deploy/ leave them, and nothing more."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tealnet.lab import Host
from tealnet.lab.host import python_env
from tealnet.lab.wait import wait_for
from tests.lab.looks import look
from tests.lab.stand import ACTIVE, READY, SOON, Stand, expect_reached, standing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

DEPLOY = Path(__file__).parents[2] / "deploy"
NUMBERS = {"net_admin": 12, "sys_ptrace": 19, "sys_admin": 21}  # capability.h


def bounding(unit: str) -> list[str]:
    """The capabilities that a unit grants, as setpriv(1) calls them."""
    found = re.search(r"^CapabilityBoundingSet=(.*)$", (DEPLOY / unit).read_text(), re.M)
    assert found is not None
    return [name.removeprefix("CAP_").lower() for name in found[1].split()]


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with standing("t-least", hosts=2) as found:
        yield found


def restart_confined(stand: Stand, name: str, caps: list[str]) -> None:
    """The agent of a host anew, as its unit would start it."""
    host = stand.lab.host(name)
    stand.lab.kill(name, "agent")
    wait_for(lambda: not stand._in_session(name), seconds=SOON, what=f"{name}'s session has ended")
    grant = "--bounding-set=-all" + "".join(f",+{cap}" for cap in caps)
    argv = ["setpriv", "--no-new-privs", grant, "--inh-caps=-all"]
    argv += [sys.executable, "-m", "agent", "--config", "/etc/tealnet/agent.yaml"]
    host.spawn("agent", argv, log="/var/log/tealnet/agent.log", env=python_env())


def status_of(host: Host) -> dict[str, str]:
    """Of the running agent, from /proc."""
    process = host.process("agent")
    assert process is not None
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def listeners(host: Host) -> list[str]:
    """Where the agent listens by TCP or UDP."""
    process = host.process("agent")
    assert process is not None
    shown = host.output(["sh", "-c", "cat /proc/net/tcp /proc/net/tcp6"]).splitlines()
    inodes = {line.split()[9] for line in shown if len(line.split()) > 9 and line.split()[3] == "0A"}
    owned = {str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir() if link.is_symlink()}
    return sorted(inode for inode in inodes if f"socket:[{inode}]" in owned)


def test_the_agent_does_all_its_work_with_the_capabilities_of_its_unit(stand: Stand) -> None:
    caps = bounding("tealnet-agent.service")
    mask = sum(1 << NUMBERS[cap] for cap in caps)
    for name in ("h1", "h2"):
        restart_confined(stand, name, caps)
        stand.host_becomes(name, READY)
        status = status_of(stand.lab.host(name))
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == mask
        assert status["NoNewPrivs"] == "1"
        assert listeners(stand.lab.host(name)) == []
    stand.tenant("acme")
    stand.network("acme/web", "10.0.0.0/24", "fd00::/64")
    for name in ("h1", "h2"):
        stand.port(f"acme/on-{name}", "web", name)
    stand.sync()
    one, two = stand.workloads("acme/on-h1", "acme/on-h2")
    expect_reached(one, two.v4, two.v6)
    # It repairs, and takes away again.
    stand.lab.host("h1").run(["ovs-ofctl", "-O", "OpenFlow15", "del-flows", "br-int"])
    wait_for(lambda: len(look(stand.lab.host("h1"), "flows")["flows"]) > 10, seconds=SOON, what="flows are back")
    stand.becomes("acme/on-h1", ACTIVE)
    expect_reached(one, two.v4)
    stand.clean()


def test_each_capability_is_needed(stand: Stand) -> None:
    """Without one of the first two nothing can be plugged: what the unit grants is not a wish list."""
    for missing in ("net_admin", "sys_admin"):
        restart_confined(stand, "h1", [cap for cap in bounding("tealnet-agent.service") if cap != missing])
        stand.tenant("acme")
        stand.network("acme/web", "10.0.0.0/24")
        stand.port("acme/one", "web", "h1")
        stand.client.sync(timeout=1)
        assert stand.state("acme/one").state != ACTIVE, missing
        stand.restart_agent("h1")
        stand.becomes("acme/one", ACTIVE)
        stand.clean()


def test_the_controller_needs_no_privilege_at_all() -> None:
    text = (DEPLOY / "tealnet-controller.service").read_text()
    assert bounding("tealnet-controller.service") == []
    assert "User=tealnet" in text and "NoNewPrivileges=yes" in text
