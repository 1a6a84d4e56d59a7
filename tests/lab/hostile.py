"""Frames that a workload may try: all sorts towards others' ports, lies about itself, tunnel packets of its own.

Each is marked: the mark is its payload, or follows it as padding, so that a capture knows whose a frame is.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from tealnet.probe.frames import (
    BROADCAST,
    arp_frame,
    checksum,
    ethernet,
    ip,
    mac_bytes,
    nd_frame,
    router_advertisement,
    udp,
    udp_frame,
)

ROUTER_MAC = "02:74:6e:00:00:01"
NOBODY = "00:00:00:00:00:00"
UNKNOWN_MAC = "02:de:ad:be:ef:01"
GROUP4, GROUP6 = "01:00:5e:00:00:fb", "33:33:00:00:00:fb"


@dataclass(frozen=True, slots=True)
class Party:
    """Who sends, or is meant."""

    mac: str
    v4: str
    v6: str


def _icmp(kind: int, code: int, rest: bytes) -> bytes:
    body = struct.pack("!BBH", kind, code, 0) + rest
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


def _icmp6(src: str, dst: str, kind: int, rest: bytes) -> bytes:
    body = struct.pack("!BBH", kind, 0, 0) + rest
    pseudo = IPv6Address(src).packed + IPv6Address(dst).packed + struct.pack("!IHBB", len(body), 0, 0, 58)
    return body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]


def _tcp(src: str, dst: str, mark: bytes) -> bytes:
    head = struct.pack("!HHIIBBHHH", 40000, 7001, 1, 0, 5 << 4, 2, 1024, 0, 0)
    a, b = ip_address(src), ip_address(dst)
    length = len(head) + len(mark)
    pseudo = a.packed + b.packed
    pseudo += struct.pack("!BBH", 0, 6, length) if a.version == 4 else struct.pack("!IHBB", length, 0, 0, 6)
    return head[:16] + struct.pack("!H", checksum(pseudo + head + mark)) + head[18:] + mark


def vxlan(vni: int, inner: bytes) -> bytes:
    """RFC 7348, 5."""
    return struct.pack("!BBHI", 8, 0, 0, vni << 8) + inner


def packets(me: Party, you: Party, mark: bytes) -> Iterator[tuple[str, int, bytes]]:
    """(what, EtherType, packet) of all sorts, by IP, from my own addresses to yours."""
    for src, dst, name in ((me.v4, you.v4, "v4"), (me.v6, you.v6, "v6")):
        v4 = name == "v4"
        datagram = udp(ip_address(src), ip_address(dst), sport=9999, dport=9999, data=mark)
        echo = struct.pack("!HH", 7, 1) + mark
        ping = (1, _icmp(8, 0, echo)) if v4 else (58, _icmp6(src, dst, 128, echo))
        odd = (0, 2, 4, 41, 47, 50, 51, 89, 103, 112, 132, 136, 253, 255)
        for protocol, payload in (
            (17, datagram),
            ping,
            (6, _tcp(src, dst, mark)),
            *((number, bytes(8) + mark) for number in odd if v4 or number not in (0, 51)),
        ):
            yield f"{name} protocol {protocol}", *ip(src, dst, protocol=protocol, payload=payload)
        for port in (53, 67, 68, 546, 547, 1900, 3784, 4789, 5353, 6081, 6653, 7443):
            inner = ethernet(
                src=me.mac, dst=you.mac, kind=0x0800, payload=ip(me.v4, you.v4, protocol=17, payload=datagram)[1]
            )
            data = vxlan(5000, inner) + mark if port == 4789 else mark
            datagram_to = udp(ip_address(src), ip_address(dst), sport=port, dport=port, data=data)
            yield f"{name} UDP {port}", *ip(src, dst, protocol=17, payload=datagram_to)
        yield f"{name} TTL 1", *ip(src, dst, protocol=17, payload=datagram, ttl=1)
        long = udp(ip_address(src), ip_address(dst), sport=9999, dport=9999, data=mark + bytes(1200))
        if v4:
            _, whole = ip(src, dst, protocol=17, payload=long)
            for offset, more in ((0, 1), (3, 1), (150, 0)):
                head = whole[:6] + struct.pack("!H", more << 13 | offset) + whole[8:10] + b"\0\0" + whole[12:20]
                head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
                yield f"fragment at {offset}", 0x0800, head + whole[20:]
        else:
            for offset, more in ((0, 1), (3, 1), (150, 0)):
                header = struct.pack("!BBHI", 17, 0, offset << 3 | more, 42)
                yield f"v6 fragment at {offset}", *ip(src, dst, protocol=44, payload=header + long)
            options = struct.pack("!BB", 17, 0) + bytes(6)
            yield "v6 destination options", *ip(src, dst, protocol=60, payload=options + datagram)


def towards(me: Party, you: Party, mark: bytes) -> dict[str, bytes]:
    """By what it is: a frame from me, under my own name, towards you or everybody."""
    found: dict[str, bytes] = {}

    def add(what: str, frame: bytes) -> None:
        found[what] = frame if mark in frame else frame + mark

    def l2(what: str, dst: str, kind: int, payload: bytes = b"") -> None:
        add(what, ethernet(src=me.mac, dst=dst, kind=kind, payload=payload + mark))

    for what, kind, packet in packets(me, you, mark):
        for dst in (you.mac, ROUTER_MAC):
            add(f"{what} to {dst}", ethernet(src=me.mac, dst=dst, kind=kind, payload=packet))
    plain4 = ip(
        me.v4, you.v4, protocol=17, payload=udp(ip_address(me.v4), ip_address(you.v4), sport=9, dport=9, data=mark)
    )
    plain6 = ip(
        me.v6, you.v6, protocol=17, payload=udp(ip_address(me.v6), ip_address(you.v6), sport=9, dport=9, data=mark)
    )
    for dst in (BROADCAST, GROUP4, GROUP6, UNKNOWN_MAC, NOBODY, me.mac):
        for kind, packet in (plain4, plain6):
            add(f"{kind:x} to {dst}", ethernet(src=me.mac, dst=dst, kind=kind, payload=packet))
    for outer, tag in itertools.product((0x8100, 0x88A8, 0x9100), (0, 1, 100, 4095)):
        body = struct.pack("!HH", tag, plain4[0]) + plain4[1]
        add(f"tag {outer:x} {tag}", ethernet(src=me.mac, dst=you.mac, kind=outer, payload=body))
        add(
            f"two tags {outer:x} {tag}",
            ethernet(src=me.mac, dst=you.mac, kind=outer, payload=struct.pack("!HH", tag, 0x8100) + body),
        )
    for target in ("255.255.255.255", "10.0.0.255", "10.0.0.0", "224.0.0.1", "224.0.0.251", "239.1.2.3", "127.0.0.1"):
        for dst in (BROADCAST, GROUP4, you.mac):
            add(f"to {target} by {dst}", udp_frame(src_mac=me.mac, dst_mac=dst, src=me.v4, dst=target, data=mark))
    for target in ("ff02::1", "ff02::2", "ff02::fb", "ff05::1:3", "ff0e::1", "::1", "::", "fe80::2"):
        for dst in ("33:33:00:00:00:01", you.mac):
            add(f"to {target} by {dst}", udp_frame(src_mac=me.mac, dst_mac=dst, src=me.v6, dst=target, data=mark))
    for op in (1, 2, 3, 8):
        for dst in (BROADCAST, you.mac):
            add(
                f"ARP {op} to {dst}",
                arp_frame(src_mac=me.mac, op=op, sha=me.mac, spa=me.v4, tha=NOBODY, tpa=you.v4, dst_mac=dst),
            )
    add("ARP probe", arp_frame(src_mac=me.mac, op=1, sha=me.mac, spa="0.0.0.0", tha=NOBODY, tpa=you.v4))
    add("ARP announcement", arp_frame(src_mac=me.mac, op=1, sha=me.mac, spa=me.v4, tha=NOBODY, tpa=me.v4))
    for kind in (135, 136):
        nd = nd_frame(src_mac=me.mac, dst_mac=you.mac, src=me.v6, dst=you.v6, kind=kind, target=you.v6, lladdr=me.mac)
        add(f"ND {kind}", nd)
    solicited = "ff02::1:ff" + IPv6Address(you.v6).exploded[-7:]
    add("ND to its group", nd_frame(
        src_mac=me.mac, dst_mac="33:33:ff:" + ":".join(f"{b:02x}" for b in IPv6Address(you.v6).packed[-3:]),
        src=me.v6, dst=solicited, kind=135, target=you.v6, lladdr=me.mac,
    ))  # fmt: skip
    add("router advertisement", router_advertisement(src_mac=me.mac, src=me.v6))
    for kind in (130, 131, 132, 133, 137, 143):
        body = _icmp6(me.v6, "ff02::1", kind, bytes(20) + mark)
        ether, packet = ip(me.v6, "ff02::1", protocol=58, payload=body, ttl=255)
        add(f"ICMPv6 {kind}", ethernet(src=me.mac, dst="33:33:00:00:00:01", kind=ether, payload=packet))
    dhcp = struct.pack("!BBBB", 1, 1, 6, 0) + bytes(232) + b"\x63\x82\x53\x63\x35\x01\x01\xff" + mark
    for src, sport, dport in (("0.0.0.0", 68, 67), (me.v4, 67, 68)):
        datagram = udp(ip_address(src), ip_address("255.255.255.255"), sport=sport, dport=dport, data=dhcp)
        kind, packet = ip(src, "255.255.255.255", protocol=17, payload=datagram)
        add(f"DHCP to {dport}", ethernet(src=me.mac, dst=BROADCAST, kind=kind, payload=packet))
    l2("LLDP", "01:80:c2:00:00:0e", 0x88CC, b"\x02\x07\x04" + mac_bytes(me.mac))
    l2("STP", "01:80:c2:00:00:00", 40, b"\x42\x42\x03" + bytes(35))
    l2("CDP", "01:00:0c:cc:cc:cc", 40, b"\xaa\xaa\x03\x00\x00\x0c\x20\x00")
    l2("LACP", "01:80:c2:00:00:02", 0x8809, b"\x01\x01")
    l2("pause", "01:80:c2:00:00:01", 0x8808, b"\x00\x01\xff\xff")
    l2("EAPOL", "01:80:c2:00:00:03", 0x888E)
    l2("PTP", "01:1b:19:00:00:00", 0x88F7)
    for kind in (0x8035, 0x8847, 0x8863, 0x8864, 0x894F, 0x8906, 0x8915, 0x9000, 0x88B5, 0xFFFF, 0x86DC, 0x0801):
        l2(f"EtherType {kind:x}", you.mac, kind, bytes(20))
    l2("v4 as v6", you.mac, 0x86DD, plain4[1])
    l2("v6 as v4", you.mac, 0x0800, plain6[1])
    return found


def lies(me: Party, peer: Party, other: Party, mark: bytes) -> dict[str, bytes]:
    """By what it says: `me` pretends to be somebody else, or something that it may not be, to `peer`."""
    found: dict[str, bytes] = {}
    macs = {"mine": me.mac, "other's": other.mac, "peer's": peer.mac, "router's": ROUTER_MAC, "unknown": UNKNOWN_MAC,
            "group": GROUP4, "broadcast": BROADCAST, "none": NOBODY}  # fmt: skip
    v4 = {"mine": me.v4, "other's": other.v4, "peer's": peer.v4, "gateway's": "10.0.0.1", "foreign": "192.0.2.77",
          "VTEP's": "192.0.2.1", "none": "0.0.0.0", "loopback": "127.0.0.1", "group": "224.0.0.1",
          "broadcast": "255.255.255.255", "net": "10.0.0.0", "free": "10.0.0.200"}  # fmt: skip
    v6 = {"mine": me.v6, "other's": other.v6, "peer's": peer.v6, "gateway's": "fd00::1", "router's": "fe80::1",
          "foreign": "2001:db8::7", "none": "::", "loopback": "::1", "group": "ff02::1", "mapped": f"::ffff:{me.v4}",
          "free": "fd00::200"}  # fmt: skip
    for (m, mac), family in itertools.product(macs.items(), (v4, v6)):
        for a, address in family.items():
            if (m, a) != ("mine", "mine") and (m in ("mine", "other's", "router's", "unknown") or a == "mine"):
                dst = peer.v4 if family is v4 else peer.v6
                found[f"UDP from MAC {m}, address {a}, v{4 if family is v4 else 6}"] = udp_frame(
                    src_mac=mac, dst_mac=peer.mac, src=address, dst=dst, data=mark
                )
    for op, (s, sha), (a, spa) in itertools.product((1, 2), macs.items(), v4.items()):
        if (s, a) != ("mine", "mine") and (s in ("mine", "other's") or a in ("mine", "other's")):
            frame = arp_frame(src_mac=me.mac, op=op, sha=sha, spa=spa, tha=NOBODY, tpa=peer.v4, dst_mac=peer.mac)
            found[f"ARP {op} with MAC {s}, address {a}"] = frame + mark
    for kind, (m, lladdr), (a, src) in itertools.product((135, 136), macs.items(), v6.items()):
        if m in ("mine", "other's") and (m, a, kind) != ("mine", "mine", 135) and not src.startswith("::ffff"):
            for t in (other.v6, "fd00::1", "fe80::1"):
                frame = nd_frame(
                    src_mac=me.mac, dst_mac=peer.mac, src=src, dst=peer.v6, kind=kind, target=t, lladdr=lladdr
                )
                found[f"ND {kind} from {a} for {t} with MAC {m}"] = frame + mark
    found["router advertisement"] = router_advertisement(src_mac=me.mac, src=me.v6) + mark
    found["router advertisement of the router"] = router_advertisement(src_mac=me.mac, src="fe80::1") + mark
    for tag in (0, 1, 100, 4095):
        for src, dst in ((me.v4, peer.v4), (me.v6, peer.v6)):
            found[f"tag {tag} {src}"] = udp_frame(
                src_mac=me.mac, dst_mac=peer.mac, src=src, dst=dst, data=mark, vlan=tag
            )
    return found


def forged(*, src_mac: str, dst_mac: str, src: str, dst: str, vni: int, inner: bytes, flags: int = 8) -> bytes:
    """A whole tunnel packet on the underlay, as nobody but a VTEP should send it."""
    payload = struct.pack("!BBHI", flags, 0, 0, vni << 8) + inner
    datagram = udp(ip_address(src), ip_address(dst), sport=50000, dport=4789, data=payload)
    kind, packet = ip(src, dst, protocol=17, payload=datagram)
    return ethernet(src=src_mac, dst=dst_mac, kind=kind, payload=packet)
