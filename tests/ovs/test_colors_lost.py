"""Connections that a zone does not know, or knows under another color: after a start of vswitchd, and when networks
get, lose or renumber their colors. Real packets through real conntrack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from tests.ovs import packets
from tests.ovs.colors import (
    BLUE,
    BLUE5,
    BLUE7,
    DB_BLUE,
    DB_GREEN,
    GREEN,
    GREEN5,
    GREEN7,
    OPS,
    OPS1,
    OPS3,
    WEB,
    WEB_BLUE,
    WEB_GREEN,
    ZONE,
    ColorWire,
)
from tests.ovs.packets import ACK, RST, SYN, Address, tcp
from tests.ovs.sandbox import Sandbox, as_agent
from tests.ovs.test_colors import ANSWERS, BACK, KINDS, PORTS, B, C, on_wire, v4, v6

pytestmark = pytest.mark.ovs

UNKNOWN = 255
CLIENT = tcp(v4(OPS1), v4(BLUE7), PORTS, ACK)  # from the middle of a connection of ops1 to web7
SERVER = tcp(v4(BLUE7), v4(OPS1), BACK, ACK)
UNCOLORED = {WEB_BLUE: 0, DB_BLUE: 0}
NAMED = {WEB_BLUE: BLUE, DB_BLUE: BLUE}
ALL = {WEB_BLUE: BLUE, WEB_GREEN: GREEN, DB_BLUE: BLUE, DB_GREEN: GREEN}


@pytest.fixture(scope="module")
def wire() -> Iterator[ColorWire]:
    with Sandbox(dummy="") as ovs:
        yield ColorWire(ovs)


@pytest.fixture
def a(wire: ColorWire) -> ColorWire:
    wire.reset()
    return wire


# -- conntrack is gone


def test_a_client_in_the_middle_of_a_connection_asks_all_colors_and_keeps_who_goes_on(a: ColorWire) -> None:
    for _ in range(2):
        assert sorted(on_wire(a.send("ops1", CLIENT))) == [(WEB_BLUE, B), (WEB_GREEN, C)]
        assert a.marks(ZONE["ops1"]) == [UNKNOWN]
    assert set(a.arrive(3, WEB_GREEN, GREEN7, SERVER)) == {"ops1"}
    assert a.marks(ZONE["ops1"]) == [GREEN]
    assert on_wire(a.send("ops1", CLIENT)) == [(WEB_GREEN, C)]
    assert a.arrive(2, WEB_BLUE, BLUE7, SERVER) == {}


def test_the_same_with_ipv6(a: ColorWire) -> None:
    client, server = tcp(v6(OPS1), v6(BLUE7), PORTS, ACK), tcp(v6(BLUE7), v6(OPS1), BACK, ACK)
    assert len(a.send("ops1", client)["phy"]) == 2
    assert set(a.arrive(2, WEB_BLUE, BLUE7, server)) == {"ops1"}
    assert on_wire(a.send("ops1", client)) == [(WEB_BLUE, B)]


def test_a_new_connection_is_never_sent_to_two_colors(a: ColorWire) -> None:
    a.send("ops1", CLIENT)
    out = a.send("ops1", tcp(v4(OPS1), v4(BLUE7), PORTS, SYN))
    assert on_wire(out) in ([(WEB_BLUE, B)], [])
    assert on_wire(a.send("ops1", tcp(v4(OPS1), v4(BLUE7), (40001, 80), SYN))) == [(WEB_BLUE, B)]


def test_the_reset_of_a_twin_that_was_asked_in_vain_goes_nowhere(a: ColorWire) -> None:
    ask, refuse = tcp(v4(OPS3), v4(BLUE5), PORTS, ACK), tcp(v4(BLUE5), v4(OPS3), BACK, RST)
    assert set(a.arrive(2, WEB_GREEN, OPS3, ask)) == {"green5"}
    assert a.send("green5", refuse) == {}
    assert set(a.arrive(2, WEB_BLUE, OPS3, ask)) == {"blue5"}
    assert on_wire(a.send("blue5", tcp(v4(BLUE5), v4(OPS3), BACK, ACK))) == [(WEB_BLUE, B)]
    assert (a.marks(ZONE["blue5"]), a.marks(ZONE["green5"])) == ([BLUE], [UNKNOWN])
    # Whose connection it is may end it.
    assert set(a.arrive(2, WEB_BLUE, OPS3, ask)) == {"blue5"}
    assert on_wire(a.send("blue5", refuse)) == [(WEB_BLUE, B)]


def test_asking_on_one_host(a: ColorWire) -> None:
    ask = tcp(v4(OPS1), v4(BLUE5), PORTS, ACK)
    assert set(a.send("ops1", ask)) == {"blue5", "green5"}
    assert a.send("green5", tcp(v4(GREEN5), v4(OPS1), BACK, RST)) == {}
    assert set(a.send("blue5", tcp(v4(BLUE5), v4(OPS1), BACK, ACK))) == {"ops1"}
    assert a.marks(ZONE["ops1"]) == [BLUE]
    assert set(a.send("ops1", ask)) == {"blue5"}


def test_a_server_may_be_the_first_to_go_on(a: ColorWire) -> None:
    a.split(WEB, 0, 100)
    assert on_wire(a.send("blue5", tcp(v4(BLUE5), v4(OPS3), BACK, ACK))) == [(WEB_BLUE, B)]
    assert set(a.arrive(2, WEB_BLUE, BLUE7, SERVER)) == {"ops1"}
    assert on_wire(a.send("ops1", CLIENT)) == [(WEB_BLUE, B)]


def test_a_color_that_is_closed_is_not_asked_and_the_only_open_one_may_refuse(a: ColorWire) -> None:
    a.split(WEB, 0, 100, closed=[BLUE])
    assert on_wire(a.send("ops1", CLIENT)) == [(WEB_GREEN, C)]
    assert a.marks(ZONE["ops1"]) == [GREEN]
    ask = tcp(v4(OPS3), v4(GREEN5), PORTS, ACK)
    assert set(a.arrive(2, WEB_GREEN, OPS3, ask)) == {"green5"}
    assert on_wire(a.send("green5", tcp(v4(GREEN5), v4(OPS3), BACK, RST))) == [(WEB_GREEN, B)]


def test_a_connection_to_a_closed_color_is_denied_but_what_it_opened_itself_goes_on(a: ColorWire) -> None:
    opened, own = (40000, 80), (50000, 8000)
    a.send("ops1", tcp(v4(OPS1), v4(BLUE5), opened, SYN))
    a.send("blue5", tcp(v4(BLUE5), v4(OPS1), (80, 40000), SYN | ACK))
    a.send("blue5", tcp(v4(BLUE5), v4(OPS1), own, SYN))
    a.send("ops1", tcp(v4(OPS1), v4(BLUE5), (8000, 50000), SYN | ACK))
    assert set(a.send("ops1", tcp(v4(OPS1), v4(BLUE5), opened, ACK))) == {"blue5"}
    a.split(WEB, 0, 100, closed=[BLUE])
    assert a.send("ops1", tcp(v4(OPS1), v4(BLUE5), opened, ACK)) == {}
    assert set(a.send("ops1", tcp(v4(OPS1), v4(BLUE5), opened, RST))) == {"blue5"}, "how its end is told"
    assert set(a.send("ops1", tcp(v4(OPS1), v4(BLUE5), (8000, 50000), ACK))) == {"blue5"}
    assert set(a.send("blue5", tcp(v4(BLUE5), v4(OPS1), own, ACK))) == {"ops1"}


@pytest.mark.parametrize("end", [v4, v6])
def test_echo_requests_leave_a_closed_color_by_weight(a: ColorWire, end: Callable[[object], Address]) -> None:
    ping = packets.echo(end(OPS1), end(BLUE7), 7)
    assert on_wire(a.send("ops1", ping)) == [(WEB_BLUE, B)]
    a.split(WEB, 0, 100)
    assert on_wire(a.send("ops1", ping)) == [(WEB_BLUE, B)]
    a.split(WEB, 0, 100, closed=[BLUE])
    assert on_wire(a.send("ops1", ping)) == [(WEB_GREEN, C)]
    assert a.marks(ZONE["ops1"]) == [GREEN]


@pytest.mark.parametrize("end", [v4, v6])
def test_single_connections_are_forgotten(a: ColorWire, end: Callable[[object], Address]) -> None:
    sent = [packets.udp(end(OPS1), end(BLUE7), (port, 80)) for port in (1, 2)]
    sent += [tcp(end(OPS1), end(BLUE7), (port, 80), SYN) for port in (1, 2)]
    for packet in (*sent, packets.echo(end(OPS1), end(BLUE7), 7)):
        a.send("ops1", packet)
    rows = a.connections(ZONE["ops1"])
    gone = [row for row in rows if row.ports[0] == 1 or row.protocol.startswith("icmp")]
    assert len(rows) == 5 and len(gone) == 3

    async def forget() -> None:
        async with as_agent(a.ovs) as driver:
            for _ in range(2):  # what is gone is no error
                await driver.forget(gone)

    asyncio.run(forget())
    left = {(row.protocol, row.ports[0]) for row in a.connections(ZONE["ops1"])}
    assert left == {("udp", 2), ("tcp", 2), ("icmp" if end is v4 else "icmpv6", 7)}


def test_without_a_color_on_either_side_nobody_is_asked(a: ColorWire) -> None:
    ask = tcp(v4(OPS1), v4(OPS3), PORTS, ACK)
    assert on_wire(a.send("ops1", ask, routed=False)) == [(OPS, B)]
    assert a.marks(ZONE["ops1"]) == [0]
    assert set(a.arrive(2, OPS, OPS3, tcp(v4(OPS3), v4(OPS1), BACK, RST))) == {"ops1"}


# -- colors come, go, and change their numbers


def test_naming_the_base_moves_no_connection_that_nobody_tracked(a: ColorWire) -> None:
    a.recolor(UNCOLORED)
    a.forget()
    assert on_wire(a.send("ops1", CLIENT)) == [(WEB_BLUE, B)]
    assert a.marks(ZONE["ops1"]) == []
    a.recolor(NAMED)
    assert on_wire(a.send("ops1", CLIENT)) == [(WEB_BLUE, B)]
    assert a.marks(ZONE["ops1"]) == [BLUE]
    # The other host does not know of colors yet, or knows already.
    assert set(a.arrive(2, OPS, BLUE7, SERVER)) == {"ops1"}
    assert set(a.arrive(2, WEB_BLUE, BLUE7, SERVER)) == {"ops1"}
    assert set(a.arrive(2, OPS, BLUE7, tcp(v4(BLUE7), v4(BLUE5), PORTS, SYN))) == {"blue5"}


def test_a_connection_that_was_silent_when_its_network_was_named_finds_its_twin(a: ColorWire) -> None:
    a.recolor(ALL)
    a.split(WEB, 0, 100)
    a.forget()
    assert sorted(on_wire(a.send("ops1", CLIENT))) == [(WEB_BLUE, B), (WEB_GREEN, C)]
    assert set(a.arrive(2, OPS, BLUE7, SERVER)) == {"ops1"}, "its host still knows of no colors"
    assert on_wire(a.send("ops1", CLIENT)) == [(WEB_BLUE, B)]


@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp"])
def test_a_tracked_connection_gets_the_color_that_the_base_is_named(a: ColorWire, kind: str) -> None:
    """The domain had colors before, so there is an entry without one."""
    a.recolor({WEB_BLUE: 0, DB_BLUE: BLUE, DB_GREEN: GREEN})
    there, back = {
        "tcp": (CLIENT, SERVER),
        "udp": (packets.udp(v4(OPS1), v4(BLUE7), PORTS), packets.udp(v4(BLUE7), v4(OPS1), BACK)),
        "icmp": (packets.echo(v4(OPS1), v4(BLUE7), 1), packets.echo(v4(BLUE7), v4(OPS1), 1, reply=True)),
    }[kind]
    assert on_wire(a.send("ops1", there)) == [(WEB_BLUE, B)]
    assert set(a.arrive(2, OPS, BLUE7, back)) == {"ops1"}
    a.recolor(ALL)
    a.split(WEB, 0, 100)
    assert on_wire(a.send("ops1", there)) == [(WEB_BLUE, B)]
    assert a.marks(ZONE["ops1"]) == [BLUE]
    assert set(a.arrive(2, OPS, BLUE7, back)) == {"ops1"}
    assert set(a.arrive(2, WEB_BLUE, BLUE7, back)) == {"ops1"}
    assert a.arrive(3, WEB_GREEN, GREEN7, back) == {}


@pytest.mark.parametrize("end", [v4, v6])
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_finds_its_way_although_nobody_tracked_the_question(
    a: ColorWire, kind: str, end: Callable[[object], Address]
) -> None:
    """Single packets that were under way when the networks of a routing domain got colors."""
    client, server = end(OPS1), end(BLUE7)
    for number, colors in enumerate((NAMED, ALL)):
        a.recolor(UNCOLORED)
        a.forget()
        assert on_wire(a.send("ops1", KINDS[kind](client, server, 1 + number))) == [(WEB_BLUE, B)]
        assert set(a.arrive(2, OPS, BLUE7, KINDS[kind](server, client, 3 + number))) == {"ops1"}
        assert set(a.arrive(2, WEB_BLUE, OPS3, KINDS[kind](end(OPS3), end(BLUE5), 5 + number))) == {"blue5"}
        a.recolor(colors)
        for vni in (OPS, WEB_BLUE):  # the other host knows of colors, or not yet
            assert set(a.arrive(2, vni, BLUE7, ANSWERS[kind](server, client, 1 + number))) == {"ops1"}
        assert on_wire(a.send("ops1", ANSWERS[kind](client, server, 3 + number))) == [(WEB_BLUE, B)]
        assert on_wire(a.send("blue5", ANSWERS[kind](end(BLUE5), end(OPS3), 5 + number))) == [(WEB_BLUE, B)]


def test_a_shared_server_keeps_the_connections_of_a_network_that_is_named(a: ColorWire) -> None:
    a.recolor({WEB_BLUE: 0, DB_BLUE: BLUE, DB_GREEN: GREEN})
    there, back = packets.udp(v4(BLUE5), v4(OPS1), PORTS), packets.udp(v4(OPS1), v4(BLUE5), BACK)
    assert set(a.send("blue5", there)) == {"ops1"}
    assert set(a.send("ops1", back)) == {"blue5"}
    a.recolor(ALL)
    assert a.send("green5", there) == {}, "the other twin does not get into it"
    assert set(a.send("ops1", back)) == {"blue5"}
    assert set(a.send("blue5", there)) == {"ops1"}
    assert a.marks(ZONE["ops1"]) == [BLUE]
    assert a.send("green5", there) == {}


def test_a_network_that_loses_its_colors_keeps_its_connections(a: ColorWire) -> None:
    there, back = packets.udp(v4(OPS1), v4(BLUE5), PORTS), packets.udp(v4(BLUE5), v4(OPS1), BACK)
    tcp_there = tcp(v4(OPS1), v4(BLUE7), PORTS, SYN)
    a.recolor({WEB_BLUE: BLUE, DB_BLUE: BLUE, DB_GREEN: GREEN})
    assert set(a.send("ops1", there)) == {"blue5"}
    assert set(a.send("blue5", back)) == {"ops1"}
    assert on_wire(a.send("ops1", tcp_there)) == [(WEB_BLUE, B)]
    a.recolor({WEB_BLUE: 0, DB_BLUE: BLUE, DB_GREEN: GREEN})
    assert set(a.send("ops1", there)) == {"blue5"}
    assert set(a.send("blue5", back)) == {"ops1"}
    # Its host may still know of colors, or no more.
    assert set(a.arrive(2, WEB_BLUE, BLUE7, tcp(v4(BLUE7), v4(OPS1), BACK, SYN | ACK))) == {"ops1"}
    assert on_wire(a.send("ops1", CLIENT)) == [(WEB_BLUE, B)]
    assert set(a.arrive(2, OPS, BLUE7, SERVER)) == {"ops1"}
    a.recolor(UNCOLORED)
    assert on_wire(a.send("ops1", CLIENT)) == [(WEB_BLUE, B)]
    assert set(a.arrive(2, WEB_BLUE, BLUE7, SERVER)) == {"ops1"}


def test_another_number_for_the_same_color_moves_nothing(a: ColorWire) -> None:
    """A network that joins a router takes the numbers of its domain."""
    among, client = packets.udp(v4(BLUE7), v4(BLUE5), PORTS), packets.udp(v4(OPS1), v4(BLUE5), PORTS)
    assert set(a.arrive(2, WEB_BLUE, BLUE7, among)) == {"blue5"}
    assert set(a.send("ops1", client)) == {"blue5"}
    a.recolor({WEB_BLUE: 3, WEB_GREEN: BLUE, DB_BLUE: 3, DB_GREEN: BLUE})
    assert set(a.arrive(2, WEB_BLUE, BLUE7, among)) == {"blue5"}
    assert on_wire(a.send("blue5", packets.udp(v4(BLUE5), v4(BLUE7), BACK))) == [(WEB_BLUE, B)]
