"""Raw Ethernet frames for spoofing tests and captures, built by hand so that every field can be a lie."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address
BROADCAST = "ff:ff:ff:ff:ff:ff"


def mac_bytes(mac: str) -> bytes:
    """6 bytes of aa:bb:cc:dd:ee:ff."""
    return bytes.fromhex(mac.replace(":", ""))


def ethernet(*, src: str, dst: str, kind: int, payload: bytes, vlan: int | None = None) -> bytes:
    """IEEE 802.3 frame; `vlan` adds an 802.1Q tag (0 = a priority tag)."""
    tag = struct.pack("!HH", 0x8100, vlan) if vlan is not None else b""
    return mac_bytes(dst) + mac_bytes(src) + tag + struct.pack("!H", kind) + payload


def checksum(data: bytes) -> int:
    """Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo(src: Address, dst: Address, *, protocol: int, length: int) -> bytes:
    if src.version == 4:
        return src.packed + dst.packed + struct.pack("!BBH", 0, protocol, length)
    return src.packed + dst.packed + struct.pack("!IHBB", length, 0, 0, protocol)


def udp(src: Address, dst: Address, *, sport: int, dport: int, data: bytes) -> bytes:
    """UDP datagram with a right checksum (RFC 768)."""
    length = 8 + len(data)
    head = struct.pack("!HHHH", sport, dport, length, 0)
    found = checksum(_pseudo(src, dst, protocol=17, length=length) + head + data)
    return struct.pack("!HHHH", sport, dport, length, found or 0xFFFF) + data


def ip(src: str, dst: str, *, protocol: int, payload: bytes, ttl: int = 64) -> tuple[int, bytes]:
    """(EtherType, packet) of IPv4 or IPv6, by the family of `src`."""
    a, b = ip_address(src), ip_address(dst)
    if a.version == 4:
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, ttl, protocol, 0, a.packed, b.packed)
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        return 0x0800, head + payload
    return 0x86DD, struct.pack("!IHBB16s16s", 6 << 28, len(payload), protocol, ttl, a.packed, b.packed) + payload


def udp_frame(
    *, src_mac: str, dst_mac: str, src: str, dst: str, data: bytes, dport: int = 9999, vlan: int | None = None
) -> bytes:
    """A whole UDP frame."""
    datagram = udp(ip_address(src), ip_address(dst), sport=9999, dport=dport, data=data)
    kind, packet = ip(src, dst, protocol=17, payload=datagram)
    return ethernet(src=src_mac, dst=dst_mac, kind=kind, payload=packet, vlan=vlan)


def arp_frame(*, src_mac: str, op: int, sha: str, spa: str, tha: str, tpa: str, dst_mac: str = BROADCAST) -> bytes:
    """ARP (RFC 826): op 1 request, 2 reply."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, op)
    body += mac_bytes(sha) + IPv4Address(spa).packed + mac_bytes(tha) + IPv4Address(tpa).packed
    return ethernet(src=src_mac, dst=dst_mac, kind=0x0806, payload=body)


def nd_frame(*, src_mac: str, dst_mac: str, src: str, dst: str, kind: int, target: str, lladdr: str) -> bytes:
    """Neighbour solicitation (135) or advertisement (136) with a link-layer option (RFC 4861)."""
    option = struct.pack("!BB", 1 if kind == 135 else 2, 1) + mac_bytes(lladdr)
    body = struct.pack("!BBHI", kind, 0, 0, 0x20000000 if kind == 136 else 0) + IPv6Address(target).packed + option
    return _icmp6(src_mac=src_mac, dst_mac=dst_mac, src=src, dst=dst, body=body)


def router_advertisement(*, src_mac: str, src: str) -> bytes:
    """A rogue router advertisement to all nodes."""
    body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    return _icmp6(src_mac=src_mac, dst_mac="33:33:00:00:00:01", src=src, dst="ff02::1", body=body)


def _icmp6(*, src_mac: str, dst_mac: str, src: str, dst: str, body: bytes) -> bytes:
    pseudo = _pseudo(IPv6Address(src), IPv6Address(dst), protocol=58, length=len(body))
    body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
    kind, packet = ip(src, dst, protocol=58, payload=body, ttl=255)
    return ethernet(src=src_mac, dst=dst_mac, kind=kind, payload=packet)
