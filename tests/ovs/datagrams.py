"""IP packets with right checksums, whole or in fragments, and frames of capture files."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address
Ends = tuple[Address, Address]  # source, target

ICMP, TCP, UDP, FRAGMENT, ICMPV6, SCTP = 1, 6, 17, 44, 58, 132
SYN, RST, ACK = 0x02, 0x04, 0x10


def mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def frame(source_mac: str, target_mac: str, packet: bytes) -> bytes:
    """An Ethernet frame around an IP packet."""
    kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
    return mac_bytes(target_mac) + mac_bytes(source_mac) + kind + packet


def who_has(source_mac: str, source: Address, target: Address) -> bytes:
    """An ARP request, framed."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac_bytes(source_mac) + source.packed + bytes(6) + target.packed
    return b"\xff" * 6 + mac_bytes(source_mac) + b"\x08\x06" + body


def datagram(ends: Ends, protocol: int, body: bytes, *, options: bytes = b"") -> bytes:
    """An IP packet of any protocol; `options`: of IPv4, a multiple of 4 bytes."""
    source, target = ends
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + source.packed + target.packed + body
    return _header4(ends, protocol, len(body), options=options) + body


def tcp(ends: Ends, ports: tuple[int, int], flags: int, *, data: bytes = b"", sent: int = 0) -> bytes:
    """Sequence numbers fit any state of a connection that has carried no data but `sent` bytes of this end."""
    sequence, acknowledged = (0, 0) if flags == SYN else (1, 1) if flags & ACK and not flags & SYN else (0, 1)
    sequence += sent
    body = struct.pack("!HHIIBBHHH", *ports, sequence, acknowledged, 5 << 4, flags, 65535, 0, 0) + data
    return datagram(ends, TCP, _summed(ends, TCP, body, at=16))


def udp(ends: Ends, ports: tuple[int, int], *, data: bytes = b"") -> bytes:
    body = struct.pack("!HHHH", *ports, 8 + len(data), 0) + data
    return datagram(ends, UDP, _summed(ends, UDP, body, at=6))


def sctp(ends: Ends, ports: tuple[int, int], *, data: bytes = b"") -> bytes:
    """An INIT chunk; its CRC is not right, nobody looks at it here."""
    init = struct.pack("!BBHIIHHI", 1, 0, 20, 7, 65535, 1, 1, 1)
    return datagram(ends, SCTP, struct.pack("!HHII", *ports, 0, 0) + init + data)


def icmp(ends: Ends, kind: int, code: int, *, number: int = 1, data: bytes = b"") -> bytes:
    """ICMP or ICMPv6, by the family of the ends; `number` is an echo's id."""
    body = struct.pack("!BBHHH", kind, code, 0, number, 1) + data
    if ends[0].version == 4:
        return datagram(ends, ICMP, body[:2] + _checksum(body) + body[4:])
    return datagram(ends, ICMPV6, _summed(ends, ICMPV6, body, at=2))


def unreachable(sender: Address, packet: bytes) -> bytes:
    """The error that `sender` tells the source of a packet: port unreachable."""
    if sender.version == 4:
        return icmp((sender, IPv4Address(packet[12:16])), 3, 3, number=0, data=packet[:28])
    body = struct.pack("!BBHI", 1, 4, 0, 0) + packet[:48]
    ends = (sender, IPv6Address(packet[8:24]))
    return datagram(ends, ICMPV6, _summed(ends, ICMPV6, body, at=2))


def fragments(packet: bytes, *, size: int = 1400, number: int = 77) -> list[bytes]:
    """The packet cut into fragments with `size` bytes (a multiple of 8) of payload each."""
    head = 40 if packet[0] >> 4 == 6 else (packet[0] & 15) * 4
    body = packet[head:]
    out = []
    for at in range(0, len(body), size):
        part, more = body[at : at + size], int(at + size < len(body))
        if head == 40:
            extension = struct.pack("!BBHI", packet[6], 0, at | more, number)
            length = struct.pack("!H", len(part) + 8)
            out.append(packet[:4] + length + bytes((FRAGMENT,)) + packet[7:40] + extension + part)
        else:
            ends = (IPv4Address(packet[12:16]), IPv4Address(packet[16:20]))
            out.append(_header4(ends, packet[9], len(part), number=number, place=more << 13 | at // 8) + part)
    return out


@dataclass(frozen=True, slots=True)
class Seen:
    """What matters of a frame that came out somewhere."""

    source: Address
    target: Address
    protocol: int  # of the first header after the IPv6 one
    payload: bytes  # of IP


def seen(data: bytes) -> Seen | None:
    """The packet in a frame; None if it is not IP."""
    kind, body = data[12:14], data[14:]
    if kind == b"\x08\x00":
        head = (body[0] & 15) * 4
        length = struct.unpack_from("!H", body, 2)[0]
        return Seen(IPv4Address(body[12:16]), IPv4Address(body[16:20]), body[9], body[head:length])
    if kind == b"\x86\xdd":
        length = struct.unpack_from("!H", body, 4)[0]
        return Seen(IPv6Address(body[8:24]), IPv6Address(body[24:40]), body[6], body[40 : 40 + length])
    return None


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


def _header4(ends: Ends, protocol: int, length: int, *, options: bytes = b"", number: int = 0, place: int = 0) -> bytes:
    size = 20 + len(options)
    words = struct.pack("!BBHHHBBH", 0x40 | size // 4, 0, size + length, number, place, 64, protocol, 0)
    head = words + ends[0].packed + ends[1].packed + options
    return head[:10] + _checksum(head) + head[12:]


def _summed(ends: Ends, protocol: int, body: bytes, *, at: int) -> bytes:
    """With the checksum over the pseudo header, at an offset."""
    pseudo = ends[0].packed + ends[1].packed + struct.pack("!II", len(body), protocol)
    return body[:at] + _checksum(pseudo + body) + body[at + 2 :]


def _checksum(data: bytes) -> bytes:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
