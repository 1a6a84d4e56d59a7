"""Colors on one host's switch: real packets through real conntrack, what they meet and where they come out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from agent.drivers.openflow import FlowDriver
from agent.drivers.zone import Usage
from agent.pipeline import Feature
from agent.tally import Tally
from tests.ovs import packets
from tests.ovs.colors import (
    BLUE,
    BLUE5,
    BLUE7,
    DB,
    DB_BLUE,
    DB_GREEN,
    GREEN,
    GREEN5,
    GREEN7,
    OPS,
    OPS1,
    OPS2,
    OPS3,
    WEB,
    WEB_BLUE,
    WEB_GREEN,
    WEB_UID,
    ZONE,
    ColorWire,
    weights,
)
from tests.ovs.packets import ACK, RST, SYN, Address, Packet, tcp
from tests.ovs.sandbox import Sandbox, connected
from tests.ovs.wire import UNDERLAY

pytestmark = pytest.mark.ovs

B, C = ip_address("192.0.2.2"), ip_address("192.0.2.3")
PORTS = (40000, 80)
BACK = (80, 40000)


@pytest.fixture(scope="module")
def wire() -> Iterator[ColorWire]:
    with Sandbox(dummy="") as ovs:
        yield ColorWire(ovs)


@pytest.fixture
def a(wire: ColorWire) -> ColorWire:
    wire.reset()
    return wire


def v4(row: object) -> Address:
    address: Address = row.addresses[0]  # type: ignore[attr-defined]
    return address


def v6(row: object) -> Address:
    address: Address = row.addresses[1]  # type: ignore[attr-defined]
    return address


def on_wire(out: dict[str, list[Packet]]) -> list[tuple[int | None, Address]]:
    """(VNI, target VTEP) of what went to other hosts; nothing came out elsewhere."""
    assert set(out) <= {UNDERLAY}, out
    return [(packet.vni, packet.outer[1]) for packet in out.get(UNDERLAY, []) if packet.outer]


KINDS: dict[str, Callable[[Address, Address, int], bytes]] = {
    "tcp": lambda source, target, port: tcp(source, target, (port, 80), SYN),
    "udp": lambda source, target, port: packets.udp(source, target, (port, 80)),
    "icmp": lambda source, target, port: packets.echo(source, target, port),
}
LATER = KINDS | {"tcp": lambda source, target, port: tcp(source, target, (port, 80), ACK)}
ANSWERS: dict[str, Callable[[Address, Address, int], bytes]] = {
    "tcp": lambda source, target, port: tcp(source, target, (80, port), SYN | ACK),
    "udp": lambda source, target, port: packets.udp(source, target, (80, port)),
    "icmp": lambda source, target, port: packets.echo(source, target, port, reply=True),
}


@pytest.mark.parametrize("end", [v4, v6])
@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_keeps_the_color_it_got_by_weight(
    a: ColorWire, kind: str, end: Callable[[object], Address]
) -> None:
    client, server = end(OPS1), end(BLUE7)
    assert on_wire(a.send("ops1", KINDS[kind](client, server, 1))) == [(WEB_BLUE, B)]
    answer = ANSWERS[kind](server, client, 1)
    assert len(a.arrive(2, WEB_BLUE, BLUE7, answer)["ops1"]) == 1
    a.split(WEB, 0, 100)
    assert on_wire(a.send("ops1", LATER[kind](client, server, 1))) == [(WEB_BLUE, B)]
    assert on_wire(a.send("ops1", KINDS[kind](client, server, 2))) == [(WEB_GREEN, C)]
    assert len(a.arrive(3, WEB_GREEN, GREEN7, ANSWERS[kind](server, client, 2))["ops1"]) == 1
    assert a.marks(ZONE["ops1"]) == [BLUE, GREEN]
    a.split(WEB, 100, 0)
    assert on_wire(a.send("ops1", LATER[kind](client, server, 2))) == [(WEB_GREEN, C)]


@pytest.mark.parametrize("end", [v4, v6])
def test_an_attempt_that_nobody_has_answered_gets_its_color_anew(a: ColorWire, end: Callable[[object], Address]) -> None:
    """Clients give a port out again, and who is asked in vain for a broken color asks again."""
    client, server = end(OPS1), end(BLUE7)
    syn, answer = tcp(client, server, PORTS, SYN), tcp(server, client, BACK, SYN | ACK)
    assert on_wire(a.send("ops1", syn)) == [(WEB_BLUE, B)]
    a.split(WEB, 0, 100)
    assert on_wire(a.send("ops1", syn)) == [(WEB_GREEN, C)]
    assert a.marks(ZONE["ops1"]) == [GREEN]
    assert a.arrive(2, WEB_BLUE, BLUE7, answer) == {}, "too late"
    assert len(a.arrive(3, WEB_GREEN, GREEN7, answer)["ops1"]) == 1
    a.split(WEB, 100, 0)
    assert on_wire(a.send("ops1", tcp(client, server, PORTS, ACK))) == [(WEB_GREEN, C)], "answered: it stays"


def test_the_wrong_twin_cannot_answer(a: ColorWire) -> None:
    client, server = v4(OPS1), v4(BLUE7)
    a.send("ops1", tcp(client, server, PORTS, SYN))
    answer = tcp(server, client, BACK, SYN | ACK)
    assert a.arrive(3, WEB_GREEN, GREEN7, answer) == {}
    assert len(a.arrive(2, WEB_BLUE, BLUE7, answer)["ops1"]) == 1


@pytest.mark.parametrize("gone", [False, True])
def test_without_weights_there_is_no_new_connection(a: ColorWire, gone: bool) -> None:
    a.send("ops1", tcp(v4(OPS1), v4(BLUE7), PORTS, SYN))
    a.arrive(2, WEB_BLUE, BLUE7, tcp(v4(BLUE7), v4(OPS1), BACK, SYN | ACK))
    a.inputs.weights.put(WEB_UID, None if gone else weights(WEB, 0, 0))
    a.load()
    assert a.send("ops1", tcp(v4(OPS1), v4(BLUE7), (40001, 80), SYN)) == {}
    assert on_wire(a.send("ops1", tcp(v4(OPS1), v4(BLUE7), PORTS, ACK))) == [(WEB_BLUE, B)]
    # Who has a color needs no weights.
    assert on_wire(a.send("green5", tcp(v4(GREEN5), v4(BLUE7), PORTS, SYN), routed=False)) == [(WEB_GREEN, C)]


def test_a_color_reaches_its_own_color_and_no_other(a: ColorWire) -> None:
    for name, source, seen in (("blue5", BLUE5, (DB_BLUE, B)), ("green5", GREEN5, (DB_GREEN, C))):
        assert on_wire(a.send(name, tcp(v4(source), ip_address("10.12.0.5"), PORTS, SYN))) == [seen]
    # Weights say nothing about who has a color.
    a.split(DB, 0, 100)
    assert on_wire(a.send("blue5", tcp(v4(BLUE5), ip_address("10.12.0.5"), (40001, 80), SYN))) == [(DB_BLUE, B)]
    green = next(row for row in a.inputs.endpoints.rows.values() if row.vni == DB_GREEN)
    a.inputs.endpoints.put(green.uid, None)
    a.load()
    assert a.send("green5", tcp(v4(GREEN5), ip_address("10.12.0.5"), (40002, 80), SYN)) == {}
    a.inputs.endpoints.put(green.uid, green)
    # From a tunnel: another color's VNI is not believed.
    assert a.arrive(2, WEB_GREEN, BLUE7, tcp(v4(BLUE7), v4(BLUE5), PORTS, SYN)) == {}
    out = a.arrive(2, WEB_BLUE, BLUE7, tcp(v4(BLUE7), v4(BLUE5), PORTS, SYN))
    assert set(out) == {"blue5"}


def test_twins_share_a_server_by_color(a: ColorWire) -> None:
    """To a shared server the VNI is the sender's, so the server's host knows which of the twins it was."""
    server = v4(OPS3)
    assert on_wire(a.send("blue5", tcp(v4(BLUE5), server, PORTS, SYN))) == [(WEB_BLUE, B)]
    assert on_wire(a.send("green5", tcp(v4(GREEN5), server, PORTS, SYN))) == [(WEB_GREEN, B)]
    # Between two without a color it is the target's.
    assert on_wire(a.send("ops1", tcp(v4(OPS1), server, PORTS, SYN), routed=False)) == [(OPS, B)]
    back = tcp(server, v4(BLUE5), BACK, SYN | ACK)
    assert set(a.arrive(2, WEB_BLUE, OPS3, back)) == {"blue5"}
    assert set(a.arrive(2, WEB_GREEN, OPS3, back)) == {"green5"}


class Counting:
    """A tally of packets that were dropped because of a twin."""

    def __init__(self, wire: ColorWire) -> None:
        self.wire = wire
        self.tally = Tally(wire.inputs, packets=lambda: self.driver.counts(Feature.BASE), usage=self.nothing)
        self.more()

    async def nothing(self) -> dict[int, Usage]:
        return {}

    def more(self) -> int:
        """So many since the last call."""
        before = self.tally.collisions
        asyncio.run(self.look())
        return self.tally.collisions - before

    async def look(self) -> None:
        async with connected(self.wire.ovs.mgmt("br-int"), run_dir=self.wire.ovs.run_dir) as driver:
            self.driver: FlowDriver = driver
            await driver.revalidated()
            await self.tally.look(now=0.0)


@pytest.mark.parametrize("first", ["blue5", "green5"])
def test_twins_exclude_each_other_from_one_connection_of_a_shared_server(a: ColorWire, first: str) -> None:
    server, twin = v4(OPS1), v4(BLUE5)
    second = {"blue5": "green5", "green5": "blue5"}[first]
    tally = Counting(a)
    assert set(a.send(first, tcp(twin, server, PORTS, SYN))) == {"ops1"}
    assert set(a.send("ops1", tcp(server, twin, BACK, SYN | ACK))) == {first}
    assert set(a.send(first, tcp(twin, server, PORTS, ACK))) == {"ops1"}
    assert a.send(second, tcp(twin, server, PORTS, SYN)) == {}
    assert a.send(second, tcp(twin, server, PORTS, ACK)) == {}
    assert tally.more() == 2
    assert set(a.send(second, tcp(twin, server, (40001, 80), SYN))) == {"ops1"}
    assert set(a.send(first, tcp(twin, server, PORTS, RST | ACK))) == {"ops1"}
    assert set(a.send(second, tcp(twin, server, PORTS, SYN))) == {"ops1"}, "free again"


def test_an_icmp_error_finds_its_connection(a: ColorWire) -> None:
    a.split(WEB, 0, 100)
    datagram = packets.udp(v4(OPS1), v4(BLUE5), PORTS, data=b"x")
    assert set(a.send("ops1", datagram)) == {"green5"}
    out = a.send("green5", packets.unreachable(v4(GREEN5), datagram))
    assert [packet.protocol for packet in out["ops1"]] == [packets.ICMP]
    assert a.send("blue5", packets.unreachable(v4(BLUE5), datagram)) == {}
    # … and of a shared server to each of the twins.
    for name in ("blue5", "green5"):
        a.forget()
        datagram = packets.udp(v4(BLUE5), v4(OPS2), PORTS, data=b"x")
        assert set(a.send(name, datagram)) == {"ops2"}
        assert set(a.send("ops2", packets.unreachable(v4(OPS2), datagram))) == {name}


@pytest.mark.parametrize("flags", [SYN | ACK, RST | ACK])
@pytest.mark.parametrize("end", [v4, v6])
def test_conntrack_tells_who_was_answered_from_who_was_refused(
    a: ColorWire, flags: int, end: Callable[[object], Address]
) -> None:
    """What gates of rollouts count: at the client, by color, whether the server took the connection."""
    client, server = end(OPS1), end(BLUE7)
    a.send("ops1", tcp(client, server, PORTS, SYN))
    assert [(row.mark, row.state) for row in a.connections(ZONE["ops1"])] == [(BLUE, "SYN_SENT")]
    a.arrive(2, WEB_BLUE, BLUE7, tcp(server, client, BACK, flags))
    a.send("ops1", tcp(client, server, PORTS, ACK if flags & SYN else RST))
    (row,) = a.connections(ZONE["ops1"])
    assert (row.protocol, row.source, row.target, row.ports) == ("tcp", client, server, PORTS)
    assert (row.mark, row.state) == ((BLUE | 256, "ESTABLISHED") if flags & SYN else (BLUE, "TIME_WAIT"))


def test_a_datagram_in_pieces_is_not_torn_between_colors(a: ColorWire) -> None:
    """Only its first piece has ports to hash."""
    a.split(WEB, 50, 50)
    for port in range(1, 21):
        datagram = packets.udp(v4(OPS1), v4(BLUE7), (port, 80), data=bytes(2500))
        out = on_wire(a.send_all("ops1", packets.fragments(datagram, 1280)))
        assert len(out) == 2 and len(set(out)) == 1, port
        # … and it keeps its color without pieces.
        assert on_wire(a.send("ops1", packets.udp(v4(OPS1), v4(BLUE7), (port, 80)))) == out[:1]
