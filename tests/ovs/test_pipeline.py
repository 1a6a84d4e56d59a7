"""The pipeline on a real ovs-vswitchd: rows in, flows by our own encoder and driver, packets by ofproto/trace.

Host a has the ports acme/web-1 (ofport 10) and acme/db-1 (11) of one router, and globex/web-1 (12) with web-1's very
addresses. acme/web-2 lives on host b.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from agent import names
from agent.features.l2_port import link_local
from agent.pipeline import ROUTER_MAC
from tealnet.core.rows.stream import Endpoint, Route, Segment, Subnet
from tests.ovs.host import PipelineHost
from tests.ovs.sandbox import Sandbox

pytestmark = pytest.mark.ovs

A, B, C = (f"{n:032x}" for n in (1, 2, 3))
WEB, DB, GWEB = 1000, 1001, 2000
ACME, GLOBEX = 0x1000, 0x2000


def subnet(prefix: str) -> Subnet:
    network = ip_network(prefix)
    return Subnet(network, network[1])


def mac(number: int) -> str:
    return f"02:aa:00:00:00:{number:02x}"


SEGMENTS = (
    Segment(WEB, ACME, 0, 11, 1430, (subnet("10.0.0.0/24"), subnet("fd00::/64"))),
    Segment(DB, ACME, 0, 12, 1430, (subnet("10.0.1.0/24"), subnet("fd00:0:0:1::/64"))),
    Segment(GWEB, GLOBEX, 0, 21, 1430, (subnet("10.0.0.0/24"), subnet("fd00::/64"))),
)


def endpoint(number: int, *, vni: int, v4: str, v6: str, host: str, identity: int) -> Endpoint:
    uid = f"{number:032x}"
    return Endpoint(uid, vni, (ip_address(v4), ip_address(v6)), mac(number), host, "", identity, ())


WEB1 = endpoint(10, vni=WEB, v4="10.0.0.10", v6="fd00::10", host=A, identity=500)
DB1 = endpoint(11, vni=DB, v4="10.0.1.11", v6="fd00:0:0:1::11", host=A, identity=500)
GLOBEX1 = endpoint(12, vni=GWEB, v4="10.0.0.10", v6="fd00::10", host=A, identity=600)
WEB2 = endpoint(20, vni=WEB, v4="10.0.0.20", v6="fd00::20", host=B, identity=500)
LOCAL = {10: (WEB1, "acme", "web-1"), 11: (DB1, "acme", "db-1"), 12: (GLOBEX1, "globex", "web-1")}


class HostA(PipelineHost):
    """The inputs of host a, and their flows on a switch."""

    def __init__(self, ovs: Sandbox) -> None:
        super().__init__(ovs, uid=A, others={B: 2, C: 3})
        self.put(segments=SEGMENTS, endpoints=(WEB1, DB1, GLOBEX1, WEB2))
        for ofport, (row, tenant, name) in LOCAL.items():
            self.plug(row, tenant=tenant, name=name, ofport=ofport)


@pytest.fixture(scope="module")
def a() -> Iterator[HostA]:
    with Sandbox() as ovs:
        ovs.add_bridge("br-int")
        ovs.add_tunnel("br-int", "vxlan0", 1)
        for ofport in LOCAL:
            ovs.add_port("br-int", f"p{ofport}", ofport)
        host = HostA(ovs)
        host.load()
        yield host


def ip4(src: Endpoint, dst: str, *, dst_mac: str, extra: str = "", ofport: int = 10) -> str:
    ends = f"dl_src={src.mac},dl_dst={dst_mac},nw_src={src.addresses[0]},nw_dst={dst}"
    return f"in_port={ofport},tcp,{ends},nw_ttl=64{extra}"


def ip6(src: Endpoint, dst: str, *, dst_mac: str, ofport: int = 10) -> str:
    return (
        f"in_port={ofport},tcp6,dl_src={src.mac},dl_dst={dst_mac},ipv6_src={src.addresses[1]},ipv6_dst={dst},nw_ttl=64"
    )


def tunnel(packet: str, *, vni: int = WEB, src: str = "192.0.2.2") -> str:
    return f"in_port=1,tun_id={vni},tun_src={src},tun_dst=192.0.2.1,{packet}"


def arp(target: str, *, ofport: int = 10, src: Endpoint = WEB1, spa: str = "") -> str:
    return (
        f"in_port={ofport},arp,dl_src={src.mac},dl_dst=ff:ff:ff:ff:ff:ff,arp_op=1,arp_sha={src.mac},"
        f"arp_spa={spa or src.addresses[0]},arp_tpa={target},arp_tha=00:00:00:00:00:00"
    )


def ns(target: str, *, src: Endpoint = WEB1, sll: str = "", source: str = "", ttl: int = 255) -> str:
    return (
        f"in_port=10,icmp6,icmpv6_type=135,icmpv6_code=0,dl_src={src.mac},dl_dst=33:33:ff:00:00:20,nw_ttl={ttl},"
        f"ipv6_src={source or src.addresses[1]},ipv6_dst=ff02::1:ff00:20,nd_target={target},nd_sll={sll or src.mac}"
    )


def test_arp_is_answered_for_the_own_network_only(a: HostA) -> None:
    answer = a.final(arp("10.0.0.20"))
    assert f"sha={WEB2.mac}" in answer and "op=2" in answer and "sip=10.0.0.20" in answer
    assert f"sha={ROUTER_MAC}" in a.final(arp("10.0.0.1"))
    for silent in ("10.0.0.10", "10.0.1.11", "10.0.0.99", "192.0.2.1"):
        assert a.final(arp(silent)) == "drop", silent
    assert a.final(arp("10.0.0.10", spa="0.0.0.0")) == "drop"  # the port's own address, as a probe


def test_neighbour_discovery_is_answered_for_the_own_network_and_the_router(a: HostA) -> None:
    answer = a.final(ns("fd00::20"))
    assert "type=136" in answer and f"tll={WEB2.mac}" in answer
    assert f"tll={ROUTER_MAC}" in a.final(ns("fe80::1"))
    assert f"tll={ROUTER_MAC}" in a.final(ns("fd00::1"))
    for silent in ("fd00::10", "fd00:0:0:1::11", "fd00::99", str(link_local(WEB1.mac))):
        assert a.final(ns(silent)) == "drop", silent
    assert a.final(ns("fd00::20", sll=WEB2.mac)) == "drop"
    assert a.final(ns("fd00::20", source="fd00::20")) == "drop"
    assert a.final(ns("fd00::20", source="::")) == "drop"
    assert a.final(ns("fd00::20", ttl=64)) == "drop"


SPOOFED = {
    "mac": ip4(WEB1, "10.0.0.20", dst_mac=WEB2.mac).replace(f"dl_src={WEB1.mac}", f"dl_src={WEB2.mac}"),
    "address": ip4(WEB1, "10.0.0.20", dst_mac=WEB2.mac).replace("nw_src=10.0.0.10", "nw_src=10.0.0.20"),
    "v6 address": ip6(WEB1, "fd00::20", dst_mac=WEB2.mac).replace("ipv6_src=fd00::10", "ipv6_src=fd00::20"),
    "vlan": ip4(WEB1, "10.0.0.20", dst_mac=WEB2.mac, extra=",dl_vlan=100"),
    "priority tag": ip4(WEB1, "10.0.0.20", dst_mac=WEB2.mac, extra=",vlan_tci=0x1000"),
    "arp spa": arp("10.0.0.20", spa="10.0.0.20"),
    "arp sha": arp("10.0.0.20").replace(f"arp_sha={WEB1.mac}", f"arp_sha={WEB2.mac}"),
    "advertisement": ns("fd00::20").replace("icmpv6_type=135", "icmpv6_type=136").replace(f",nd_sll={WEB1.mac}", ""),
    "router advertisement": f"in_port=10,icmp6,icmpv6_type=134,dl_src={WEB1.mac},ipv6_src={link_local(WEB1.mac)}",
    "another ethertype": f"in_port=10,dl_type=0x88cc,dl_src={WEB1.mac}",
    "lldp": f"in_port=10,dl_type=0x88cc,dl_src={WEB1.mac},dl_dst=01:80:c2:00:00:0e",
    "mpls": f"in_port=10,dl_type=0x8847,dl_src={WEB1.mac}",
    "dhcp": f"in_port=10,udp,dl_src={WEB1.mac},nw_src=0.0.0.0,nw_dst=255.255.255.255,udp_src=68,udp_dst=67",
    "to a broadcast address": ip4(WEB1, "10.0.0.255", dst_mac="ff:ff:ff:ff:ff:ff"),
    "multicast": ip4(WEB1, "224.0.0.251", dst_mac="01:00:5e:00:00:fb"),
    "unicast in a multicast frame": ip4(WEB1, "10.0.0.20", dst_mac="01:00:5e:00:00:01"),
    "link-local between ports": ip6(WEB1, str(link_local(WEB2.mac)), dst_mac=WEB2.mac).replace(
        "ipv6_src=fd00::10", f"ipv6_src={link_local(WEB1.mac)}"
    ),
    "to the underlay": ip4(WEB1, "192.0.2.2", dst_mac=ROUTER_MAC),
    "to another network past the router": ip4(WEB1, "10.0.1.11", dst_mac=DB1.mac),
    "from a port that is not ours": ip4(WEB1, "10.0.0.20", dst_mac=WEB2.mac, ofport=99),
}


@pytest.mark.parametrize("what", SPOOFED)
def test_what_a_port_must_not_send_is_dropped(a: HostA, what: str) -> None:
    assert a.final(SPOOFED[what]) == "drop"


def test_within_a_network_and_routed_on_the_same_host(a: HostA) -> None:
    routed = a.final(ip4(WEB1, "10.0.1.11", dst_mac=ROUTER_MAC))
    assert f"src={ROUTER_MAC}" in routed and f"dst={DB1.mac}" in routed and "ttl=63" in routed
    routed = a.final(ip6(WEB1, "fd00:0:0:1::11", dst_mac=ROUTER_MAC))
    assert f"dst={DB1.mac}" in routed and "hlimit=63" in routed
    assert a.final(ip4(WEB1, "10.0.1.11", dst_mac=ROUTER_MAC, extra="").replace("nw_ttl=64", "nw_ttl=1")) == "drop"


def test_to_another_host(a: HostA) -> None:
    for packet in (ip4(WEB1, "10.0.0.20", dst_mac=WEB2.mac), ip6(WEB1, "fd00::20", dst_mac=WEB2.mac)):
        trace = a.ovs.trace("br-int", packet)
        assert "set_field:192.0.2.2->tun_dst" in trace and "output:1" in trace
        assert "dec_ttl" not in trace
        assert f"NXM_NX_TUN_ID[0..31] is now {WEB:#x}" in trace


def test_the_router_answers_echo(a: HostA) -> None:
    for gateway in ("10.0.0.1", "10.0.1.1"):
        request = ip4(WEB1, gateway, dst_mac=ROUTER_MAC).replace(",tcp,", ",icmp,icmp_type=8,icmp_code=0,")
        answer = a.final(request)
        assert f"src={gateway}" in answer and "dst=10.0.0.10" in answer and "type=0" in answer
    for gateway in ("fd00::1", "fd00:0:0:1::1"):
        request = ip6(WEB1, gateway, dst_mac=ROUTER_MAC).replace(",tcp6,", ",icmp6,icmpv6_type=128,icmpv6_code=0,")
        assert f"src={gateway}" in a.final(request)
    own = str(link_local(WEB1.mac))
    request = ip6(WEB1, "fe80::1", dst_mac=ROUTER_MAC).replace(",tcp6,", ",icmp6,icmpv6_type=128,icmpv6_code=0,")
    assert "src=fe80::1" in a.final(request.replace("ipv6_src=fd00::10", f"ipv6_src={own}"))
    assert a.final(ip4(WEB1, "10.0.0.1", dst_mac=ROUTER_MAC, extra="")) == "drop"  # nothing but echo


def test_from_a_tunnel(a: HostA) -> None:
    packet = f"ip,dl_src={WEB2.mac},dl_dst={WEB1.mac},nw_src=10.0.0.20,nw_dst=10.0.0.10,nw_ttl=64"
    arrives = a.final(tunnel(packet))
    assert arrives != "drop" and "ttl" not in arrives
    for what, lie in {
        "unknown VNI": tunnel(packet, vni=4242),
        "another tenant's VNI": tunnel(packet, vni=GWEB),
        "unknown VTEP": tunnel(packet, src="192.0.2.99"),
        "a host where it does not live": tunnel(packet, src="192.0.2.3"),
        "a source nobody has": tunnel(packet.replace("nw_src=10.0.0.20", "nw_src=10.0.0.77")),
        "a local source": tunnel(packet.replace("nw_src=10.0.0.20", "nw_src=10.0.1.11")),
        "tagged": tunnel(packet + ",dl_vlan=5"),
        "back into a tunnel": tunnel(packet.replace("nw_dst=10.0.0.10", "nw_dst=10.0.0.20")),
        "arp": tunnel(f"arp,dl_src={WEB2.mac},arp_op=1,arp_spa=10.0.0.20,arp_tpa=10.0.0.10"),
        "to the gateway": tunnel(packet.replace("nw_dst=10.0.0.10", "nw_dst=10.0.0.1")),
    }.items():
        assert a.final(lie) == "drop", what


def test_a_tenant_with_the_same_addresses_reaches_only_its_own(a: HostA) -> None:
    for packet in (
        ip4(GLOBEX1, "10.0.0.20", dst_mac=WEB2.mac, ofport=12),
        ip4(GLOBEX1, "10.0.1.11", dst_mac=ROUTER_MAC, ofport=12),
        ip6(GLOBEX1, "fd00::20", dst_mac=WEB2.mac, ofport=12),
        arp("10.0.0.20", ofport=12, src=GLOBEX1),
    ):
        assert a.final(packet) == "drop", packet


def test_a_static_route_goes_by_a_port_of_the_domain(a: HostA) -> None:
    packet = ip4(WEB1, "172.16.5.5", dst_mac=ROUTER_MAC)
    assert a.final(packet) == "drop"
    key = f"{ACME}/172.16.0.0/16"
    a.inputs.routes.put(key, Route(ACME, ip_network("172.16.0.0/16"), ip_address("10.0.1.11")))
    a.load()
    routed = a.final(packet)
    assert f"dst={DB1.mac}" in routed and "ttl=63" in routed
    a.inputs.routes.put(key, None)
    a.load()
    assert a.final(packet) == "drop"


def test_a_port_is_closed_until_number_and_guard_are_confirmed(a: HostA) -> None:
    packet = ip4(WEB1, "10.0.1.11", dst_mac=ROUTER_MAC)
    device = names.device(a.inputs.localports.rows[WEB1.uid])
    a.inputs.guarded.put(device, None)
    a.load()
    assert a.final(packet) == "drop"
    a.inputs.guarded.put(device, True)
    a.inputs.ofports.put(device, None)
    a.load()
    assert a.final(packet) == "drop"
    a.inputs.ofports.put(device, 10)
    a.load()
    assert a.final(packet) != "drop"


def test_two_flows_for_each_remote_address(a: HostA) -> None:
    before = len(a.flows())
    for number in range(30, 40):
        row = endpoint(number, vni=WEB, v4=f"10.0.0.{number}", v6=f"fd00::{number}", host=B, identity=500)
        a.inputs.endpoints.put(row.uid, row)
    assert len(a.flows()) == before + 10 * 2 * 2
    for number in range(30, 40):
        a.inputs.endpoints.put(f"{number:032x}", None)
    assert len(a.flows()) == before
