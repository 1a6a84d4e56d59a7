"""Packets that the switch shows us: whatever they hold, they are a denial or nothing; no flood of them fills us up, or
the log."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import structlog.testing
from hypothesis import example, given
from hypothesis import strategies as st

from agent.inputs import Inputs
from agent.policy.denial_log import LINES, WINDOW, DenialLog
from agent.policy.denials import KEPT, Denials, Denied, Packet, parse
from tealnet.core.rows.security import Action, Direction, Mode, Position, Tier
from tealnet.core.rows.stream import Attach, LocalPort, Segment, Subnet
from tealnet.core.tables import Graph
from tests.ovs.policies import rule, rules

SHOWN = bytes.fromhex(  # table 75, in_port 2, xreg0 … metadata, an Ethernet frame with UDP 5000 → 81
    "ffffffff002b0145000000000000000000010065800000040000000280000a02080080010f10000000000000123400000000ffffffff"
    "0001d30800000021000000ff0001d40200070001f0040a0000020001f2040a0000030001ee01110001f802a12f0001fa02270f8000"
    "0408000000000000004d000000000002aec13f3e2af68fb7eedb0108004500001d28d640004011fdf50a0000020a000003a12f270f0009ab9878"
)
DENIED = Denied(3, 302, Direction.INGRESS, 0, Mode.ENFORCE, 301, 7, 0, Packet(17, bytes(4), bytes(4), (5000, 81)))


@example(SHOWN)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_denial_or_nothing(body: bytes) -> None:
    found = parse(body)
    assert found is None or found.packet.protocol < 256


@given(st.integers(0, len(SHOWN)), st.binary(max_size=8))
def test_a_real_one_that_was_spoilt(at: int, other: bytes) -> None:
    parse(SHOWN[:at] + other + SHOWN[at + len(other) :])
    parse(SHOWN[:at])


def test_a_real_one() -> None:
    found = parse(SHOWN)
    assert found is None  # of a table that gives no verdicts
    found = parse(SHOWN[:7] + b"\x4b" + SHOWN[8:])
    assert found is not None
    assert found.packet == Packet(17, bytes((10, 0, 0, 2)), bytes((10, 0, 0, 3)), (0xA12F, 0x270F))
    assert (found.color, found.domain) == (0, 0x4D)


def test_a_flood_is_bounded_and_counted() -> None:
    denials = Denials()
    for number in range(KEPT + 10):
        denials.add(replace(DENIED, identity=number), now=number)
    for _ in range(5):
        denials.add(replace(DENIED, identity=KEPT), now=9999)
    told = denials.take()
    assert len(told) == KEPT
    assert denials.lost == 10
    assert next((count, at) for each, count, at in told if each.identity == KEPT) == (6, 9999)
    assert denials.take() == []
    denials.add(DENIED, now=1)
    denials.add(replace(DENIED, identity=1), now=2)
    assert [each.identity for each, _, _ in denials.take(1)] == [302]
    assert [each.identity for each, _, _ in denials.take(1)] == [1]


# ---- the log


def host() -> Inputs:
    """web-2 and db-3 in one network; no telnet to db, says a tier."""
    inputs = Inputs(Graph())
    prefix = ip_network("10.0.0.0/24")
    inputs.segments.put(1000, Segment(1000, 7, 0, 11, 1430, (Subnet(prefix, prefix[1]),)))
    for name, number, identity in (("web-2", 2, 301), ("db-3", 3, 302)):
        port = LocalPort(
            name, 1000, (prefix[number],), "02:00:00:00:00:01", identity, (), "acme", name, Attach.NETNS, name, "eth0"
        )
        inputs.localports.put(name, port)
        inputs.issued.put(name, number)
    no_telnet = replace(rule(900, Direction.INGRESS, action=Action.DENY, protocol=6), name="base/ingress[0]")
    inputs.rules.put(302, rules(302, above=(Tier(Position.ABOVE, (no_telnet,)),)))
    return inputs


def packet(sport: int, *, source: str = "10.0.0.2", protocol: int = 6) -> Packet:
    return Packet(protocol, ip_address(source).packed, ip_address("10.0.0.3").packed, (sport, 23))


def test_the_log_says_rule_names_and_ends() -> None:
    log = DenialLog(host(), clock=lambda: 100.0)
    with structlog.testing.capture_logs() as lines:
        log.add(replace(DENIED, rule=900, packet=packet(5000)))
        log.add(replace(DENIED, mode=Mode.SHADOW, packet=packet(5001, source="10.0.9.9", protocol=1)))
        log.add(replace(DENIED, ofport=99, packet=packet(5002)))  # a port that has gone
    common = {"log_level": "info", "port": "tenants/acme/ports/db-3", "direction": "INGRESS", "target": "10.0.0.3"}
    assert lines == [
        common | {
            "event": "denied", "rule": "base/ingress[0]", "protocol": "tcp", "source": "10.0.0.2",
            "source_port": 5000, "target_port": 23, "remote_port": "tenants/acme/ports/web-2",
        },
        common | {
            "event": "would be denied", "rule": "none allows it", "protocol": "icmp", "source": "10.0.9.9",
            "icmp_type": 5001, "icmp_code": 23,
        },
    ]  # fmt: skip


def test_a_flood_writes_few_lines_and_says_how_much_it_was() -> None:
    now = 100.0
    log = DenialLog(host(), clock=lambda: now)
    with structlog.testing.capture_logs() as lines:
        for sport in range(1000):
            log.add(replace(DENIED, packet=packet(sport)))
            log.add(replace(DENIED, packet=packet(0)))
        assert len(lines) == LINES
        now += WINDOW
        log.flush()
        log.flush()
        assert lines[LINES:] == [{"event": "more packets were denied", "count": 2000 - LINES, "log_level": "info"}]
        log.add(replace(DENIED, packet=packet(0)))
        assert len(lines) == LINES + 2
