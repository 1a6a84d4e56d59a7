"""Connections that were denied, or would have been: packets that the switch shows us, and a bounded memory of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from struct import Struct
from struct import error as StructError

from agent.pipeline import Flag, Stage
from agent.policy.stages import FALLBACK
from tealnet.core.rows.security import ICMP, ICMPV6, Direction, Mode

KEPT = 1000  # different ones
_HEAD = Struct("!IHBBQHH")  # OFPT_PACKET_IN: buffer, length, reason, table, cookie; match type and length
_XREGS, _METADATA = 0x8001, (0x8000, 2)
_NEXT_HEADERS = (0, 43, 60, 135)  # extension headers with a length in units of 8 bytes


@dataclass(frozen=True, slots=True)
class Packet:
    """Of a denied packet: IP protocol, addresses as bytes, ports (ICMP: type and code)."""

    protocol: int
    source: bytes
    target: bytes
    ports: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Denied:
    """A verdict as the registers tell it. `ofport`: of the port whose rules said it."""

    ofport: int
    identity: int
    direction: Direction
    rule: int  # 0: none allowed it
    mode: Mode
    remote_identity: int
    domain: int
    color: int
    packet: Packet


@dataclass(slots=True)
class Denials:
    """What was denied of late: how often, and when last. Equal ones are one; the oldest go first."""

    lost: int = 0
    _kept: dict[Denied, tuple[int, int]] = field(default_factory=dict)

    def add(self, denied: Denied, *, now: int) -> None:
        """One more, at this Unix time in nanoseconds."""
        count, _ = self._kept.pop(denied, (0, 0))
        if len(self._kept) >= KEPT:
            oldest = next(iter(self._kept))
            self.lost += self._kept.pop(oldest)[0]
        self._kept[denied] = (count + 1, now)

    def take(self, most: int | None = None) -> list[tuple[Denied, int, int]]:
        """(denied, count, time of the last one), the oldest first; each is told once."""
        out = [(denied, count, at) for denied, (count, at) in islice(self._kept.items(), most)]
        for denied, _, _ in out:
            del self._kept[denied]
        return out


def parse(body: bytes) -> Denied | None:
    """OFPT_PACKET_IN; None for one that is not of a verdict, or makes no sense."""
    try:
        _, _, _, table, _, _, length = _HEAD.unpack_from(body)
        start = _HEAD.size - 4
        fields = dict(_fields(body[start + 4 : start + length]))
        packet = _packet(body[start + (length + 7 & ~7) + 2 :])
    except (StructError, IndexError):
        return None
    if packet is None or table not in (Stage.DENIED, Stage.PASSED):
        return None
    registers = {2 * n + half: fields.get((_XREGS, n), 0) >> (0 if half else 32) & 0xFFFFFFFF
                 for n in range(8) for half in (0, 1)}  # fmt: skip
    metadata, zones = fields.get(_METADATA, 0), registers[11]
    shadow = table == Stage.PASSED
    rule = registers[3] if shadow else registers[15]
    return Denied(
        ofport=zones >> 16 if registers[13] & Flag.AT_TARGET else zones & 0xFFFF,
        identity=registers[0],
        direction=Direction.INGRESS if registers[2] >> 31 else Direction.EGRESS,
        rule=0 if rule == FALLBACK else rule,
        mode=Mode.SHADOW if shadow else Mode.ENFORCE,
        remote_identity=registers[1],
        domain=metadata & 0xFFFFFFFF,
        color=metadata >> 32 & 0xFF,
        packet=packet,
    )


def _fields(match: bytes) -> Iterator[tuple[tuple[int, int], int]]:
    """((class, number), value) of all fields, also of those that we never match."""
    at = 0
    while at + 4 <= len(match):
        kind, number, length = int.from_bytes(match[at : at + 2], "big"), match[at + 2] >> 1, match[at + 3]
        size = length // 2 if match[at + 2] & 1 else length
        yield (kind, number), int.from_bytes(match[at + 4 : at + 4 + size], "big")
        at += 4 + length


def _packet(frame: bytes) -> Packet | None:
    kind, body = frame[12:14], frame[14:]
    if kind == b"\x08\x00":
        at, protocol, source, target = (body[0] & 15) * 4, body[9], body[12:16], body[16:20]
    elif kind == b"\x86\xdd":
        at, protocol, source, target = 40, body[6], body[8:24], body[24:40]
        while protocol in (*_NEXT_HEADERS, 44) and at + 2 <= len(body):
            protocol, at = body[at], at + (8 if protocol == 44 else 8 * (body[at + 1] + 1))
    else:
        return None
    ports = (0, 0)
    if protocol in (ICMP, ICMPV6) and at + 2 <= len(body):
        ports = (body[at], body[at + 1])
    elif protocol in (6, 17, 132) and at + 4 <= len(body):
        ports = (int.from_bytes(body[at : at + 2], "big"), int.from_bytes(body[at + 2 : at + 4], "big"))
    return Packet(protocol, bytes(source), bytes(target), ports)
