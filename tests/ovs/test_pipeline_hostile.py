"""Frames that no honest workload sends, byte for byte, on a real ovs-vswitchd: what becomes of them.

Rows and switch are those of `test_pipeline`. A frame goes through OVS's own parser, so headers that hide others,
fragments and lengths that lie are seen as the datapath sees them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from agent.pipeline import ROUTER_MAC
from tealnet.probe.frames import arp_frame, checksum, ethernet, ip, mac_bytes
from tests.ovs.sandbox import Sandbox
from tests.ovs.test_pipeline import LOCAL, WEB1, WEB2, HostA, tunnel

pytestmark = pytest.mark.ovs

HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58


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


def final(a: HostA, frame: bytes, *, ofport: int = 10) -> str:
    trace = a.ovs.trace("br-int", f"in_port={ofport}", frame.hex())
    return trace.rpartition("Datapath actions:")[2].strip().splitlines()[0]


def v6(*, payload: bytes, kind: int, src: str = "fd00::10", dst: str = "fd00::20", dst_mac: str = WEB2.mac) -> bytes:
    _, packet = ip(src, dst, protocol=kind, payload=payload, ttl=255)
    return ethernet(src=WEB1.mac, dst=dst_mac, kind=0x86DD, payload=packet)


def v4(*, payload: bytes, kind: int = 17, dst: str = "10.0.0.20", fragment: int = 0, options: bytes = b"") -> bytes:
    size = 20 + len(options)
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | size // 4, 0, size + len(payload), 7, fragment, 64, kind, 0,
        IPv4Address("10.0.0.10").packed, IPv4Address(dst).packed,
    ) + options  # fmt: skip
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return ethernet(src=WEB1.mac, dst=WEB2.mac, kind=0x0800, payload=head + payload)


def advertisement(kind: int = 136, *, options: bytes = b"") -> bytes:
    """NA for the router's address with web-1's MAC: what would draw web-2's routed traffic."""
    return struct.pack("!BBHI", kind, 0, 0, 0x20000000) + IPv6Address("fd00::1").packed + options


def lladdr(kind: int, mac: str, units: int = 1) -> bytes:
    return struct.pack("!BB", kind, units) + mac_bytes(mac) + bytes(8 * (units - 1))


def extension(next_header: int, data: bytes = bytes(6)) -> bytes:
    return struct.pack("!BB", next_header, (len(data) + 2) // 8 - 1) + data


def fragment_header(next_header: int, *, offset: int, more: int) -> bytes:
    return struct.pack("!BBHI", next_header, 0, offset << 3 | more, 42)


def neighbour(kind: int, *, target: str = "fd00::1", options: bytes = b"", code: int = 0) -> bytes:
    """ICMPv6; the usual one is a false advertisement that would draw what web-2 sends to its router."""
    return struct.pack("!BBHI", kind, code, 0, 0x20000000) + IPv6Address(target).packed + options


FALSE = neighbour(136, options=lladdr(2, WEB1.mac))
ASKED = neighbour(135, target="fd00::20", options=lladdr(1, WEB1.mac))
PLAIN4 = v4(payload=bytes(8))
ARP = arp_frame(src_mac=WEB1.mac, op=1, sha=WEB1.mac, spa="10.0.0.10", tha=ROUTER_MAC, tpa="10.0.0.20")
AFTER_TAG = b"\x08\x00" + PLAIN4[14:]


def l2(kind: int, payload: bytes) -> bytes:
    return ethernet(src=WEB1.mac, dst=WEB2.mac, kind=kind, payload=payload)


DROPPED = {
    "advertisement": v6(payload=FALSE, kind=ICMP6),
    "… after hop-by-hop options": v6(payload=extension(ICMP6) + FALSE, kind=HOP_BY_HOP),
    "… after destination options": v6(payload=extension(ICMP6) + FALSE, kind=DESTINATION),
    "… after a routing header": v6(payload=extension(ICMP6) + FALSE, kind=ROUTING),
    "… after twenty headers": v6(payload=extension(DESTINATION) * 20 + extension(ICMP6) + FALSE, kind=DESTINATION),
    "… after an authentication header": v6(
        payload=struct.pack("!BBHII", ICMP6, 4, 0, 1, 1) + bytes(12) + FALSE, kind=AUTHENTICATION
    ),
    "… after options in a wrong order": v6(payload=extension(HOP_BY_HOP) + extension(ICMP6) + FALSE, kind=DESTINATION),
    "… in an atomic fragment": v6(payload=fragment_header(ICMP6, offset=0, more=0) + FALSE, kind=FRAGMENT),
    "… in a first fragment": v6(payload=fragment_header(ICMP6, offset=0, more=1) + FALSE[:24], kind=FRAGMENT),
    "… in a tiny first fragment": v6(payload=fragment_header(ICMP6, offset=0, more=1) + FALSE[:8], kind=FRAGMENT),
    "… in a first fragment, after options": v6(
        payload=fragment_header(DESTINATION, offset=0, more=1) + extension(ICMP6) + FALSE[:16], kind=FRAGMENT
    ),
    "headers that do not end in the first fragment": v6(
        payload=fragment_header(DESTINATION, offset=0, more=1) + extension(ICMP6, bytes(14))[:8], kind=FRAGMENT
    ),
    "headers that end at the end of the first fragment": v6(
        payload=fragment_header(DESTINATION, offset=0, more=1) + extension(DESTINATION), kind=FRAGMENT
    ),
    "headers that do not end": v6(payload=b"\x3a\x05" + bytes(6), kind=HOP_BY_HOP),
    "router advertisement": v6(payload=neighbour(134), kind=ICMP6),
    "router solicitation": v6(payload=neighbour(133), kind=ICMP6),
    "redirect": v6(payload=neighbour(137), kind=ICMP6),
    "listener query": v6(payload=neighbour(130), kind=ICMP6),
    "listener report to one port": v6(payload=neighbour(143), kind=ICMP6),
    "listener report": v6(payload=neighbour(143), kind=ICMP6, dst="ff02::16", dst_mac="33:33:00:00:00:16"),
    "solicitation with two link-layer options": v6(payload=ASKED + lladdr(1, WEB2.mac), kind=ICMP6),
    "solicitation with a code": v6(payload=neighbour(135, target="fd00::20", code=1), kind=ICMP6),
    "solicitation of a v4-mapped address": v6(payload=neighbour(135, target="::ffff:10.0.0.20"), kind=ICMP6),
    "to a v4-mapped address": v6(payload=bytes(8), kind=UDP, dst="::ffff:10.0.0.20"),
    "to a v4-mapped address by the router": v6(payload=bytes(8), kind=UDP, dst="::ffff:10.0.1.11", dst_mac=ROUTER_MAC),
    "from a v4-mapped address": v6(payload=bytes(8), kind=UDP, src="::ffff:10.0.0.10"),
    "to its own address": v4(payload=bytes(8), dst="10.0.0.10"),
    "to its own v6 address": v6(payload=bytes(8), kind=UDP, dst="fd00::10"),
    "with the router's MAC": ethernet(src=ROUTER_MAC, dst=WEB2.mac, kind=0x0800, payload=PLAIN4[14:]),
    "VXLAN to a VTEP": v4(payload=bytes(50), dst="192.0.2.2"),
    "v4 redirect": v4(payload=b"\x05\x01" + bytes(6), kind=ICMP),
    "v4 header too short": PLAIN4.replace(b"\x45\x00", b"\x44\x00", 1),
    "v4 header beyond the end": PLAIN4.replace(b"\x45\x00", b"\x4f\x00", 1),
    "v4 longer than the frame": PLAIN4[:16] + b"\xff\xff" + PLAIN4[18:],
    "v4 as v6": l2(0x86DD, PLAIN4[14:]),
    "v6 as v4": l2(0x0800, v6(payload=bytes(8), kind=UDP)[14:]),
    "two tags": l2(0x88A8, b"\0\1\x81\0\0\2" + AFTER_TAG),
    "a service tag of 0": l2(0x88A8, b"\0\0" + AFTER_TAG),
    "a tag of 0": l2(0x8100, b"\0\0" + AFTER_TAG),
    "an unknown tag": l2(0x9100, b"\0\1" + AFTER_TAG),
    "MPLS": l2(0x8847, b"\0\1\x01\x40" + PLAIN4[14:]),
    "NSH": l2(0x894F, bytes(40)),
    "LLC": l2(40, bytes(40)),
    "runt": PLAIN4[:14],
    "half a header": PLAIN4[:20],
    "ARP with other address lengths": ARP.replace(b"\6\4\0\1", b"\x08\4\0\1"),
    "ARP of another hardware": ARP.replace(b"\0\1\x08\0\6\4", b"\0\7\x08\0\6\4"),
    "ARP of operation 257": ARP.replace(b"\6\4\0\1", b"\6\4\1\1"),
    "ARP reply": ARP.replace(b"\6\4\0\1", b"\6\4\0\2"),
    "gratuitous ARP": ARP[:38] + IPv4Address("10.0.0.10").packed,
    "RARP": l2(0x8035, ARP[14:]),
    "half an ARP": ARP[:30],
    "ARP from a group": ARP[:6] + mac_bytes("01:00:5e:00:00:01") + ARP[12:],
}


@pytest.mark.parametrize("what", DROPPED)
def test_a_hostile_frame_is_dropped(a: HostA, what: str) -> None:
    assert final(a, DROPPED[what]) == "drop"


REACHES_ITS_TARGET = {
    "v4": PLAIN4,
    "first fragment": v4(payload=bytes(24), fragment=0x2000),
    "later fragment": v4(payload=bytes(24), fragment=3),
    "tiny fragment": v4(payload=bytes(8), fragment=0x2000, kind=TCP),
    "any protocol": v4(payload=bytes(8), kind=255),
    "protocol 0": v4(payload=bytes(8), kind=0),  # the class of CVE-2023-1668
    "source route by another port": v4(payload=bytes(8), options=b"\x83\x07\x04\x0a\x00\x01\x0b\x00"),
    "source route to a VTEP": v4(payload=bytes(8), options=b"\x83\x07\x04\xc0\x00\x02\x02\x00"),
    "jumbo": v4(payload=bytes(8900)),
    "v6 protocol": v6(payload=bytes(8), kind=50),
    "v6 later fragment": v6(payload=fragment_header(ICMP6, offset=1, more=0) + bytes(8), kind=FRAGMENT),
    "v6 first fragment": v6(payload=fragment_header(UDP, offset=0, more=1) + bytes(8), kind=FRAGMENT),
    "ICMPv6 cut short": v6(payload=b"\x88", kind=ICMP6),
    "ICMPv6 shorter than it says": v6(payload=FALSE, kind=ICMP6).replace(struct.pack("!H", len(FALSE)), b"\0\2", 1),
}


@pytest.mark.parametrize("what", REACHES_ITS_TARGET)
def test_an_odd_packet_goes_where_its_address_says_and_nowhere_else(a: HostA, what: str) -> None:
    trace = a.ovs.trace("br-int", "in_port=10", REACHES_ITS_TARGET[what].hex())
    assert "set_field:192.0.2.2->tun_dst" in trace and trace.count("output:") == 1


def test_a_large_ping_may_be_fragmented(a: HostA) -> None:
    echo = struct.pack("!BBHHH", 128, 0, 0, 1, 1) + bytes(1200)
    first = v6(payload=fragment_header(ICMP6, offset=0, more=1) + echo, kind=FRAGMENT)
    assert final(a, first[:21] + b"\x40" + first[22:]) != "drop"  # hop limit 64


@pytest.mark.parametrize(
    "what", [name for name, frame in DROPPED.items() if frame[12:14] in (b"\x86\xdd", b"\x08\x06")]
)
def test_a_host_sends_nothing_of_it_on_for_its_workloads(a: HostA, what: str) -> None:
    if "address" in what and "v4-mapped" not in what:
        pytest.skip("an honest frame, from there")
    frame = DROPPED[what].replace(IPv6Address("fd00::20").packed, IPv6Address("fd00::aa").packed)
    frame = frame.replace(IPv6Address("fd00::10").packed, IPv6Address("fd00::20").packed)
    frame = frame.replace(IPv6Address("fd00::aa").packed, IPv6Address("fd00::10").packed)
    trace = a.ovs.trace("br-int", tunnel("eth()").removesuffix(",eth()"), frame.hex())
    assert trace.rpartition("Datapath actions:")[2].strip().splitlines()[0] == "drop"


def test_no_answer_leaves_by_another_port(a: HostA) -> None:
    for odd in (
        ASKED,
        neighbour(135, target="fd00::20", options=lladdr(1, WEB2.mac, 2)),  # an option of another length: ignored
        neighbour(135, target="fd00::20", options=b"\x01\x00" + mac_bytes(WEB2.mac)),  # … of no length
        neighbour(135, target="fd00::20", options=lladdr(14, WEB2.mac) + lladdr(1, WEB1.mac)),  # a nonce first
    ):
        answer = final(a, v6(payload=odd, kind=ICMP6))
        assert answer.endswith(",10") and "type=136" in answer, answer


def test_prefixes_to_send_from_open_nothing_else(a: HostA) -> None:
    port = a.inputs.localports.rows[WEB1.uid]
    sources = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    a.inputs.localports.put(WEB1.uid, replace(port, sources=sources))
    a.load()
    try:
        gateway = ip_address("fe80::1").packed
        for kind in (133, 134, 136, 137):
            frame = v6(payload=neighbour(kind), kind=ICMP6)
            assert final(a, frame[:22] + gateway + frame[38:]) == "drop"
        for what, frame in DROPPED.items():
            if what == "from a v4-mapped address":
                continue  # from where, it may say
            assert final(a, frame) == "drop", what
        spoofed = ARP[:28] + IPv4Address("10.0.0.1").packed + ARP[32:]
        assert final(a, spoofed) == "drop"  # not for ARP
        asks = v6(payload=ASKED, kind=ICMP6, src="fd00::1")
        assert final(a, asks) == "drop"  # nor for neighbour discovery
    finally:
        a.inputs.localports.put(WEB1.uid, port)
        a.load()
