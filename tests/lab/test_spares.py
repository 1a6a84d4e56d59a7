"""Ports that take over a link which was made before they came: on real hosts, under traffic, over restarts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tealnet.lab import Host
from tealnet.lab.chapters_life import leftovers
from tests.lab.stand import ACTIVE, SOON, Stand, expect_reached, pinging, spares, spares_made, standing, until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


HARMS = (
    "ip netns delete .{}",
    "ip link delete {}",
    "ovs-vsctl del-port {}",
    "nft delete chain netdev tealnet {}",
)


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with standing("t-spares", hosts=2) as stand:
        stand.tenant("acme")
        stand.network("acme/web", "10.1.0.0/24", "fd01::/64")
        stand.port("acme/one", "web", "h1")
        stand.port("acme/far", "web", "h2")
        stand.sync()
        yield stand


def row(host: Host, device: str) -> str:
    """Its OVSDB row and number: others if it was plugged again."""
    return host.output(["ovs-vsctl", "--columns=_uuid,ofport", "list", "Interface", device])


def whole(host: Host, device: str) -> bool:
    """A spare has all its parts."""
    parts = (
        f"ip -n .{device} link show eth0",
        f"ip link show {device} up",
        f"ovs-vsctl get Interface {device} ofport",
        f"nft list chain netdev tealnet {device}",
    )
    return host.run(["sh", "-c", " && ".join(parts)]).returncode == 0


def test_a_new_port_is_on_a_spare_and_stays_there(stand: Stand) -> None:
    host = stand.lab.host("h1")
    rows = {device: row(host, device) for device in spares_made(host)}
    stand.port("acme/two", "web", "h1")
    state = stand.becomes("acme/two", ACTIVE)
    device = state.device
    assert device in rows and row(host, device) == rows[device], "nothing was plugged"
    two, far = stand.workload("acme/two"), stand.workload("acme/far")
    expect_reached(two, *far.addresses)
    with pinging((two, far.addresses[0]), (far, two.addresses[0])):
        stand.restart_agent("h1")
        stand.sync()
    assert stand.state("acme/two").device == device and row(host, device) == rows[device]
    assert spares_made(host) == rows.keys() - {device}, "they were found again"


def test_what_happens_to_spares_happens_to_nobody_else(stand: Stand) -> None:
    host, one, far = stand.lab.host("h1"), stand.workload("acme/one"), stand.workload("acme/far")
    before = sorted(spares_made(host))
    for number, harm in enumerate(HARMS):
        host.output(harm.format(before[number % len(before)]).split())
    until(lambda: all(whole(host, device) for device in before), seconds=SOON, what="they are there again")
    assert spares_made(host) == set(before)
    expect_reached(one, *far.addresses)
    stand.port("acme/three", "web", "h1")
    stand.becomes("acme/three", ACTIVE)
    expect_reached(stand.workload("acme/three"), *far.addresses)
    stand.delete("acme/three")


def test_what_comes_from_a_spare_goes_nowhere(stand: Stand) -> None:
    """Whoever finds its namespace is in no network."""
    host, far = stand.lab.host("h1"), stand.workload("acme/far")
    space = f".{sorted(spares_made(host))[0]}"
    inside = ["ip", "netns", "exec", space]
    host.output([*inside, "ip", "address", "add", "10.1.0.200/24", "dev", "eth0"])
    ping = [*inside, "ping", "-c2", "-i0.2", "-W0.5", far.addresses[0]]
    assert " 0 received" in host.run(ping).stdout, "nobody tells it a MAC"
    host.output([*inside, "ip", "neighbour", "replace", far.addresses[0], "lladdr", far.mac, "dev", "eth0"])
    assert " 0 received" in host.run(ping).stdout


def test_they_go_with_the_last_port(stand: Stand) -> None:
    spares_made(stand.lab.host("h1"))
    for name in ("acme/one", "acme/two", "acme/far"):
        stand.delete(name)
    stand.sync()
    for host in stand.lab.hosts:
        until(partial(_clean, host), seconds=SOON, what=f"nothing on {host.name}")


def _clean(host: Host) -> bool:
    return not leftovers(host) and not spares(host)
