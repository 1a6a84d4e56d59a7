"""Packets that the switch shows us: whatever they hold, they are a denial or nothing; no flood of them fills us up."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from agent.policy.denials import KEPT, Denials, Denied, Packet, parse
from tealnet.core.rows.security import Direction, Mode

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
