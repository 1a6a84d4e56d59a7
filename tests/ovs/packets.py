"""Frames for a switch, made and read: Ethernet, IPv4 and IPv6, TCP, UDP, ICMP, ARP, VXLAN. With right checksums."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address

SYN, RST, ACK, FIN, PSH = 0x02, 0x04, 0x10, 0x01, 0x08
TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
VXLAN_PORT = 4789


@dataclass(frozen=True, slots=True)
class Packet:
    """What matters of a frame. `vni`: of the tunnel it was in, else None; ports of an echo: its id and sequence."""

    source_mac: str
    target_mac: str
    source: Address
    target: Address
    protocol: int
    ports: tuple[int, int]
    flags: int = 0
    vni: int | None = None
    outer: tuple[Address, Address] | None = None


def frame(source_mac: str, target_mac: str, packet: bytes) -> bytes:
    """An Ethernet frame around an IP packet."""
    kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
    return _mac(target_mac) + _mac(source_mac) + kind + packet


def tcp(source: Address, target: Address, ports: tuple[int, int], flags: int, *, data: bytes = b"") -> bytes:
    """An IP packet with a TCP segment; sequence numbers fit any state of a connection that has carried no data."""
    sequence, acknowledged = (0, 0) if flags == SYN else (1, 1) if flags & ACK and not flags & SYN else (0, 1)
    head = struct.pack("!HHIIBBHHH", *ports, sequence, acknowledged, 5 << 4, flags, 65535, 0, 0)
    return _ip(source, target, TCP, _summed(source, target, TCP, head + data, at=16))


def udp(source: Address, target: Address, ports: tuple[int, int], *, data: bytes = b"") -> bytes:
    """An IP packet with a UDP datagram."""
    head = struct.pack("!HHHH", *ports, 8 + len(data), 0)
    return _ip(source, target, UDP, _summed(source, target, UDP, head + data, at=6))


def echo(source: Address, target: Address, number: int, *, reply: bool = False) -> bytes:
    """An echo request or its reply; `number` is its id."""
    if source.version == 4:
        body = struct.pack("!BBHHH", 0 if reply else 8, 0, 0, number, 1)
        return _ip(source, target, ICMP, body[:2] + _checksum(body) + body[4:])
    body = struct.pack("!BBHHH", 129 if reply else 128, 0, 0, number, 1)
    return _ip(source, target, ICMP6, _summed(source, target, ICMP6, body, at=2))


def unreachable(source: Address, packet: bytes) -> bytes:
    """The ICMP error of a host to the sender of an IPv4 packet: port unreachable."""
    target = ip_address(packet[12:16])
    body = struct.pack("!BBHI", 3, 3, 0, 0) + packet[:28]
    return _ip(source, target, ICMP, body[:2] + _checksum(body) + body[4:])


def fragments(packet: bytes, size: int) -> list[bytes]:
    """An IPv4 packet in pieces of so many bytes (a multiple of 8)."""
    body, out = packet[20:], []
    for at in range(0, len(body), size):
        piece, more = body[at : at + size], 0x2000 if at + size < len(body) else 0
        head = (
            packet[:2]
            + struct.pack("!HHH", 20 + len(piece), 7, more | at // 8)
            + packet[8:10]
            + b"\0\0"
            + packet[12:20]
        )
        out.append(head[:10] + _checksum(head) + head[12:] + piece)
    return out


def who_has(source_mac: str, source: Address, target: Address) -> bytes:
    """An ARP request."""
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    body = head + _mac(source_mac) + source.packed + bytes(6) + target.packed
    return b"\xff" * 6 + _mac(source_mac) + b"\x08\x06" + body


def tunnelled(outer: tuple[str, str], macs: tuple[str, str], vni: int, inner: bytes) -> bytes:
    """A frame in VXLAN between two VTEPs; `macs` are (source, target)."""
    source, target = ip_address(outer[0]), ip_address(outer[1])
    data = struct.pack("!II", 0x08000000, vni << 8) + inner
    return frame(*macs, _ip(source, target, UDP, struct.pack("!HHHH", 50000, VXLAN_PORT, 8 + len(data), 0) + data))


def read(data: bytes) -> Packet | None:
    """The packet in a frame, also through a tunnel; None if it is not IP."""
    kind, body = data[12:14], data[14:]
    if kind == b"\x08\x00":
        at, protocol, ends = (body[0] & 15) * 4, body[9], (body[12:16], body[16:20])
    elif kind == b"\x86\xdd":
        at, protocol, ends = 40, body[6], (body[8:24], body[24:40])
    else:
        return None
    source, target = ip_address(ends[0]), ip_address(ends[1])
    if kind == b"\x08\x00" and struct.unpack_from("!H", body, 6)[0] & 0x1FFF:  # a later fragment
        return Packet(data[6:12].hex(":"), data[:6].hex(":"), source, target, protocol, (0, 0))
    ports = struct.unpack_from("!HH", body, at + (4 if protocol in (ICMP, ICMP6) else 0))
    if protocol == UDP and ports[1] == VXLAN_PORT:
        inner = read(body[at + 16 :])
        vni = struct.unpack_from("!I", body, at + 12)[0] >> 8
        return None if inner is None else _wrapped(inner, vni, (source, target))
    flags = body[at + 13] if protocol == TCP else body[at] if protocol in (ICMP, ICMP6) else 0
    return Packet(data[6:12].hex(":"), data[:6].hex(":"), source, target, protocol, (ports[0], ports[1]), flags)


def _wrapped(inner: Packet, vni: int, outer: tuple[Address, Address]) -> Packet:
    ends = inner.source_mac, inner.target_mac, inner.source, inner.target
    return Packet(*ends, inner.protocol, inner.ports, inner.flags, vni, outer)


def pcap(data: bytes) -> list[bytes]:
    """The frames of a capture file; one that is still being written is left out."""
    frames, at = [], 24
    while at + 16 <= len(data):
        length = struct.unpack_from("=I", data, at + 8)[0]
        if at + 16 + length > len(data):
            break
        frames.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    return frames


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _ip(source: Address, target: Address, protocol: int, body: bytes) -> bytes:
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + source.packed + target.packed + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0) + source.packed + target.packed
    return head[:10] + _checksum(head) + head[12:] + body


def _summed(source: Address, target: Address, protocol: int, body: bytes, *, at: int) -> bytes:
    """With the checksum over the pseudo header, at an offset."""
    pseudo = source.packed + target.packed + struct.pack("!II", len(body), protocol)
    return body[:at] + _checksum(pseudo + body) + body[at + 2 :]


def _checksum(data: bytes) -> bytes:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
