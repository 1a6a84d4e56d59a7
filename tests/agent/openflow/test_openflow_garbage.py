"""Whatever comes in, parsers end, and raise nothing but ProtocolError."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import pairwise
from struct import pack

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.openflow import actions as act
from agent.openflow import message as of
from agent.openflow import reply
from agent.openflow.errors import ProtocolError
from agent.openflow.flow import Bucket, Flow, GroupKind, issued_group
from agent.openflow.oxm import match
from agent.openflow.text import actions_text, match_text

MATCH = match(icmp6=True, icmpv6_type=135, nd_target="fd00::/64", metadata=(1, 0xFF), reg3=4, ct_state="+trk-new")
ACTIONS = (
    act.set_field("reg11[16..31]", 22)
    + act.move("xreg4[0..47]", "eth_dst")
    + act.ct(zone="reg11[0..15]", table=25, flags=act.CT_COMMIT, actions=act.set_field("ct_mark", 1))
    + act.clone(act.output_reg("reg5"), act.output_reg("xreg2[0..15]"))
    + act.check_pkt_larger(1500, "reg13[6]")
    + act.conjunction(1, 1, 2)
    + act.resubmit(36)
    + act.group(7)
    + act.dec_ttl()
    + act.output(3)
)
INSTRUCTIONS = pack("!HH4x", 4, 8 + len(ACTIONS)) + ACTIONS
STATS = pack("!HH4x", 0, 4)
MATCH_STRUCT = of.oxm_match(MATCH)
LENGTH = 24 + len(MATCH_STRUCT) + len(STATS) + len(INSTRUCTIONS)
FLOW_DESC = pack("!H2xBxHHHHHQ", LENGTH, 5, 10, 0, 0, 0, 0, 7) + MATCH_STRUCT + STATS + INSTRUCTIONS
GROUP = issued_group(7, GroupKind.SELECT, buckets=[Bucket(act.resubmit(36), 1)], selection_method="dp_hash")
GROUP_BODY = GROUP.buckets + GROUP.properties
GROUP_DESC = pack("!HBxIH6x", 16 + len(GROUP_BODY), GROUP.kind, 7, len(GROUP.buckets)) + GROUP_BODY
UPDATES = pack("!HHI", 8, reply.Event.ABBREVIATED, 5) + pack("!HHBBHHH4xQ", 24, reply.Event.REMOVED, 5, 0, 0, 0, 10, 7)


def all_of_flow_desc(payload: bytes) -> list[object]:
    return [(raw, raw.actions) for raw in reply.parse_flow_desc(payload)]


def feed(data: bytes) -> list[reply.Message]:
    return list(reply.Framer().feed(data))


PARSERS: list[tuple[Callable[[bytes], object], bytes]] = [
    (match_text, MATCH),
    (actions_text, ACTIONS),
    (all_of_flow_desc, FLOW_DESC * 2),
    (lambda data: list(reply.parse_group_desc(data)), GROUP_DESC * 2),
    (lambda data: list(reply.parse_flow_updates(data)), UPDATES * 2),
    (reply.parse_error, pack("!HHI", 4, 9, 0)),
    (reply.parse_bundle_control, pack("!IHH", 1, 5, 3)),
    (reply.parse_multipart, pack("!HH4x", 1, 1)),
    (feed, of.hello(1) + of.barrier(2) + of.echo_reply(3, b"hello")),
]


@pytest.mark.parametrize(("parse", "valid"), PARSERS)
def test_the_valid_forms_are_valid(parse: Callable[[bytes], object], valid: bytes) -> None:
    assert parse(valid)


@pytest.mark.parametrize(("parse", "valid"), PARSERS)
@given(garbage=st.binary(max_size=400))
@example(garbage=b"")
def test_garbage(parse: Callable[[bytes], object], valid: bytes, garbage: bytes) -> None:
    survives(parse, garbage)


@pytest.mark.parametrize(("parse", "valid"), PARSERS)
@given(data=st.data())
def test_damaged_bytes(parse: Callable[[bytes], object], valid: bytes, data: st.DataObject) -> None:
    damaged = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(valid) - 1))] = data.draw(st.integers(0, 255))
    survives(parse, bytes(damaged))
    survives(parse, bytes(damaged[: data.draw(st.integers(0, len(valid)))]))


def survives(parse: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        parse(data)


@given(cuts=st.lists(st.integers(0, 60), max_size=8))
def test_framing_does_not_depend_on_how_bytes_arrive(cuts: list[int]) -> None:
    stream = of.hello(1) + of.flow_add(2, Flow(0, 1, MATCH, ACTIONS, 1)) + of.echo(3)
    framer = reply.Framer()
    got: list[reply.Message] = []
    for piece in pieces(stream, cuts):
        got += framer.feed(piece)
    assert got == feed(stream)
    assert [message.xid for message in got] == [1, 2, 3]


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, *cuts, len(stream)})
    return [stream[start:end] for start, end in pairwise(places)]


def test_another_version_is_not_read() -> None:
    with pytest.raises(ProtocolError):
        feed(pack("!BBHI", 4, of.Type.ECHO_REQUEST, 8, 1))
    with pytest.raises(ProtocolError):
        feed(pack("!BBHI", 6, of.Type.ECHO_REQUEST, 7, 1))
