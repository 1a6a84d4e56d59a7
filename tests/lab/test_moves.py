"""Ports that move under traffic (A20): first the new host has it, then the senders know, then the old one lets go."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tealnet.lab import Host
from tealnet.lab.traffic import Workload, capture
from tealnet.lab.wait import wait_for
from tealnet.v1 import port_pb2
from tests.lab.looks import look
from tests.lab.stand import (
    ACTIVE,
    DISCONNECTED,
    FAILED,
    LINKS,
    NETNS,
    NETNS_PATH,
    READY,
    SOON,
    Stand,
    difference,
    expect_reached,
    full,
    pinging,
    standing,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]
PATH = "/run/netns/cni-mover"


@pytest.fixture(scope="module")
def module_stand() -> Iterator[Stand]:
    with standing("t-moves", hosts=3) as stand:
        for host in stand.lab.hosts:
            stand.settings(host.name, allow_netns=["/run/netns/cni-*"])
        yield stand


@pytest.fixture
def stand(module_stand: Stand) -> Iterator[Stand]:
    """Two networks on a router, with somebody of each on h1 and h3; the mover is to be alone on h2."""
    module_stand.tenant("acme", NETNS, NETNS_PATH)
    module_stand.router("acme/main")
    module_stand.network("acme/web", "10.1.0.0/24", "fd01::/64", router="main")
    module_stand.network("acme/db", "10.2.0.0/24", "fd02::/64", router="main")
    for number in (1, 3):
        for network in ("web", "db"):
            module_stand.port(f"acme/{network}-{number}", network, f"h{number}")
    yield module_stand
    module_stand.clean()


def plugged(stand: Stand, **attachment: object) -> Workload:
    """The mover on h2, known to all."""
    stand.port("acme/mover", "web", "h2", attachment=attachment)
    stand.sync()
    return stand.workload("acme/mover")


def move(stand: Stand, host: str) -> None:
    body = port_pb2.Port(name=full("ports", "acme/mover"), host=f"hosts/{host}")
    stand.client.update(body, mask=["host"])


def is_gone(workload: Workload) -> bool:
    """The namespace that an agent made for it is no more."""
    return workload.netns not in workload.host.output(["ip", "netns", "list"]).split()


def look_ups(host: Host, address: str) -> list[str]:
    """Flows by which a host knows where an address is (ENDPOINT) and whom to believe it (TUNNEL_SOURCE)."""
    parsed = ip_address(address)
    raw = parsed.packed if parsed.version == 6 else bytes(10) + b"\xff\xff" + parsed.packed
    words = [int.from_bytes(raw[i : i + 4], "big") for i in range(0, 16, 4)]
    key = ",".join(f"reg{i}={word:#x}" if word else f"reg{i}=0" for i, word in enumerate(words))
    source = "ipv6_src" if parsed.version == 6 else "nw_src"
    known = re.compile(rf"table=(?:5|40),.*(?:{source}={re.escape(address)}|{key})[, ]")
    return [flow for flow in look(host, "flows")["flows"] if known.search(flow)]


@contextlib.contextmanager
def nothing_arrives(host: Host, *addresses: str) -> Iterator[None]:
    """No packet with one of these addresses comes to a host meanwhile, inside a tunnel or not."""
    with capture(host, "eth0") as seen:
        yield
    wanted = [ip_address(address).packed.hex() for address in addresses]
    astray = [frame for frame in seen.result["frames"] if any(w in frame for w in wanted)]
    assert not astray, f"{len(astray)} packets still come to {host.name}, e.g. {astray[0][:200]}"


def expect_answers(source: Workload, *targets: str) -> None:
    """Half a second of 10 ms pings to each, of which none is lost."""
    for target in targets:
        got = source.ping(target, count=50, interval=0.01)
        assert got["lost"] == 0, f"{source.name} → {target}: {got}"


def test_a_move_under_pings_from_everywhere(stand: Stand) -> None:
    before = plugged(stand)
    third, routed, at_new = stand.workloads("acme/web-1", "acme/db-1", "acme/web-3")
    with pinging((third, before.v4), (third, before.v6), (routed, before.v4), (at_new, before.v6), most=LINKS):
        move(stand, "h3")
        stand.becomes("acme/mover", ACTIVE)
        stand.sync()  # all who may send know it now, whether the old host has let go or not
        with nothing_arrives(before.host, before.v4, before.v6):
            expect_reached(third, before.v4, before.v6)
            wait_for(lambda: is_gone(before), seconds=SOON, what="the old namespace is gone")
            stand.sync()
            expect_answers(third, before.v4, before.v6)
    after = stand.workload("acme/mover")
    assert (after.host.name, after.mac, after.addresses) == ("h3", before.mac, before.addresses)
    for address in after.addresses:
        assert len(look_ups(third.host, address)) == 2  # nobody is believed to be the mover but h3
    left = look(before.host)
    assert left == stand.empty["h2"], difference(stand.empty["h2"], left)


def test_while_the_new_host_can_not_the_old_one_serves(stand: Stand) -> None:
    """A workload that is away for longer than its port: its namespace is made on the new host some time later."""
    old, new = stand.lab.host("h2"), stand.lab.host("h3")
    old.output(["ip", "netns", "add", "cni-mover"])
    try:
        before = plugged(stand, kind=NETNS_PATH, path=PATH)
        third = stand.workload("acme/web-1")
        with pinging((third, before.v4), (third, before.v6)):
            move(stand, "h3")
            assert stand.becomes("acme/mover", FAILED).reason == "NetnsMissing"
            expect_answers(third, before.v4, before.v6)
            assert len(look_ups(third.host, before.v4)) == 3  # both may send, the old one is sent to
        with pinging((third, before.v4), (third, before.v6), most=LINKS):
            new.output(["ip", "netns", "add", "cni-mover"])
            stand.becomes("acme/mover", ACTIVE, seconds=40.0)
            stand.sync()
            with nothing_arrives(old, before.v4, before.v6):
                expect_answers(third, before.v4, before.v6)
        wait_for(lambda: look(old, "ports") == {"ports": stand.empty["h2"]["ports"]}, seconds=SOON, what="h2 lets go")
        links = old.run_in_netns(PATH, ["ip", "-br", "link"]).stdout
        assert "eth0" not in links and "lo" in links  # what is not ours stays
    finally:
        stand.delete("acme/mover")
        stand.sync()
        for host in (old, new):
            host.run(["ip", "netns", "delete", "cni-mover"])


def test_an_old_host_that_is_away_holds_nothing_up(stand: Stand) -> None:
    before = plugged(stand)
    third = stand.workload("acme/web-1")
    stand.lab.kill("h2", "agent")
    stand.host_becomes("h2", DISCONNECTED)
    with pinging((third, before.v4), (third, before.v6), most=LINKS):
        move(stand, "h3")
        stand.becomes("acme/mover", ACTIVE)
        wait_for(lambda: len(look_ups(third.host, before.v4)) == 2, seconds=SOON, what="h2 is believed no more")
        answer = stand.client.sync(timeout=5)
        assert not answer.complete and list(answer.disconnected) == ["hosts/h2"] and not answer.behind
        with nothing_arrives(before.host, before.v4, before.v6):
            expect_answers(third, before.v4, before.v6)
        assert not is_gone(before)  # nobody has told it
        stand.lab.start("h2", "agent")
        stand.host_becomes("h2", READY)
        wait_for(lambda: is_gone(before), seconds=SOON, what="the old namespace is gone, with proof")
    stand.sync()


def test_there_and_back_before_it_has_arrived(stand: Stand) -> None:
    before = plugged(stand)
    third = stand.workload("acme/web-1")
    with pinging((third, before.v4), (third, before.v6), most=3 * LINKS):
        for host in ("h3", "h2", "h3", "h2"):
            move(stand, host)
        stand.becomes("acme/mover", ACTIVE)
        stand.sync()
        wait_for(lambda: len(look_ups(third.host, before.v4)) == 2, seconds=SOON, what="all moves are over")
        expect_answers(third, before.v4, before.v6)
    assert stand.workload("acme/mover").host.name == "h2"
    assert before.netns not in stand.lab.host("h3").output(["ip", "netns", "list"]).split()
