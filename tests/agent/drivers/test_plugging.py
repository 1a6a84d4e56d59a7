"""Namespaces, links, guards and addresses against the real kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from agent import names
from agent.drivers.netlink import ROUTE, listen
from agent.features.spares import spare_link
from agent.objects import Guard, Link, Marks, Namespace, Route

pytestmark = pytest.mark.isolated
RTNLGRP_LINK = 1
Shell = Callable[[str], str]
Until = Callable[..., Awaitable[None]]


async def test_plugs_and_unplugs(stack: Any, sh: Shell) -> None:
    one, two = stack.workload(1), stack.workload(2)
    stack.want(one, two)
    await stack.settle()
    inside = sh("ip -n acme.w1 addr show eth0; ip -n acme.w1 route; ip -n acme.w1 -6 route; ip -n acme.w1 addr show lo")
    for part in ("10.0.0.11/24", "fd00::11/64", "fe80::ff:fe00:1/64", "mtu 1430", mac_of(1), "default via 10.0.0.1"):
        assert part in inside
    assert "default via fe80::1 dev eth0" in inside and "127.0.0.1/8" in inside and "tentative" not in inside
    assert "tx-checksum-ip-generic: off" in sh("ip netns exec acme.w1 ethtool -k eth0")
    host = sh(f"ip -d addr show {one.device}")
    assert (
        "NOARP,UP" in host
        and "mtu 1430" in host
        and "inet " not in host
        and "inet6 " not in host
        and f"alias tealnet:acme/{1:032x}" in host
    )
    stack.want_no(one, two)
    await stack.settle()
    assert sh("ls /run/netns; ip -o link show type veth; nft list table netdev tealnet | grep chain || true") == ""


def mac_of(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


async def test_what_is_wanted_no_more_goes_and_what_was_added_stays(stack: Any, stack_factory: Any, sh: Shell) -> None:
    stack.want(stack.workload(1, addresses=("10.0.0.11/24", "10.0.0.12/24", "fd00::11/64")))
    await stack.settle()
    sh("ip -n acme.w1 addr add 10.9.9.9/24 dev eth0; ip -n acme.w1 route add 10.8.0.0/16 via 10.9.9.1")
    await stack.look()
    assert stack.pending() == set()
    later = stack_factory()  # knows nothing but what the kernel says
    later.want(later.workload(1, addresses=("10.0.0.12/24",), routes=()))
    await later.settle()
    inside = sh("ip -n acme.w1 -o addr show dev eth0; ip -n acme.w1 route; ip -n acme.w1 -6 route")
    assert "10.0.0.12/24" in inside and "10.9.9.9/24" in inside and "10.8.0.0/16 via 10.9.9.1" in inside
    assert "10.0.0.11/24" not in inside and "fd00::11" not in inside and "default" not in inside


async def test_a_default_route_moves_between_interfaces(stack: Any) -> None:
    first = stack.workload(1, "acme.multi", interface="eth0")
    second = stack.workload(2, "acme.multi", interface="eth1", addresses=("10.0.1.5/24",), routes=())
    stack.want(first, second)
    await stack.settle()
    moved = (Route("0.0.0.0/0", "10.0.1.1"),)
    stack.want(replace(second, routes=moved), replace(first, routes=()))
    await stack.settle()


async def test_ports_with_host_prefixes_reach_their_gateway(stack: Any) -> None:
    stack.want(stack.workload(1, addresses=("10.0.0.11/32", "fd00::11/128")))
    await stack.settle()


async def test_writing_again_is_harmless_and_deleting_the_absent_succeeds(stack: Any, sh: Shell) -> None:
    w = stack.workload(1)
    stack.want(w)
    await stack.settle()
    before = sh(f"ip -d link show {w.device}; ip -n acme.w1 -d addr; ip -n acme.w1 route; nft list ruleset")
    for layer, driver in stack.drivers.items():
        assert await driver.apply(stack.deltas[layer].desired, ()) == {}
    assert before == sh(f"ip -d link show {w.device}; ip -n acme.w1 -d addr; ip -n acme.w1 route; nft list ruleset")
    for driver in stack.drivers.values():
        assert await driver.apply({}, ["tnffffffffffff", "acme.nothing"]) == {}


async def test_a_process_without_memory_sees_the_same(stack: Any, stack_factory: Any) -> None:
    stack.want(stack.workload(1), stack.workload(2))
    await stack.settle()
    other = stack_factory()
    other.want(stack.workload(1), stack.workload(2))
    await other.look()
    assert other.pending() == set()
    other.want_no(stack.workload(2))
    assert other.pending() >= {("netns", "acme.w2"), ("link", stack.workload(2).device)}
    await other.settle()


TAMPERING = {
    "address removed": "ip -n acme.w1 addr del 10.0.0.11/24 dev eth0",
    "v6 address removed": "ip -n acme.w1 addr del fd00::11/64 dev eth0",
    "link-local removed": "ip -n acme.w1 addr flush dev eth0 scope link",
    "all flushed": "ip -n acme.w1 addr flush dev eth0",
    "default route removed": "ip -n acme.w1 route del default",
    "v6 default route removed": "ip -n acme.w1 -6 route del default",
    "interface down": "ip -n acme.w1 link set eth0 down",
    "loopback down": "ip -n acme.w1 link set lo down",
    "loopback without mark": "ip -n acme.w1 link set lo alias nothing",
    "renamed": "ip -n acme.w1 link set eth0 down name other",
    "mac": "ip -n acme.w1 link set eth0 address 02:99:00:00:00:01",
    "mtu": "ip -n acme.w1 link set eth0 mtu 1400",
    "deleted": "ip -n acme.w1 link del eth0",
    "moved away": "ip netns add elsewhere; ip -n acme.w1 link set eth0 netns elsewhere",
    "moved to the host": "ip -n acme.w1 link set eth0 netns 1 || ip netns exec acme.w1 ip link set eth0 netns $$",
    "host side down": "ip link set tn000000000001 down",
    "host side mtu": "ip link set tn000000000001 mtu 1400",
    "host side speaks ARP": "ip link set tn000000000001 arp on",
    "host side speaks IPv6": "sysctl -qw net.ipv6.conf.tn000000000001.disable_ipv6=0",
    "host side deleted": "ip link del tn000000000001",
    "host side renamed": "ip link set tn000000000001 down name foo",
    "host side without mark": "ip link set tn000000000001 alias ''",
    "namespace deleted": "ip netns del acme.w1",
    "ruleset flushed": "nft flush ruleset",
    "guard lets pass": "nft add rule netdev tealnet tn000000000001 accept",
    "guard with another policy": "nft add chain netdev tealnet tn000000000001 '{ policy accept; }'",
    "guards asleep": "nft add table netdev tealnet '{ flags dormant; }'",
    "a stray guard": "nft add chain netdev tealnet other",
}


@pytest.mark.parametrize("what", TAMPERING)
async def test_tampering_is_repaired(stack: Any, sh: Shell, until: Until, what: str) -> None:
    stack.want(stack.workload(1), stack.workload(2))
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(stack.events.run())
        await stack.settle()
        await until(lambda: not stack.reports or stack.reports.clear() is None, "silence")
        sh(TAMPERING[what])
        await until(lambda: bool(stack.reports), "a report")
        await stack.look()
        assert stack.pending()
        for _ in range(2):  # what is made anew may take other layers with it
            await stack.step()
        await stack.look()
        assert stack.pending() == set(), {layer: delta.actual for layer, delta in stack.deltas.items()}
        listening.cancel()


async def test_namespaces_that_come_and_go_are_told_apart(stack: Any) -> None:
    """The kernel gives the numbers of a namespace that has ended (inode, id) to the next one at once."""
    for turn in range(12):
        wanted = [stack.workload(1 + (turn + offset) % 4) for offset in range(1 + turn % 3)]
        stack.want(*wanted)
        await stack.settle()
        assert stack.pending() == set()
        stack.want_no(*wanted[: 1 + turn % 2])
        await stack.settle()
        stack.want_no(*wanted)
        await stack.settle()


async def test_a_spare_becomes_a_ports_own(stack: Any, sh: Shell) -> None:
    """By its namespace's new name; on the host nothing changes, so that Open vSwitch has nothing to look at."""
    spare, port = names.spare_device(), stack.workload(7)
    waiting = names.spare_namespace(spare)
    stack.deltas["netns"].want(waiting, Namespace(waiting))
    stack.deltas["link"].want(spare, spare_link(spare, mtu=1430))
    stack.deltas["guard"].want(spare, Guard(spare))
    await stack.settle()
    assert "LOWER_UP" in sh(f"ip link show {spare}")
    before = sh(f"ip -d link show {spare}")
    with listen(ROUTE, (RTNLGRP_LINK,)) as changes:
        stack.deltas["netns"].want(waiting, None)
        stack.deltas["netns"].want(port.name, Namespace(port.name, spare=waiting))
        wanted = Link(spare, port.netns, "eth0", port.link.mac, 1430, Marks.POOL, spare=names.spare_netns(spare))
        assert not wanted.is_made_anew(stack.deltas["link"].actual[spare])
        stack.deltas["link"].want(spare, wanted)
        stack.deltas["address"].want(spare, replace(port.addressing, device=spare))
        await stack.settle()
        with pytest.raises(BlockingIOError):
            changes.recv(4096)
    assert sh(f"ip -d link show {spare}").split("link-netns")[0] == before.split("link-netns")[0]
    assert sh("ls -A /run/netns").split() == [port.name]
    inside = sh(f"ip -n {port.name} address show eth0; ip -n {port.name} -d link show lo")
    assert port.link.mac in inside and "10.0.0.17/24" in inside and f"alias tealnet:{port.name}" in inside
    stack.deltas["netns"].want(port.name, None)
    for layer in ("link", "guard", "address"):
        stack.deltas[layer].want(spare, None)
    await stack.settle()
    assert not sh("ls -A /run/netns").split()


async def test_a_spare_that_is_gone_is_no_loss(stack: Any, sh: Shell) -> None:
    """Somebody deleted it: the port's things are made as those of any other."""
    spare, port = names.spare_device(), stack.workload(7)
    wanted = Link(spare, port.netns, "eth0", port.link.mac, 1430, Marks.POOL, spare=names.spare_netns(spare))
    stack.deltas["netns"].want(port.name, Namespace(port.name, spare=names.spare_namespace(spare)))
    stack.deltas["link"].want(spare, wanted)
    stack.deltas["guard"].want(spare, Guard(spare))
    stack.deltas["address"].want(spare, replace(port.addressing, device=spare))
    await stack.settle()
    assert f"{spare}@" in sh("ip link")


async def _spare(stack: Any) -> str:
    """One that waits for its port; returns its device."""
    spare = names.spare_device()
    stack.deltas["netns"].want(names.spare_namespace(spare), Namespace(names.spare_namespace(spare)))
    stack.deltas["link"].want(spare, spare_link(spare, mtu=1430))
    stack.deltas["guard"].want(spare, Guard(spare))
    await stack.settle()
    return spare


async def test_a_spare_of_a_port_that_has_a_namespace_already(stack: Any, sh: Shell) -> None:
    """It was made while the port chose the spare: what waits elsewhere can't be moved there, and is made anew."""
    spare, port = await _spare(stack), stack.workload(7)
    stack.deltas["netns"].want(port.name, Namespace(port.name))
    await stack.settle()
    waiting = names.spare_namespace(spare)
    stack.deltas["netns"].want(waiting, None)
    stack.deltas["netns"].want(port.name, Namespace(port.name, spare=waiting))
    wanted = Link(spare, port.netns, "eth0", port.link.mac, 1430, Marks.POOL, spare=names.spare_netns(spare))
    stack.deltas["link"].want(spare, wanted)
    stack.deltas["address"].want(spare, replace(port.addressing, device=spare))
    failures = await stack.step()
    assert failures[f"link/{spare}"].reason == "NotApplied" and failures[f"link/{spare}"].retriable
    await stack.look()
    assert spare not in stack.deltas["link"].actual, "so that it is released by Open vSwitch before it is made again"
    await stack.settle()
    assert port.link.mac in sh(f"ip -n {port.name} link show eth0")
    assert sh("ls -A /run/netns").split() == [port.name]


async def test_a_namespace_with_two_names_is_the_ports(stack: Any, stack_factory: Any) -> None:
    """An agent was killed between giving a spare's namespace the port's name and taking the old one from it."""
    for number in range(1, 9):  # in whichever order the directory tells names
        spare, port = await _spare(stack), stack.workload(number)
        named = {port.name: Namespace(port.name, spare=names.spare_namespace(spare))}
        assert await stack.drivers["netns"].apply(named, ()) == {}
        found = await stack_factory().drivers["link"].read()
        assert found[spare].netns == port.netns
