"""What a switch sends us (OpenFlow Switch Specification 1.5.1).

Parsers take a message's body, or the payload of a multipart reply, and raise nothing but ProtocolError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from agent.openflow.errors import ProtocolError
from agent.openflow.flow import Group, GroupKind
from agent.openflow.message import HEADER, OFPIT_APPLY_ACTIONS, VERSION, Type

_FLOW_DESC = Struct("!H2xBxHHHHHQ")
_GROUP_DESC = Struct("!HBxIH6x")
_UPDATE = Struct("!HH")
_UPDATE_FULL = Struct("!HHBBHHH4xQ")
_ERROR = Struct("!HH")
_PORT_STATUS = Struct("!B7xI12x16s")  # reason, then of the port: number, length, MAC, name
_MORE = 1
_PACKETS, _BYTES = 4, 5  # OFPXST_OFB_*
_INSTRUCTION = Struct("!HH")
_MULTIPART = Struct("!HH")  # kind, flags


@dataclass(frozen=True, slots=True)
class Message:
    """One message as received. `type` is not a `Type` for what we do not know."""

    type: int
    xid: int
    body: bytes


class Framer:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take bytes and yield the messages that are complete. Raises ProtocolError; then the stream is lost."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= HEADER.size:
                version, kind, length, xid = HEADER.unpack_from(buffer, at)
                if length < HEADER.size or (version != VERSION and kind not in (Type.HELLO, Type.ERROR)):
                    raise ProtocolError(f"not OpenFlow 1.5: version {version}, length {length}")
                if len(buffer) - at < length:
                    return
                body = bytes(buffer[at + HEADER.size : at + length])
                at += length
                yield Message(kind, xid, body)
        finally:
            del buffer[:at]


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """OFPT_ERROR. `experimenter` is the vendor of an extension error (its code is then `code`), else 0."""

    type: int
    code: int
    experimenter: int = 0

    @property
    def reason(self) -> str:
        """A CamelCase word."""
        return "OpenFlow" + _ERROR_TYPES.get(self.type, "Error")

    def __str__(self) -> str:
        vendor = f" of vendor {self.experimenter:#x}" if self.experimenter else ""
        return f"{_ERROR_TYPES.get(self.type, 'error')} (type {self.type}, code {self.code}{vendor})"


_ERROR_TYPES = {
    0: "HelloFailed",
    1: "BadRequest",
    2: "BadAction",
    3: "BadInstruction",
    4: "BadMatch",
    5: "FlowModFailed",
    6: "GroupModFailed",
    14: "BadProperty",
    16: "FlowMonitorFailed",
    17: "BundleFailed",
    0xFFFF: "ExtensionFailed",
}


def parse_port_status(body: bytes) -> tuple[str, int]:
    """OFPT_PORT_STATUS: name and number of a port. Only those that were added are sent (`message.only_wanted`)."""
    _need(body, 0, _PORT_STATUS.size)
    _, number, name = _PORT_STATUS.unpack_from(body)
    return name.rstrip(b"\0").decode(errors="replace"), number


def parse_error(body: bytes) -> ErrorReply:
    """OFPT_ERROR."""
    _need(body, 0, 4)
    kind, code = _ERROR.unpack_from(body)
    if kind == 0xFFFF:
        _need(body, 0, 8)
        return ErrorReply(kind, code, int.from_bytes(body[4:8], "big"))
    return ErrorReply(kind, code)


def parse_bundle_control(body: bytes) -> int:
    """The type (see `Bundle`) of OFPT_BUNDLE_CONTROL."""
    _need(body, 0, 8)
    return int.from_bytes(body[4:6], "big")


def parse_multipart(body: bytes) -> tuple[int, bool, bytes]:
    """(kind, more to come, payload) of OFPT_MULTIPART_REPLY."""
    _need(body, 0, 8)
    kind, flags = _MULTIPART.unpack_from(body)
    return kind, bool(flags & _MORE), body[8:]


@dataclass(frozen=True, slots=True)
class FlowDesc:
    """A flow as the switch has it, raw."""

    table: int
    priority: int
    cookie: int
    match: bytes  # OXM fields
    instructions: bytes

    @property
    def actions(self) -> bytes | None:
        """The actions if it has no other instruction than to apply them, else None."""
        raw = self.instructions
        if not raw:
            return b""
        if len(raw) < 8 or raw[:4] != _INSTRUCTION.pack(OFPIT_APPLY_ACTIONS, len(raw)):
            return None
        return raw[8:]


def parse_flow_desc(payload: bytes) -> Iterator[FlowDesc]:
    """The flows of an OFPMP_FLOW_DESC reply."""
    for at, end in _entries(payload, _FLOW_DESC.size + 8):
        _, table, priority, _, _, _, _, cookie = _FLOW_DESC.unpack_from(payload, at)
        match_at = at + _FLOW_DESC.size
        match_length = _tlv_length(payload, match_at, end)
        stats_at = match_at + (match_length + 7 & ~7)
        stats_length = _tlv_length(payload, stats_at, end)
        yield FlowDesc(
            table=table,
            priority=priority,
            cookie=cookie,
            match=payload[match_at + 4 : match_at + match_length],
            instructions=payload[stats_at + (stats_length + 7 & ~7) : end],
        )


def parse_flow_counts(payload: bytes) -> Iterator[tuple[int, int, int]]:
    """(cookie, packets, bytes) of the flows of an OFPMP_FLOW_DESC reply (statistics: OpenFlow 1.5.1, 7.2.4)."""
    for at, end in _entries(payload, _FLOW_DESC.size + 8):
        cookie = _FLOW_DESC.unpack_from(payload, at)[-1]
        match_at = at + _FLOW_DESC.size
        stats_at = match_at + (_tlv_length(payload, match_at, end) + 7 & ~7)
        stats_end = stats_at + _tlv_length(payload, stats_at, end)
        counts = {_PACKETS: 0, _BYTES: 0}
        field_at = stats_at + 4
        while field_at + 4 <= stats_end:
            kind, size = payload[field_at + 2] >> 1, payload[field_at + 3]
            if kind in counts:
                counts[kind] = int.from_bytes(payload[field_at + 4 : field_at + 4 + size], "big")
            field_at += 4 + size
        yield cookie, counts[_PACKETS], counts[_BYTES]


def parse_group_desc(payload: bytes) -> Iterator[Group]:
    """The groups of an OFPMP_GROUP_DESC reply."""
    for at, end in _entries(payload, _GROUP_DESC.size):
        _, kind, group_id, buckets_length = _GROUP_DESC.unpack_from(payload, at)
        start = at + _GROUP_DESC.size
        if start + buckets_length > end or kind > max(GroupKind):
            raise ProtocolError(f"group {group_id} is cut off or of type {kind}")
        buckets = payload[start : start + buckets_length]
        yield Group(group_id, GroupKind(kind), buckets, payload[start + buckets_length : end])


class Event(IntEnum):
    """OFPFME_* of a flow monitor."""

    INITIAL = 0
    ADDED = 1
    REMOVED = 2
    MODIFIED = 3
    ABBREVIATED = 4
    PAUSED = 5
    RESUMED = 6


@dataclass(frozen=True, slots=True)
class FlowUpdate:
    """What a flow monitor tells. `cookie` is 0 for ABBREVIATED (a change of our own), PAUSED and RESUMED."""

    event: int
    cookie: int = 0


def parse_flow_updates(payload: bytes) -> Iterator[FlowUpdate]:
    """The events of an OFPMP_FLOW_MONITOR reply."""
    for at, end in _entries(payload, _UPDATE.size):
        _, event = _UPDATE.unpack_from(payload, at)
        if event > Event.MODIFIED:
            yield FlowUpdate(event)
        elif end - at < _UPDATE_FULL.size:
            raise ProtocolError("a flow update is cut off")
        else:
            yield FlowUpdate(event, _UPDATE_FULL.unpack_from(payload, at)[7])


def _entries(payload: bytes, least: int) -> Iterator[tuple[int, int]]:
    """(start, end) of entries that begin with a 16-bit length."""
    at = 0
    while at < len(payload):
        _need(payload, at, least)
        length = int.from_bytes(payload[at : at + 2], "big")
        if length < least or at + length > len(payload):
            raise ProtocolError(f"an entry of {length} bytes where {len(payload) - at} are left")
        yield at, at + length
        at += length


def _tlv_length(payload: bytes, at: int, end: int) -> int:
    """Length, without padding, of a match or stats structure."""
    length = int.from_bytes(payload[at + 2 : at + 4], "big") if at + 4 <= end else 0
    if length < 4 or at + (length + 7 & ~7) > end:
        raise ProtocolError("a match or statistics are cut off")
    return length


def _need(body: bytes, at: int, size: int) -> None:
    if at + size > len(body):
        raise ProtocolError(f"{len(body) - at} bytes where {size} are needed")
