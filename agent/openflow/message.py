"""OpenFlow 1.5 messages that we send (OpenFlow Switch Specification 1.5.1; Open vSwitch's extensions).

Functions return whole messages. What comes back is in `reply`.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

from agent.openflow.actions import NX_VENDOR
from agent.openflow.errors import ProtocolError
from agent.openflow.flow import Flow, Group

VERSION = 6
ANY = 0xFFFFFFFF  # OFPP_ANY, OFPG_ANY, OFP_NO_BUFFER
ALL_TABLES = 0xFF
ALL_GROUPS = 0xFFFFFFFC
MAX_MESSAGE = 0xFFFF
COOKIE_MASK = (1 << 64) - 1


class Type(IntEnum):
    """OFPT_*."""

    HELLO = 0
    ERROR = 1
    ECHO_REQUEST = 2
    ECHO_REPLY = 3
    EXPERIMENTER = 4
    SET_CONFIG = 9
    PACKET_IN = 10
    PORT_STATUS = 12
    PACKET_OUT = 13
    FLOW_MOD = 14
    GROUP_MOD = 15
    MULTIPART_REQUEST = 18
    MULTIPART_REPLY = 19
    BARRIER_REQUEST = 20
    BARRIER_REPLY = 21
    SET_ASYNC = 28
    METER_MOD = 29
    REQUESTFORWARD = 32
    BUNDLE_CONTROL = 33
    BUNDLE_ADD = 34


class Multipart(IntEnum):
    """OFPMP_*."""

    FLOW_DESC = 1
    GROUP_DESC = 7
    FLOW_MONITOR = 16


class Bundle(IntEnum):
    """OFPBCT_*."""

    OPEN = 0
    OPENED = 1
    COMMIT = 4
    COMMITTED = 5


HEADER = Struct("!BBHI")  # version, type, length, xid
_FLOW_MOD = Struct("!BBHIQQBBHHHIIIHH")
_MATCH = Struct("!HH")
_APPLY = Struct("!HH4x")
_GROUP_MOD = Struct("!BBHIHBxIH2xI")
_BUNDLE = Struct("!BBHIIHH")
_BUNDLE_ADD = Struct("!BBHIIxxH")
_MULTIPART = Struct("!BBHIHH4x")
_FLOW_REQUEST = Struct("!B3xII4xQQ")
_GROUP_REQUEST = Struct("!I4x")
_MONITOR = Struct("!IIIHBB")
_PACKET_OUT = Struct("!BBHIIH2x")
_FLUSH_ZONE = Struct("!BBHIII6xH")

_MAX_CONTENT = MAX_MESSAGE - 128  # of a flow or group: leaves room for all headers, that of a bundle too
_OFPFC_ADD, _OFPFC_DELETE = 0, 3
_OFPGC_DELETE, _OFPGC_ADD_OR_MODIFY = 2, 0x8000
_ATOMIC_ORDERED = 3
_OFPMT_OXM = 1
OFPIT_APPLY_ACTIONS = 4
_MONITOR_ADD_REMOVED_MODIFY = 1 << 1 | 1 << 2 | 1 << 3
_NXT_CT_FLUSH_ZONE, _NXT_CT_FLUSH = 29, 32
_FLUSHABLE = (6, 17)  # TCP, UDP
_ASYNC_PRIMARY = (1, 3, 5, 7, 9, 11)  # property types, for the primary role; 11 = OFPACPT_REQUESTFORWARD_MASTER
_ASYNC_GROUPS, _ASYNC_PACKETS, _ASYNC_PORTS = 11, 1, 3
_OFPR_APPLY_ACTION = 1
_OFPPR_ADD = 0
_METER = Struct("!BBHIHHI")
_BAND = Struct("!HHII4x")
_METER_ADD, _METER_MODIFY = 0, 1
_METER_FLAGS = 1 << 1 | 1 << 2 | 1 << 3  # packets per second, burst, statistics
_METER_CONTROLLER = 0xFFFFFFFE
_BAND_DROP = 1


def _message(kind: Type, xid: int, body: bytes = b"") -> bytes:
    return HEADER.pack(VERSION, kind, 8 + len(body), xid) + body


def hello(xid: int) -> bytes:
    """We speak OpenFlow 1.5 and nothing else."""
    return _message(Type.HELLO, xid, Struct("!HHI").pack(1, 8, 1 << VERSION))


def echo(xid: int) -> bytes:
    """Are you there?"""
    return _message(Type.ECHO_REQUEST, xid)


def echo_reply(xid: int, payload: bytes) -> bytes:
    """I am."""
    return _message(Type.ECHO_REPLY, xid, payload)


def barrier(xid: int) -> bytes:
    """Answered when all before it is done."""
    return _message(Type.BARRIER_REQUEST, xid)


def set_config(xid: int, *, miss_send_len: int) -> bytes:
    """A management connection gets asynchronous messages only with a miss_send_len other than 0."""
    return _message(Type.SET_CONFIG, xid, Struct("!HH").pack(0, miss_send_len))


def only_wanted(xid: int) -> bytes:
    """Of all asynchronous messages: group changes of others, packets that a flow's action shows us, ports added."""
    one = Struct("!HHI")
    wanted = {_ASYNC_GROUPS: 1, _ASYNC_PACKETS: 1 << _OFPR_APPLY_ACTION, _ASYNC_PORTS: 1 << _OFPPR_ADD}
    body = b"".join(one.pack(kind, 8, wanted.get(kind, 0)) for kind in _ASYNC_PRIMARY)
    return _message(Type.SET_ASYNC, xid, body)


def oxm_match(fields: bytes) -> bytes:
    """A match with header and padding, from its OXM fields."""
    length = 4 + len(fields)
    return _MATCH.pack(_OFPMT_OXM, length) + fields + bytes(-length % 8)


def flow_add(xid: int, flow: Flow) -> bytes:
    """Add, or replace what has the same table, priority and match. Raises ProtocolError if it is too large."""
    actions = flow.actions
    if len(flow.match) + len(actions) > _MAX_CONTENT:
        raise ProtocolError(f"a flow of {len(flow.match) + len(actions)} bytes fits into no message")
    match = oxm_match(flow.match)
    instructions = _APPLY.pack(OFPIT_APPLY_ACTIONS, 8 + len(actions)) + actions if actions else b""
    length = 48 + len(match) + len(instructions)
    head = _FLOW_MOD.pack(
        VERSION, Type.FLOW_MOD, length, xid, flow.cookie, 0, flow.table, _OFPFC_ADD, 0, 0, flow.priority, ANY, ANY,
        ANY, 0, 0,
    )  # fmt: skip
    return head + match + instructions


def flow_delete(xid: int, *, cookie: int, mask: int = COOKIE_MASK, table: int = ALL_TABLES) -> bytes:
    """Delete all flows whose cookie fits. out_port and out_group must be ANY, else only flows to port 0 would go."""
    match = oxm_match(b"")
    length = 48 + len(match)
    return (
        _FLOW_MOD.pack(
            VERSION, Type.FLOW_MOD, length, xid, cookie, mask, table, _OFPFC_DELETE, 0, 0, 0, ANY, ANY, ANY, 0, 0
        )
        + match
    )


def group_write(xid: int, group: Group) -> bytes:
    """Add or modify a group (OFPGC_ADD_OR_MOD is Open vSwitch's own). Raises ProtocolError if it is too large."""
    length = _GROUP_MOD.size + len(group.buckets) + len(group.properties)
    if length > _MAX_CONTENT:
        raise ProtocolError(f"a group of {length} bytes fits into no message")
    head = _GROUP_MOD.pack(
        VERSION, Type.GROUP_MOD, length, xid, _OFPGC_ADD_OR_MODIFY, group.kind, group.group_id,
        len(group.buckets), ANY,
    )  # fmt: skip
    return head + group.buckets + group.properties


def group_delete(xid: int, group_id: int) -> bytes:
    """Delete a group, and with it all flows that use it."""
    return _GROUP_MOD.pack(VERSION, Type.GROUP_MOD, _GROUP_MOD.size, xid, _OFPGC_DELETE, 0, group_id, 0, ANY)


def bundle_control(xid: int, *, bundle: int, kind: Bundle) -> bytes:
    """Open or commit an atomic, ordered bundle."""
    return _BUNDLE.pack(VERSION, Type.BUNDLE_CONTROL, _BUNDLE.size, xid, bundle, kind, _ATOMIC_ORDERED)


def bundle_add(message: bytes, *, bundle: int) -> bytes:
    """Put a message into a bundle; the outer xid is that of the message, as it must be."""
    head = _BUNDLE_ADD.pack(VERSION, Type.BUNDLE_ADD, _BUNDLE_ADD.size + len(message), 0, bundle, _ATOMIC_ORDERED)
    return head[:4] + message[4:8] + head[8:] + message


def shown_limit(xid: int, *, rate: int, burst: int, again: bool = False) -> bytes:
    """At most so many packets a second are shown to us; `again` where there is such a limit already."""
    band = _BAND.pack(_BAND_DROP, _BAND.size, rate, burst)
    command = _METER_MODIFY if again else _METER_ADD
    length = _METER.size + len(band)
    head = _METER.pack(VERSION, Type.METER_MOD, length, xid, command, _METER_FLAGS, _METER_CONTROLLER)
    return head + band


def flow_desc_request(xid: int, *, cookie: int = 0, mask: int = 0) -> bytes:
    """All flows of all tables, or those whose cookie fits."""
    body = _FLOW_REQUEST.pack(ALL_TABLES, ANY, ANY, cookie, mask) + oxm_match(b"")
    return _multipart(xid, Multipart.FLOW_DESC, body)


def group_desc_request(xid: int) -> bytes:
    """All groups."""
    return _multipart(xid, Multipart.GROUP_DESC, _GROUP_REQUEST.pack(ALL_GROUPS))


def flow_monitor_request(xid: int, *, monitor: int) -> bytes:
    """Tell of every flow that is added, removed or modified from now on; of ours in short form (an xid)."""
    body = _MONITOR.pack(monitor, ANY, ANY, _MONITOR_ADD_REMOVED_MODIFY, ALL_TABLES, 0) + oxm_match(b"")
    return _multipart(xid, Multipart.FLOW_MONITOR, body)


def _multipart(xid: int, kind: Multipart, body: bytes) -> bytes:
    return _MULTIPART.pack(VERSION, Type.MULTIPART_REQUEST, _MULTIPART.size + len(body), xid, kind, 0) + body


def packet_out(xid: int, *, actions: bytes, packet: bytes, match: bytes = b"") -> bytes:
    """Run actions on a packet of our own; `match` sets fields like in_port, metadata and registers.

    Raises ProtocolError if it is too large.
    """
    body = oxm_match(match) + actions + packet
    length = _PACKET_OUT.size + len(body)
    if length > MAX_MESSAGE:
        raise ProtocolError(f"a packet-out of {length} bytes fits into no message")
    return _PACKET_OUT.pack(VERSION, Type.PACKET_OUT, length, xid, ANY, len(actions)) + body


def flush_connection(xid: int, *, zone: int, protocol: int, ends: tuple[int, int], ports: tuple[int, int]) -> bytes:
    """Forget one connection of a zone (NXT_CT_FLUSH): TCP or UDP, as its opener sees it. One that is gone is no error.

    `ends`: addresses of source and target, v4 as v4-mapped v6. Never ICMPv6: it ends Open vSwitch 3.1 (measured).
    """
    if protocol not in _FLUSHABLE:
        raise ProtocolError(f"connections of protocol {protocol} are not flushed one by one")
    addresses = [_property(kind, end.to_bytes(16, "big")) for kind, end in enumerate(ends)]
    numbers = [_property(2 + kind, port.to_bytes(2, "big") + bytes(2)) for kind, port in enumerate(ports)]
    tuple_ = b"".join(addresses + numbers)
    body = bytes([protocol, *bytes(7)]) + Struct("!HH4x").pack(0, 8 + len(tuple_)) + tuple_
    body += _property(2, zone.to_bytes(2, "big") + bytes(2))
    return _message(Type.EXPERIMENTER, xid, Struct("!II").pack(NX_VENDOR, _NXT_CT_FLUSH) + body)


def _property(kind: int, value: bytes) -> bytes:
    return Struct("!HH").pack(kind, 4 + len(value)) + value + bytes(-(4 + len(value)) % 8)


def flush_zone(xid: int, zone: int) -> bytes:
    """Forget all connections of a conntrack zone (NXT_CT_FLUSH_ZONE)."""
    return _FLUSH_ZONE.pack(VERSION, Type.EXPERIMENTER, 24, xid, NX_VENDOR, _NXT_CT_FLUSH_ZONE, zone)
