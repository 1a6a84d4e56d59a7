"""What is somebody else's is never touched, and what may not be plugged is refused by the agent alone."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from agent.drivers.allow import Allowed, DeviceFacts, PlacementRefused, device, netns_path
from agent.objects import Addressing, Link, Namespace, NetnsKind, NetnsRef

HOST = NetnsRef(NetnsKind.HOST, "")
isolated = pytest.mark.isolated
Shell = Callable[[str], str]


TAPS = Allowed(devices=("tap*",), never=frozenset({"tap7"}))


@pytest.mark.parametrize(
    ("path", "globs"),
    [
        ("/run/netns/cni-1", []),
        ("/run/netns/other", ["/run/netns/cni-*"]),
        ("/run/netns/cni-1/../../../proc/1/ns/net", ["/run/netns/cni-*"]),
        ("/run/netns/cni-1/x", ["/run/netns/cni-*"]),
        ("/run/netns/cni-1/../x", ["/run/netns/cni-*/*/x"]),
        ("//run/netns/cni-1", ["/run/netns/cni-*", "//run/netns/cni-*"]),
        ("run/netns/cni-1", ["run/netns/cni-*"]),
        ("/run/netns/cni-1/", ["/run/netns/cni-*/"]),
    ],
)
def test_paths_that_are_not_allowed(path: str, globs: list[str]) -> None:
    with pytest.raises(PlacementRefused) as refused:
        netns_path(path, globs)
    assert refused.value.reason == "NetnsNotAllowed"


def test_a_path_that_is_allowed() -> None:
    netns_path("/run/netns/cni-1", ["/proc/*/ns/net", "/run/netns/cni-*"])


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (DeviceFacts("eth0"), "DeviceNotAllowed"),
        (DeviceFacts("tap0", loopback=True), "DeviceNotAllowed"),
        (DeviceFacts("tap0", kind="bridge"), "DeviceNotAllowed"),
        (DeviceFacts("tap0", kind="openvswitch"), "DeviceNotAllowed"),
        (DeviceFacts("tap0", alias="tealnet:0123"), "DeviceNotAllowed"),
        (DeviceFacts("tap0", addresses=("192.0.2.1/24",)), "DeviceInUse"),
        (DeviceFacts("tap0", default_route=True), "DeviceInUse"),
        (DeviceFacts("tap0", master_kind="bridge"), "DeviceInUse"),
        (DeviceFacts("tap0", master_kind="openvswitch", foreign_ovs_ports={"tap0"}), "DeviceInUse"),
        (DeviceFacts("tap0", carries="tap0.7"), "DeviceInUse"),
    ],
)
def test_devices_that_are_refused(facts: DeviceFacts, reason: str) -> None:
    with pytest.raises(PlacementRefused) as refused:
        device(facts, TAPS)
    assert refused.value.reason == reason


def test_the_hosts_own_devices_are_refused_whatever_they_are_called() -> None:
    with pytest.raises(PlacementRefused) as refused:
        device(DeviceFacts("tap7", kind="tun"), TAPS)
    assert refused.value.reason == "DeviceNotAllowed" and "the host's own" in str(refused.value)


def test_a_device_that_is_allowed() -> None:
    device(DeviceFacts("tap0", kind="tun", master_kind="openvswitch"), TAPS)


@isolated
async def test_foreign_things_are_not_touched(stack: Any, sh: Shell) -> None:
    sh("ip netns add foo.bar; ip netns add plain; touch /run/netns/some.file")
    sh("ip link add tnabc type veth peer name eth0 netns foo.bar; ip link set tnabc up; ip link add br9 type bridge")
    sh("nft add table netdev other; nft add chain netdev other tnabc")
    before = sh("ip -d link; ip -n foo.bar -d link; ls /run/netns; nft list ruleset")
    assert await stack.netns.read() == {} == await stack.link.read()
    assert await stack.guard.read() == {} == await stack.address.read()
    for key in ("foo.bar", "tnabc", "br9", "plain", "some.file"):
        for driver in (stack.netns, stack.link, stack.address):
            assert await driver.apply({}, [key]) == {}
    w = stack.workload(1, "foo.bar")
    assert (await stack.netns.apply({"foo.bar": Namespace("foo.bar")}, ()))["foo.bar"].reason == "NetnsForeign"
    assert (await stack.link.apply({w.device: w.link}, ()))[w.device].reason == "NetnsForeign"
    assert before.replace("some.file\n", "") == sh(
        "ip -d link; ip -n foo.bar -d link; ls /run/netns; nft list ruleset"
    ).replace("some.file\n", "")


@isolated
async def test_things_in_the_way_are_reported(stack: Any, sh: Shell) -> None:
    w = stack.workload(1)
    await stack.netns.apply({w.name: Namespace(w.name)}, ())
    sh(f"ip -n {w.name} link add eth0 type bridge")
    assert (await stack.link.apply({w.device: w.link}, ()))[w.device].reason == "InterfaceExists"
    sh(f"ip -n {w.name} link del eth0; ip link add {w.device} type bridge")
    assert (await stack.link.apply({w.device: w.link}, ()))[w.device].reason == "DeviceForeign"
    assert (await stack.address.apply({w.device: w.addressing}, ()))[w.device].reason == "LinkMissing"
    sh(f"ip link del {w.device}")
    assert (await stack.guard.apply({w.device: stack.guard_of(w)}, ()))[w.device].reason == "DeviceMissing"
    stack.want(w)
    await stack.settle()


@isolated
async def test_what_a_dying_agent_left_is_taken_over(stack: Any, sh: Shell) -> None:
    w = stack.workload(1)
    sh("mkdir -p /run/netns; touch /run/netns/acme.w1")  # the name, but not the namespace
    assert await stack.netns.apply({w.name: Namespace(w.name)}, ()) == {}
    sh(f"ip link add {w.device} type veth peer name eth0 netns acme.w1")  # the pair, but not its mark
    stack.want(w)
    await stack.settle()


@isolated
async def test_the_hosts_namespace_is_never_entered(stack_factory: Any, sh: Shell) -> None:
    stack = stack_factory(allowed=Allowed(netns=("/run/netns/*", "/proc/*/ns/net", "/run/*")))
    sh("mkdir -p /run/netns; touch /run/netns/cni-a; mount --bind /proc/self/ns/net /run/netns/cni-a")
    sh("ln -s /proc/self/ns/net /run/link")
    for path in ("/run/netns/cni-a", "/run/link", "/proc/self/ns/net"):
        failures = await stack.link.apply(
            {"tn1": Link("tn1", NetnsRef(NetnsKind.PATH, path), "x0", "02:00:00:00:00:01", 1430, "u")}, ()
        )
        assert failures["tn1"].reason == "NetnsNotAllowed", path
    assert "x0" not in sh("ip link")


@isolated
async def test_namespaces_of_others_by_path(stack_factory: Any, sh: Shell) -> None:
    stack = stack_factory(allowed=Allowed(netns=("/run/netns/*", "/proc/*/ns/net")))
    sh("ip netns add cni-1")
    ours = stack.workload(1)
    stack.want(ours)
    await stack.settle()
    command = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", "cni-1", "sleep", "60"]
    holder = subprocess.Popen(command)  # noqa: ASYNC220
    try:
        for number, path in ((7, "/run/netns/cni-1"), (8, f"/proc/{holder.pid}/ns/net")):
            w = stack.workload(number, interface=f"net{number}")
            w = type(w)(number, NetnsRef(NetnsKind.PATH, path), f"net{number}", routes=())
            stack.want(w)
            failures = await stack.step()
            assert failures == {}
            await stack.look()
            assert stack.pending() == set()
            # After a restart a path outside the directory is not known until it is written again.
            later = stack_factory(allowed=stack.allowed)
            later.want(*([w, ours]))
            await later.step()
            await later.look()
            assert {key for _, key in later.pending()} <= {f"tn{7:012x}"}
        stolen = type(ours)(9, NetnsRef(NetnsKind.PATH, ours.netns.path), "net9")
        assert (await stack.link.apply({stolen.device: stolen.link}, ()))[stolen.device].reason == "NetnsNotAllowed"
        assert "cni-1" in sh("ip netns list")
    finally:
        holder.kill()
        holder.wait()
    gone = type(ours)(9, NetnsRef(NetnsKind.PATH, "/run/netns/cni-9"), "net9")
    assert (await stack.link.apply({gone.device: gone.link}, ()))[gone.device].reason == "NetnsMissing"


@isolated
async def test_a_namespace_is_never_shared_between_tenants(stack_factory: Any, sh: Shell) -> None:
    """Whatever path leads to it, and also to a process that did not plug the first one."""
    stack = stack_factory(allowed=Allowed(netns=("/run/netns/*", "/run/other/*")))
    sh("ip netns add cni-1; ip netns add cni-2; mkdir /run/other; touch /run/other/x")
    sh("mount --bind /run/netns/cni-1 /run/other/x")
    make = type(stack.workload(1))

    def at(number: int, path: str, tenant: str) -> Any:
        return make(number, NetnsRef(NetnsKind.PATH, path), f"net{number}", routes=(), tenant=tenant)

    first, second = at(1, "/run/netns/cni-1", "acme"), at(2, "/run/other/x", "acme")  # a tenant with itself
    stack.want(first, second)
    assert await stack.step() == {}
    for drivers in (stack, stack_factory(allowed=stack.allowed)):
        for path in ("/run/netns/cni-1", "/run/other/x"):
            stranger = at(3, path, "globex")
            assert (await drivers.link.apply({stranger.device: stranger.link}, ()))[stranger.device].reason == (
                "NetnsInUse"
            )
            assert "net3" not in sh("ip -n cni-1 link")
    elsewhere = at(4, "/run/netns/cni-2", "globex")
    assert await stack.link.apply({elsewhere.device: elsewhere.link}, ()) == {}
    # When those who were there have gone, it is anybody's.
    assert await stack.link.apply({}, (first.device, second.device)) == {}
    assert await stack.link.apply({stranger.device: stranger.link}, ()) == {}
    assert "net3" in sh("ip -n cni-1 link")


@isolated
async def test_devices_of_the_host(stack_factory: Any, sh: Shell) -> None:
    stack = stack_factory(allowed=Allowed(devices=("tap*", "lo", "br*", "tn*")))
    sh("ip link add br0 type bridge")
    for name in ("tap0", "tap1", "eth9"):
        sh(f"ip tuntap add {name} mode tap")

    async def write(name: str) -> str:
        failures = await stack.link.apply({name: Link(name, HOST, "", "", 1430, "u")}, ())
        return failures[name].reason if failures else ""

    assert await write("eth9") == "DeviceNotAllowed"
    assert await write("lo") == "DeviceNotAllowed"
    assert await write("br0") == "DeviceNotAllowed"
    assert await write("tap9") == "DeviceMissing"
    sh("ip addr add 192.0.2.1/24 dev tap0")
    assert await write("tap0") == "DeviceInUse"
    sh("ip addr flush dev tap0; ip link set tap0 up; ip route add default dev tap0")
    assert await write("tap0") == "DeviceInUse"
    sh("ip route del default; ip link set tap0 master br0")
    assert await write("tap0") == "DeviceInUse"
    sh("ip link set tap0 nomaster; ip link add tap0.7 link tap0 type macvlan")
    assert await write("tap0") == "DeviceInUse"
    sh("ip link del tap0.7; ip link set tap0 down")
    stack.foreign_ovs_ports.add("tap0")
    assert await write("tap0") == "DeviceInUse"
    stack.foreign_ovs_ports.clear()
    assert await write("tap0") == "" and await write("tap1") == ""
    assert "mtu 1430" in sh("ip link show tap0")
    wanted = Addressing("tap0", HOST, "")
    assert await stack.address.apply({"tap0": wanted}, ()) == {}
    assert await stack.address.read() == {"tap0": wanted}
    assert "UP" in sh("ip link show tap0")
    sh("ip addr add 192.0.2.1/24 dev tap0")
    assert (await stack.link.read())["tap0"].flaw
    assert await stack.address.apply({}, ["tap0"]) == {} == await stack.link.apply({}, ["tap0", "tap1"])
    assert "state DOWN" in sh("ip link show tap0") and await stack.link.read() == {}
