"""Changes that put one flow in the place of another: after one bundle the switch has exactly what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent import names
from tests.ovs.sandbox import Sandbox
from tests.ovs.test_pipeline import ACME, DB, DB1, LOCAL, SEGMENTS, WEB, WEB1, WEB2, B, C, HostA, ip4, tunnel

pytestmark = pytest.mark.ovs


@pytest.fixture(scope="module")
def switch() -> Iterator[Sandbox]:
    with Sandbox() as ovs:
        ovs.add_bridge("br-int")
        ovs.add_tunnel("br-int", "vxlan0", 1)
        for ofport in LOCAL:
            ovs.add_port("br-int", f"p{ofport}", ofport)
        yield ovs


@pytest.fixture
def a(switch: Sandbox) -> HostA:
    host = HostA(switch)
    host.load()
    return host


def swap_addresses(a: HostA) -> None:
    for one, other in ((WEB1, WEB2), (WEB2, WEB1)):
        a.inputs.endpoints.put(one.uid, replace(one, addresses=other.addresses))
    port = a.inputs.localports.rows[WEB1.uid]
    a.inputs.localports.put(port.uid, replace(port, addresses=WEB2.addresses))


def swap_macs(a: HostA) -> None:
    for one, other in ((WEB1, WEB2), (WEB2, WEB1)):
        a.inputs.endpoints.put(one.uid, replace(one, mac=other.mac))
    port = a.inputs.localports.rows[WEB1.uid]
    a.inputs.localports.put(port.uid, replace(port, mac=WEB2.mac))


def swap_ofports(a: HostA) -> None:
    """As when the devices come back the other way round; both are closed until numbers are as issued."""
    ports = {row.uid: a.inputs.localports.rows[row.uid] for row in (WEB1, DB1)}
    a.inputs.ofports.put(names.device(ports[WEB1.uid]), 11)
    a.inputs.ofports.put(names.device(ports[DB1.uid]), 10)


def swap_vteps(a: HostA) -> None:
    peers = a.inputs.hostpeers.rows
    b, c = peers[B], peers[C]
    a.inputs.hostpeers.put(B, replace(b, vtep=c.vtep))
    a.inputs.hostpeers.put(C, replace(c, vtep=b.vtep))


def swap_host_numbers(a: HostA) -> None:
    peers = a.inputs.hostpeers.rows
    b, c = peers[B], peers[C]
    a.inputs.hostpeers.put(B, replace(b, number=c.number))
    a.inputs.hostpeers.put(C, replace(c, number=b.number))


def other_domain(a: HostA) -> None:
    for segment in SEGMENTS[:2]:
        a.inputs.segments.put(segment.vni, replace(segment, domain=0x3000))


def detached(a: HostA) -> None:
    a.inputs.segments.put(DB, replace(SEGMENTS[1], domain=0x3000))


def move_away(a: HostA) -> None:
    a.inputs.localports.put(WEB1.uid, None)
    a.inputs.endpoints.put(WEB1.uid, replace(WEB1, host_uid=C))


CHANGES: dict[str, Callable[[HostA], None]] = {
    change.__name__: change
    for change in (
        swap_addresses,
        swap_macs,
        swap_ofports,
        swap_vteps,
        swap_host_numbers,
        other_domain,
        detached,
        move_away,
    )
}


@pytest.mark.parametrize("there", CHANGES)
def test_there_and_back_in_one_bundle_each(a: HostA, there: str) -> None:
    before = a.flows()
    CHANGES[there](a)
    a.load()  # which compares
    assert a.flows() != before
    fresh = HostA(a.ovs)
    fresh.load()
    assert fresh.flows() == before


def test_after_a_swap_of_ofports_nobody_speaks_for_the_other(a: HostA) -> None:
    swap_ofports(a)
    a.load()
    assert a.final(ip4(WEB1, "10.0.0.20", dst_mac=WEB2.mac)) == "drop"
    assert a.final(ip4(WEB1, "10.0.0.20", dst_mac=WEB2.mac, ofport=11)) == "drop"


def test_after_a_move_the_old_place_is_believed_no_more(a: HostA) -> None:
    packet = f"ip,dl_src={WEB2.mac},dl_dst={WEB1.mac},nw_src=10.0.0.20,nw_dst=10.0.0.10,nw_ttl=64"
    a.inputs.endpoints.put(WEB2.uid, replace(WEB2, host_uid=C, previous_host_uid=B))
    a.load()
    assert a.final(tunnel(packet)) != "drop" and a.final(tunnel(packet, src="192.0.2.3")) != "drop"
    a.inputs.endpoints.put(WEB2.uid, replace(WEB2, host_uid=C))
    a.load()
    assert a.final(tunnel(packet)) == "drop" and a.final(tunnel(packet, src="192.0.2.3")) != "drop"


def test_a_new_vtep_counts_for_both_directions(a: HostA) -> None:
    peer = a.inputs.hostpeers.rows[B]
    a.inputs.hostpeers.put(B, replace(peer, vtep=ip_address("192.0.2.77")))
    a.load()
    packet = f"ip,dl_src={WEB2.mac},dl_dst={WEB1.mac},nw_src=10.0.0.20,nw_dst=10.0.0.10,nw_ttl=64"
    assert a.final(tunnel(packet)) == "drop" and a.final(tunnel(packet, src="192.0.2.77")) != "drop"
    assert "set_field:192.0.2.77->tun_dst" in a.ovs.trace("br-int", ip4(WEB1, "10.0.0.20", dst_mac=WEB2.mac))


def test_networks_that_leave_a_domain_are_out_of_reach_at_once(a: HostA) -> None:
    assert a.final(ip4(WEB1, "10.0.1.11", dst_mac="02:74:6e:00:00:01")) != "drop"
    detached(a)
    a.load()
    assert a.final(ip4(WEB1, "10.0.1.11", dst_mac="02:74:6e:00:00:01")) == "drop"
    assert a.final(ip4(WEB1, "10.0.0.20", dst_mac=WEB2.mac)) != "drop"  # and nobody else notices
    assert {a.inputs.segments.rows[WEB].domain, a.inputs.segments.rows[DB].domain} == {ACME, 0x3000}
