"""Guarded ports with real frames: what is closed, what stays open, fragments, errors, shapes that must not escape."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_network
from itertools import product
from typing import Any

import pytest

from tealnet.core.rows.security import (
    Action,
    Direction,
    Flaw,
    Mode,
    OnChange,
    Policy,
    Ports,
    Position,
    Remote,
    Rules,
    Tier,
)
from tests.ovs import datagrams
from tests.ovs.datagrams import ACK, RST, SYN
from tests.ovs.guarded import Guarded, ends
from tests.ovs.policies import rule, rules
from tests.ovs.sandbox import Sandbox

pytestmark = pytest.mark.ovs

WEB, DB = 301, 302
OUT = rule(1000, Direction.EGRESS)
HTTP = rule(1001, Direction.INGRESS, protocol=17, ports=(Ports(80, 89),))
TCP80 = rule(1002, Direction.INGRESS, protocol=6, ports=(Ports(80, 80),))


TORN = list(product((4, 6), (80, 90)))  # version of IP, and a port: DB takes 80 and not 90


@pytest.fixture(scope="module", autouse=True)
def torn() -> Iterator[dict[tuple[int, int], Guarded]]:
    """Fragments that wait for others of theirs: what becomes of them is looked at when all else has been.

    A switch for each datagram: conntrack lets only some go at a time, and the others wait for 15 s more.
    """
    with ExitStack() as stack:
        hosts = {what: Guarded(stack.enter_context(Sandbox())) for what in TORN}
        for (version, port), host in hosts.items():
            host.plug(2, identity=WEB)
            host.plug(3, identity=DB)
            host.put(rules(WEB, OUT), rules(DB, HTTP))
            asyncio.run(_tear(host, port, version=version))
        yield hosts


async def _tear(host: Guarded, port: int, *, version: int) -> None:
    await host.load()
    assert await host.arrived(2, question(80), at=3)
    first, _, last = datagrams.fragments(question(port, data=bytes(4000), version=version), number=port)
    assert not await host.send((2, first), (2, last))
    assert "num frag: 0" not in host.ovs.appctl("dpctl/ipf-get-status")


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    with Sandbox() as ovs:
        host = Guarded(ovs)
        host.plug(2, identity=WEB)
        host.plug(3, identity=DB)
        yield host


def question(port: int, *, data: bytes = b"?", version: int = 4) -> bytes:
    return datagrams.udp(ends(2, 3, version), (5000, port), data=data)


def answer(port: int, *, version: int = 4) -> bytes:
    return datagrams.udp(ends(3, 2, version), (port, 5000), data=b"!")


async def test_a_guarded_port_without_rules_is_closed_and_one_without_policy_is_not(guarded: Guarded) -> None:
    await guarded.load()
    assert not await guarded.arrived(2, question(80), at=3)
    guarded.change(2, identity=WEB, policy=Policy.OFF)
    guarded.put(rules(DB, HTTP))
    await guarded.load()
    assert await guarded.arrived(2, question(80), at=3)
    assert not await guarded.arrived(2, question(90), at=3)
    guarded.change(3, identity=DB, policy=Policy.OFF)  # whatever rules its identity has
    await guarded.load()
    assert await guarded.arrived(2, question(90), at=3)


async def test_answers_and_errors_of_what_was_let_in_pass(guarded: Guarded) -> None:
    guarded.put(rules(WEB, OUT), rules(DB, HTTP))
    await guarded.load()
    for version in (4, 6):
        assert not await guarded.arrived(3, answer(80, version=version), at=2)  # nothing goes out by itself
        packet = question(80, version=version)
        assert await guarded.arrived(2, packet, at=3)
        assert await guarded.arrived(3, answer(80, version=version), at=2)
        error = datagrams.unreachable(ends(3, 2, version)[0], packet)
        assert await guarded.arrived(3, error, at=2)
        stranger = datagrams.unreachable(ends(3, 2, version)[0], question(81, version=version))
        assert not await guarded.arrived(3, stranger, at=2)


@pytest.mark.parametrize("version", [4, 6])
async def test_an_answer_that_nobody_asked_for_gets_to_and_from_no_guarded_port(guarded: Guarded, version: int) -> None:
    """Between others it would: it may be of a question from before they were tracked."""
    everything = rule(1003, Direction.INGRESS)
    guarded.put(rules(WEB, OUT, everything), rules(DB, OUT, everything))
    back = ends(3, 2, version)
    echo = datagrams.icmp(back, 0 if version == 4 else 129, 0)
    for open_, arrives in (((), False), ((3,), False), ((2,), False), ((2, 3), True)):
        for number, identity in ((2, WEB), (3, DB)):
            guarded.change(number, identity=identity, policy=Policy.OFF if number in open_ else Policy.ENFORCE)
        await guarded.load()
        for packet in (echo, datagrams.tcp(back, (80, 5000), SYN | ACK)):
            assert await guarded.arrived(3, packet, at=2) == arrives, open_


@pytest.mark.parametrize("version", [4, 6])
async def test_a_datagram_in_fragments_passes_whole_or_not_at_all(guarded: Guarded, version: int) -> None:
    guarded.put(rules(WEB, OUT), rules(DB, HTTP))
    await guarded.load()
    for number, (port, passes) in enumerate(((80, True), (90, False), (81, True)), 100):
        pieces = datagrams.fragments(question(port, data=bytes(4000), version=version), number=number)
        for order in (pieces, pieces[::-1]):
            out = await guarded.send(*((2, piece) for piece in order))
            assert len(out.get(3, [])) == (len(pieces) if passes else 0), (port, out)
    assert await guarded.arrived(3, answer(80, version=version), at=2)


async def test_a_poison_rule_closes_its_direction_and_harms_no_other_port(guarded: Guarded) -> None:
    good = rules(DB, HTTP, OUT)
    guarded.put(rules(WEB, OUT, HTTP), replace(good, flaws=(Flaw((Direction.INGRESS,), "web/ingress[3]", "why"),)))
    await guarded.load()
    assert not await guarded.arrived(2, question(80), at=3)
    back = datagrams.udp(ends(3, 2), (6000, 80))
    assert await guarded.arrived(3, back, at=2)  # its other direction, and the other port
    errors = [error for w in guarded.wants if w.kind == "rules" for error in w.table.errors.items()]
    ((identity, error),) = errors
    assert identity == DB
    assert "INGRESS is closed: rule web/ingress[3]: why" in str(error)


@pytest.mark.parametrize("remembered", list(OnChange))
@pytest.mark.parametrize("now", list(OnChange))
async def test_open_connections_when_their_rule_goes(guarded: Guarded, remembered: OnChange, now: OnChange) -> None:
    other = rule(1003, Direction.INGRESS, protocol=17, ports=(Ports(85, 85),))
    guarded.put(rules(WEB, OUT), rules(DB, HTTP, on_change=remembered))
    await guarded.load()
    for port in (80, 85):
        assert await guarded.arrived(2, question(port), at=3)
        assert await guarded.arrived(3, answer(port), at=2)
    guarded.put(rules(WEB, OUT), rules(DB, other, on_change=now))
    await guarded.load()
    strictest = max((remembered, now), key=list(OnChange).index)
    for port in (80, 85):
        stays = strictest is OnChange.KEEP or (strictest is OnChange.REEVALUATE and port == 85)
        assert await guarded.arrived(3, answer(port), at=2) == stays  # what goes back is judged like what came
        assert await guarded.arrived(2, question(port), at=3) == stays
    guarded.put(rules(WEB, OUT), rules(DB, HTTP, on_change=now))  # the rule is back
    await guarded.load()
    assert await guarded.arrived(2, question(80), at=3)


@pytest.mark.parametrize("closed_end", [2, 3])
@pytest.mark.parametrize("version", [4, 6])
async def test_what_nobody_has_answered_is_no_open_connection(guarded: Guarded, closed_end: int, version: int) -> None:
    """Clients give a port out again: conntrack takes a new attempt from it for the one of half a minute ago."""

    async def goes(source: int, flags: int) -> bool:
        ports = (5000, 80) if source == 2 else (80, 5000)
        packet = datagrams.tcp(ends(source, 5 - source, version), ports, flags)
        return await guarded.arrived(source, packet, at=5 - source)

    async def put(*, there: bool, above: tuple[Tier, ...] = ()) -> None:
        for number, identity, one in ((2, WEB, OUT), (3, DB, TCP80)):
            at_it = number == closed_end
            each[number] = rules(identity, *([one] if there or not at_it else []), above=above if at_it else ())
        guarded.put(*each.values())
        await guarded.load()

    each: dict[int, Rules] = {}
    await put(there=True)
    assert await goes(2, SYN)
    await put(there=False)
    assert not await goes(2, SYN)
    direction = Direction.EGRESS if closed_end == 2 else Direction.INGRESS
    denied = Tier(Position.ABOVE, (rule(1005, direction, action=Action.DENY, protocol=6),))
    await put(there=True, above=(denied,))
    assert not await goes(2, SYN), "its rule is there, but is not what decides now"
    await put(there=True)
    assert await goes(2, SYN)
    await put(there=False)
    assert await goes(3, SYN | ACK), "let in before, answered now: KEEP"
    assert await goes(2, ACK)


@pytest.mark.parametrize("guarded_end", [2, 3])
@pytest.mark.parametrize("version", [4, 6])
async def test_what_cuts_a_connection_lets_its_reset_pass_and_what_makes_it_fit(
    guarded: Guarded, guarded_end: int, version: int
) -> None:
    """An answer may be under way when the rule goes: the reset comes after it, and fits only where it has arrived."""

    def segment(source: int, flags: int, **more: Any) -> bytes:
        ports = (5000, 80) if source == 2 else (80, 5000)
        return datagrams.tcp(ends(source, 5 - source, version), ports, flags, **more)

    def put(*, there: bool) -> None:
        for number, identity, one in ((2, WEB, OUT), (3, DB, TCP80)):
            cut = number == guarded_end
            each[number] = rules(identity, *([one] if there or not cut else []), on_change=list(OnChange)[2 * cut])
        guarded.put(*each.values())

    each: dict[int, Rules] = {}
    put(there=True)
    await guarded.load()
    other_end = 5 - guarded_end
    for source, flags in ((2, SYN), (3, SYN | ACK), (2, ACK)):
        assert await guarded.arrived(source, segment(source, flags), at=5 - source)
    put(there=False)
    await guarded.load()
    assert not await guarded.arrived(other_end, segment(other_end, ACK, data=b"question"), at=guarded_end)
    assert await guarded.arrived(guarded_end, segment(guarded_end, ACK, data=b"answer"), at=other_end)
    assert await guarded.arrived(guarded_end, segment(guarded_end, RST | ACK, sent=6), at=other_end)


async def test_a_rule_of_the_same_number_in_another_identity_is_not_there_for_this_one(guarded: Guarded) -> None:
    guarded.put(rules(WEB, OUT, HTTP), rules(DB, HTTP, on_change=OnChange.CUT))
    await guarded.load()
    assert await guarded.arrived(2, question(80), at=3)
    guarded.put(rules(WEB, OUT, HTTP), rules(DB, on_change=OnChange.CUT))
    await guarded.load()
    assert not await guarded.arrived(2, question(80), at=3)


async def test_policy_switched_on_judges_what_is_open(guarded: Guarded) -> None:
    guarded.put(rules(WEB, OUT))
    guarded.change(3, identity=DB, policy=Policy.OFF)
    await guarded.load()
    assert await guarded.arrived(2, question(80), at=3)
    guarded.change(3, identity=DB)
    await guarded.load()
    assert not await guarded.arrived(2, question(80), at=3)


async def test_shadow_denies_nothing(guarded: Guarded) -> None:
    dream = rule(1004, Direction.INGRESS, action=Action.DENY, mode=Mode.SHADOW)
    guarded.put(rules(WEB, OUT), rules(DB, above=(Tier(Position.ABOVE, (dream,)),), fallback=Mode.SHADOW))
    await guarded.load()
    for port in (1, 80, 65535):
        assert await guarded.arrived(2, question(port), at=3)


async def test_a_product_takes_a_conjunctive_match_where_it_is_smaller(guarded: Guarded) -> None:
    many = rule(
        1005, Direction.INGRESS, protocol=17, ports=tuple(Ports(p, p) for p in range(80, 100, 2)),
        remote=Remote(tuple(range(WEB, WEB + 20)), ()),
    )  # fmt: skip
    guarded.put(rules(WEB, OUT), rules(DB))
    before = len(guarded.flows())
    guarded.put(rules(WEB, OUT), rules(DB, many))
    # 20 identities + 10 ports + the conjunction, the groups' step, and the rule in OPENED: not 200.
    assert len(guarded.flows()) == before + 20 + 10 + 1 + 1 + 1
    await guarded.load()
    assert await guarded.arrived(2, question(80), at=3)
    assert not await guarded.arrived(2, question(81), at=3)


async def test_one_more_identity_costs_one_flow_and_moves_no_other(guarded: Guarded) -> None:
    def policy(count: int) -> None:
        remote = Remote(tuple(range(1000, 1000 + count)), ())
        guarded.put(rules(DB, *(rule(2000 + n, Direction.INGRESS, protocol=6, ports=(Ports(n, n),), remote=remote)
                                for n in range(50))))  # fmt: skip

    policy(1)
    one = guarded.flows()
    policy(2)
    two = guarded.flows()
    assert len(two) == len(one) + 50
    assert one.keys() <= two.keys()


async def test_a_thousand_rules_in_a_group(guarded: Guarded) -> None:
    """As many as a group may have, each with ports and a remote of its own: one flow each, and each is right."""
    many = [
        rule(
            3000 + n, Direction.INGRESS, protocol=17, ports=(Ports(2 * n, 2 * n),),
            remote=Remote((), (ip_network(f"10.{n >> 8}.{n & 255}.0/24"),)),
        )
        for n in range(1, 1000)
    ]  # fmt: skip
    guarded.put(rules(WEB, OUT), rules(DB))
    before = len(guarded.flows())
    last = rule(2999, Direction.INGRESS, protocol=17, ports=(Ports(5000, 5000),), remote=Remote((WEB,), ()))
    guarded.put(rules(WEB, OUT), rules(DB, last, *many))
    assert len(guarded.flows()) == before + 2 * 1000 + 1  # in JUDGE and in OPENED; the groups' step
    await guarded.load()
    assert await guarded.arrived(2, question(5000), at=3)
    assert not await guarded.arrived(2, question(2 * 999), at=3)  # the other end is not in that rule's prefix


HEADERS = b"\x3b\x00\x01\x04\x00\x00\x00\x00"  # destination options, then nothing


@pytest.mark.parametrize(
    "shape",
    [
        datagrams.datagram(ends(2, 3), 47, bytes(8)),
        datagrams.datagram(ends(2, 3), 253, bytes(8)),
        datagrams.datagram(ends(2, 3), 50, bytes(16)),
        datagrams.datagram(ends(2, 3), 58, bytes(16)),
        datagrams.datagram(ends(2, 3, 6), 1, bytes(16)),
        datagrams.datagram(ends(2, 3, 6), 59, b""),
        datagrams.datagram(ends(2, 3, 6), 60, HEADERS),
        datagrams.datagram(ends(2, 3, 6), 0, HEADERS),
        datagrams.datagram(ends(2, 3), 17, b"\x00", options=bytes(4)),
        datagrams.datagram(ends(2, 3), 6, b""),
        datagrams.icmp(ends(2, 3), 5, 0),
        datagrams.icmp(ends(2, 3), 3, 3),
        datagrams.icmp(ends(2, 3, 6), 134, 0),
        datagrams.udp(ends(2, 3), (68, 67), data=bytes(240)),
        datagrams.udp(ends(2, 3), (5000, 4789), data=bytes(60)),
        datagrams.udp(ends(2, 3), (5000, 0)),
        datagrams.tcp(ends(2, 3), (5000, 80), RST),
        datagrams.tcp(ends(2, 3), (5000, 80), 0),
        datagrams.tcp(ends(2, 3), (5000, 80), ACK),
        *datagrams.fragments(datagrams.udp(ends(2, 3), (1, 1), data=bytes(3000))),
        *datagrams.fragments(datagrams.udp(ends(2, 3, 6), (1, 1), data=bytes(3000))),
    ],
)
async def test_no_shape_of_a_packet_escapes(shape: bytes, closed: Guarded) -> None:
    assert not await closed.send((2, shape))


@pytest.fixture(scope="module")
def closed() -> Iterator[Guarded]:
    """Port 3 lets nothing in."""
    with Sandbox() as ovs:
        host = Guarded(ovs)
        host.plug(2, identity=WEB)
        host.plug(3, identity=DB)
        host.put(rules(WEB, OUT), rules(DB, OUT))
        asyncio.run(host.load())
        yield host


@pytest.mark.parametrize("what", TORN)
async def test_fragments_that_never_become_a_datagram_get_nowhere(
    torn: dict[tuple[int, int], Guarded], what: tuple[int, int]
) -> None:
    """Conntrack lets them go after 15 s, with whatever packet comes by then."""
    host, (version, _), number = torn[what], what, 6000
    async with asyncio.timeout(90):
        while True:
            number += 1  # each is new: it passes every commit
            packet = datagrams.udp(ends(2, 3, version), (number, 80), data=b"whole")
            out = await host.send((2, packet))
            assert [found.payload[-5:] for frames in out.values() for found in frames] == [b"whole"]
            if "num frag: 0" in host.ovs.appctl("dpctl/ipf-get-status"):
                return
            await asyncio.sleep(0.2)
