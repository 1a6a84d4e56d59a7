from __future__ import annotations

import asyncio
import ctypes
import subprocess
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from agent.drivers.underlay import TunnelNeighbours, UnderlayFacts, read_underlay

pytestmark = pytest.mark.ovs

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
VTEPS = ("192.0.2.1", "192.0.2.2")
GUARD = 'table netdev t {{ chain {0} {{ type filter hook ingress device "{0}" priority 0; policy drop; }}; }}'


def run_inside(namespace: Any, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a thread of its own that has entered `namespace`."""
    results: list[T] = []

    def enter_and_run() -> None:
        with open(namespace.path) as file:
            assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) == 0
        results.append(asyncio.run(work()))

    thread = threading.Thread(target=enter_and_run)
    thread.start()
    thread.join()
    return results[0]


def set_up(ovs: Any, workload: Any, *, number: int) -> None:
    """A host on netdev: VTEP on br-underlay with the NIC up0, br-int with vxlan0 and one workload."""
    vtep, other = VTEPS[number - 1], VTEPS[2 - number]
    run, inside = ovs.namespace.run, workload.run
    netdev = "datapath_type=netdev"
    run("nft", GUARD.format("up0"))
    ovs.vsctl(
        "add-br", "br-underlay", "--", "set", "bridge", "br-underlay", netdev, "--", "add-port", "br-underlay", "up0"
    )
    run("sh", "-ec", f"ip link set lo up; ip addr add {vtep}/24 dev br-underlay; ip link set br-underlay up")
    ovs.vsctl("add-br", "br-int", "--", "set", "bridge", "br-int", netdev, "fail_mode=secure")
    options = ("options:remote_ip=flow", "options:key=flow", f"options:local_ip={vtep}", "ofport_request=1")
    ovs.vsctl("add-port", "br-int", "vxlan0", "--", "set", "interface", "vxlan0", "type=vxlan", *options)
    run("ip", "link", "add", "name", "tn2", "type", "veth", "peer", "name", "eth0", "netns", str(workload.pid))
    run("sh", "-ec", f"nft '{GUARD.format('tn2')}'; ip link set tn2 up")
    inside("ip", "link", "set", "eth0", "address", f"02:00:00:00:00:0{number}", "up")
    inside("ip", "addr", "add", f"10.0.0.{number}/24", "dev", "eth0")
    inside("ip", "neigh", "add", f"10.0.0.{3 - number}", "lladdr", f"02:00:00:00:00:0{3 - number}", "dev", "eth0")
    ovs.vsctl("add-port", "br-int", "tn2", "--", "set", "interface", "tn2", "ofport_request=2")
    flows = f"in_port=2,actions=set_tunnel:7,set_field:{other}->tun_dst,output:1\nin_port=1,actions=output:2\n"
    command = ["ovs-ofctl", "add-flows", f"{ovs.run_dir}/br-int.mgmt", "-"]
    subprocess.run(command, input=flows, text=True, check=True, env=ovs.env)


@pytest.fixture
def two_hosts(private_ovs_factory: Any, own_namespace_factory: Any) -> tuple[Any, Any, Any]:
    a, b = private_ovs_factory(), private_ovs_factory()
    workload_a, workload_b = own_namespace_factory(), own_namespace_factory()
    a.namespace.run(
        "ip", "link", "add", "name", "up0", "type", "veth", "peer", "name", "up0", "netns", str(b.namespace.pid)
    )
    for host in (a, b):
        host.namespace.run("ip", "link", "set", "up0", "up")
    set_up(a, workload_a, number=1)
    set_up(b, workload_b, number=2)
    return a, b, workload_a


def keep(ovs: Any, *vteps: str) -> dict[str, str | None]:
    async def work() -> dict[str, str | None]:
        kept = await TunnelNeighbours("netdev", run_dir=ovs.run_dir).keep(vteps)
        return {vtep: failure.reason if failure else None for vtep, failure in kept.items()}

    return run_inside(ovs.namespace, work)


def forget(ovs: Any) -> None:
    ovs.namespace.run("ip", "neigh", "flush", "all")
    ovs.appctl("tnl/neigh/flush")


def ping(workload: Any) -> bool:
    """Whether the one and only packet was answered."""
    command = workload.command("ping", "-c", "1", "-W", "1", "10.0.0.2")
    return subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0


def test_no_first_packet_is_lost(two_hosts: Any) -> None:
    a, b, workload = two_hosts
    for _ in range(3):  # the second and third time the ARP replies match live megaflows: OVS alone learns nothing
        forget(a)
        forget(b)
        assert keep(a, VTEPS[1]) == {VTEPS[1]: None}
        assert keep(b, VTEPS[0]) == {VTEPS[0]: None}
        assert ping(workload)


def test_a_wrong_entry_is_corrected(two_hosts: Any) -> None:
    a, b, workload = two_hosts
    assert keep(b, VTEPS[0]) == {VTEPS[0]: None}
    a.appctl("tnl/neigh/set", "br-underlay", VTEPS[1], "02:00:00:00:00:99")
    assert keep(a, VTEPS[1]) == {VTEPS[1]: None}
    assert "02:00:00:00:00:99" not in a.appctl("tnl/neigh/show")
    assert ping(workload)


def test_one_that_does_not_answer_fails_alone(two_hosts: Any) -> None:
    a, _, _ = two_hosts
    forget(a)
    assert keep(a, "192.0.2.9", VTEPS[1], "198.51.100.1", VTEPS[0]) == {
        "192.0.2.9": "Unresolved",
        VTEPS[1]: None,
        "198.51.100.1": "NoRoute",
        VTEPS[0]: "NoRoute",  # its own
    }


def test_underlay_is_where_the_vtep_is_and_as_narrow_as_its_nic(two_hosts: Any) -> None:
    a, _, _ = two_hosts
    a.namespace.run("ip", "link", "set", "up0", "mtu", "1400")
    in_bridge = {"br-underlay": {"up0"}}

    async def read(vtep: str) -> UnderlayFacts:
        return await read_underlay(vtep, members=lambda bridge: in_bridge.get(bridge, set()))

    assert run_inside(a.namespace, lambda: read(VTEPS[0])) == UnderlayFacts(VTEPS[0], "br-underlay", 1400)
    assert run_inside(a.namespace, lambda: read(VTEPS[1])) == UnderlayFacts(VTEPS[1])
