"""Connections by color from look to look: what is new, what was refused, what nobody took."""

from __future__ import annotations

from ipaddress import ip_address

from agent.clock import Clock, Offset
from agent.connections import Connection
from agent.counting import Counted

BLUE, GREEN, ANSWERED = 1, 2, 256


def row(port: int, mark: int, state: str = "ESTABLISHED", *, protocol: str = "tcp") -> Connection:
    return Connection(protocol, ip_address("10.3.0.10"), ip_address("10.1.0.5"), (port, 80), 10, mark, state)


def numbers(counted: Counted, color: int) -> tuple[int, int, int]:
    return counted.connections[color], counted.opened[color], counted.failed[color]


def test_what_is_there_at_first_is_not_new() -> None:
    counted = Counted()
    counted.look([row(1, BLUE | ANSWERED), row(2, BLUE, "SYN_SENT"), row(3, GREEN, "TIME_WAIT")], now=0)
    assert numbers(counted, BLUE) == (1, 0, 0) and numbers(counted, GREEN) == (0, 0, 0)
    counted.look([row(1, BLUE | ANSWERED), row(2, BLUE, "TIME_WAIT"), row(4, GREEN | ANSWERED)], now=1)
    assert numbers(counted, BLUE) == (1, 0, 0) and numbers(counted, GREEN) == (1, 1, 0)


def test_each_connection_is_counted_once_however_often_it_is_seen() -> None:
    counted = Counted()
    counted.look([], now=0)
    for now in range(1, 10):
        counted.look([row(1, BLUE | ANSWERED), row(2, GREEN, "TIME_WAIT")], now=now)
    assert numbers(counted, BLUE) == (1, 1, 0) and numbers(counted, GREEN) == (0, 1, 1)


def test_nobody_takes_it_in_time() -> None:
    counted = Counted()
    counted.look([], now=0)
    for now in (1, 2, 3.9):
        counted.look([row(1, BLUE, "SYN_SENT")], now=now)
        assert numbers(counted, BLUE) == (0, 1, 0)
    for now in (4, 5):
        counted.look([row(1, BLUE, "SYN_SENT")], now=now)
        assert numbers(counted, BLUE) == (0, 1, 1)


def test_a_connection_that_ended_well_has_not_failed() -> None:
    counted = Counted()
    counted.look([], now=0)
    counted.look([row(1, BLUE | ANSWERED, "FIN_WAIT_2"), row(2, BLUE | ANSWERED, "TIME_WAIT")], now=1)
    assert numbers(counted, BLUE) == (0, 2, 0)


def test_ports_that_are_used_again_are_another_connection() -> None:
    counted = Counted()
    counted.look([], now=0)
    for now, (mark, state) in enumerate(
        [(BLUE | ANSWERED, "ESTABLISHED"), (BLUE | ANSWERED, "FIN_WAIT_2"), (GREEN, "SYN_SENT"), (GREEN, "TIME_WAIT")],
        1,
    ):
        counted.look([row(1, mark, state)], now=now)
    assert numbers(counted, BLUE) == (0, 1, 0) and numbers(counted, GREEN) == (0, 1, 1)


def test_nothing_is_new_after_a_pause() -> None:
    counted = Counted()
    counted.look([], now=0)
    counted.look([row(1, BLUE | ANSWERED)], now=1)
    counted.forget()
    counted.look([row(1, BLUE | ANSWERED), row(2, BLUE | ANSWERED)], now=100)
    assert numbers(counted, BLUE) == (2, 1, 0)


def test_datagrams_are_connections_but_neither_opened_nor_failed() -> None:
    counted = Counted()
    counted.look([], now=0)
    counted.look([row(1, GREEN, "", protocol="udp"), row(1, GREEN, "", protocol="icmp")], now=1)
    assert numbers(counted, GREEN) == (2, 0, 0)


def test_a_clock_is_read_from_the_exchange_with_the_least_delay() -> None:
    clock = Clock()
    assert clock.offset() == Offset(0, 0)
    # We are 500 ahead; there and back take 10 + 10, then 10 + 200.
    clock.heard(sent=1500, received=1010, answered=1300, now=1810)
    assert clock.offset() == Offset(500, 10)
    clock.heard(sent=2500, received=2010, answered=2300, now=3000)
    assert clock.offset() == Offset(500, 10)
