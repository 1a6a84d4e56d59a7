"""Words of ip(8) in, lines for ip(8) out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agent.underlay import plan
from agent.underlay.record import Phase, Record, decode, encode
from agent.underlay.state import FOREVER, Address, Link, Route, Snapshot, aged, parse_address, parse_route
from agent.underlay.tools import UnderlayError

CARD = Link("eth0", 2, up=True, promisc=False, mtu=1500, mac="02:00:00:00:00:01", generates="eui64")
BRIDGE = Link("br-u", 9, up=True, promisc=True, mtu=1500, mac="02:00:00:00:00:01", generates="none")
FIRST = Address(4, "192.0.2.1", 24, broadcast="192.0.2.255", label="eth0")
SECOND = Address(4, "192.0.2.9", 24, label="eth0:1")
NEW6, OLD6 = Address(6, "2001:db8::2", 64), Address(6, "2001:db8::1", 64)
DEFAULT = Route(4, ("default", "via", "192.0.2.254", "dev", "@", "metric", "7"))
SUBNET = Route(4, ("192.0.2.0/24", "dev", "@", "proto", "2", "scope", "253", "src", "192.0.2.1"))
WANTED = Snapshot(CARD, (FIRST, SECOND, NEW6, OLD6), (DEFAULT, SUBNET))
EMPTY_BRIDGE = Snapshot(BRIDGE, (), ())
LASTS = "valid_lft forever preferred_lft forever"


@pytest.mark.parametrize(
    ("line", "words", "expires"),
    [
        ("default via 192.0.2.2 dev eth0 metric 7 linkdown ", "default via 192.0.2.2 dev @ metric 7", 0),
        ("198.51.100.0/24 dev eth0 table 77 mtu lock 1400 ", "198.51.100.0/24 dev @ table 77 mtu lock 1400", 0),
        (
            "default via fe80::1 dev eth0 proto 9 metric 1024 expires 1790sec hoplimit 64 pref medium",
            "default via fe80::1 dev @ proto 9 metric 1024 hoplimit 64 pref medium",
            1790,
        ),
        (
            "default proto 4 \\\tnexthop via 192.0.2.2 dev eth0 weight 1 \\\tnexthop via 192.0.2.3 dev eth0 weight 3",
            "default proto 4 nexthop via 192.0.2.2 dev @ weight 1 nexthop via 192.0.2.3 dev @ weight 3",
            0,
        ),
        ("2001:db8::/64 dev eth0 proto 2 metric 256 error -101", "2001:db8::/64 dev @ proto 2 metric 256", 0),
    ],
)
def test_a_route_is_its_words_without_its_fate(line: str, words: str, expires: int) -> None:
    route = parse_route(4, line, "eth0")
    assert route is not None
    assert (" ".join(route.words), route.expires) == (words, expires)


@pytest.mark.parametrize(
    "line",
    [
        "default via 192.0.2.2 dev eth1",
        "2 192.0.2.1 dev eth0 table 255 proto 2 scope 254 src 192.0.2.1",
        "5 ff00::/8 dev eth0 table 255 proto 2 metric 256 pref medium",
        "unreachable 10.0.0.0/8",
    ],
)
def test_routes_of_others_and_of_the_kernel_stay(line: str) -> None:
    assert parse_route(4, line, "eth0") is None


@pytest.mark.parametrize(
    "line",
    [
        "default nhid 7 via 192.0.2.2 dev eth0",
        "10.0.0.0/8 encap mpls 100 via 192.0.2.2 dev eth0",
        "default \\\tnexthop via 192.0.2.2 dev eth0 weight 1 \\\tnexthop via 198.51.100.1 dev eth1 weight 1",
    ],
)
def test_what_words_cannot_say_is_refused(line: str) -> None:
    with pytest.raises(UnderlayError):
        parse_route(4, line, "eth0")


def test_an_address_goes_back_to_ip_as_it_came() -> None:
    row = {
        "family": "inet6",
        "local": "2001:db8::5",
        "prefixlen": 64,
        "scope": "global",
        "dynamic": True,
        "mngtmpaddr": True,
        "valid_life_time": 600,
        "preferred_life_time": 300,
    }
    words = "2001:db8::5/64 dev br-u scope global valid_lft 600 preferred_lft 300 mngtmpaddr"
    assert parse_address(row).words("br-u") == words


def test_to_the_bridge_addresses_first_then_on_link_routes_then_gateways() -> None:
    lines = plan.to_bridge(WANTED, uplink=WANTED, bridge=EMPTY_BRIDGE)
    assert lines[4] == [
        f"address add 192.0.2.1/24 dev br-u scope global broadcast 192.0.2.255 {LASTS} noprefixroute",
        f"address add 192.0.2.9/24 dev br-u scope global {LASTS} noprefixroute",
        "route del 192.0.2.0/24 dev eth0 proto 2 scope 253 src 192.0.2.1",
        "route add 192.0.2.0/24 dev br-u proto 2 scope 253 src 192.0.2.1",
        "route del default via 192.0.2.254 dev eth0 metric 7",
        "route add default via 192.0.2.254 dev br-u metric 7",
        "address del 192.0.2.9/24 dev eth0",
        "address del 192.0.2.1/24 dev eth0",
    ]
    # ip(8) lists the newest IPv6 address first.
    assert [line.split()[2] for line in lines[6][:2]] == ["2001:db8::1/64", "2001:db8::2/64"]


def test_what_is_moved_is_not_moved_again() -> None:
    there = Snapshot(BRIDGE, tuple(plan.on_bridge(one) for one in WANTED.addresses), WANTED.routes)
    assert plan.to_bridge(WANTED, uplink=Snapshot(CARD, (), ()), bridge=there) == {4: [], 6: []}


def test_back_in_rounds_until_nothing_differs() -> None:
    bare = Snapshot(CARD, (), ())
    first = plan.to_uplink(WANTED, bare)
    assert first[4] == [
        f"address add 192.0.2.1/24 dev eth0 scope global broadcast 192.0.2.255 label eth0 {LASTS}",
        f"address add 192.0.2.9/24 dev eth0 scope global label eth0:1 {LASTS}",
    ]
    assert first[6][-1] == f"address add 2001:db8::2/64 dev eth0 scope global {LASTS} nodad"
    unchecked = tuple(replace(one, flags=("nodad",)) if one.family == 6 else one for one in WANTED.addresses)
    second = plan.to_uplink(WANTED, Snapshot(CARD, unchecked, (SUBNET,)))
    assert [line.split()[1] for line in second[6]] == ["change", "change"]
    third = plan.to_uplink(WANTED, replace(WANTED, routes=(replace(SUBNET, words=("192.0.2.0/24", "dev", "@")),)))
    assert [line.split()[:2] for line in third[4]] == [["route", "del"], ["route", "add"], ["route", "add"]]
    assert plan.to_uplink(WANTED, WANTED) == {4: [], 6: []}
    assert plan.differences(WANTED, WANTED) == []


def test_what_somebody_has_added_since_stays() -> None:
    added = replace(
        WANTED, addresses=(*WANTED.addresses, Address(4, "10.0.0.1", 8)), routes=(*WANTED.routes, Route(4, ("10/8",)))
    )
    assert plan.to_uplink(WANTED, added) == {4: [], 6: []}
    assert plan.differences(WANTED, added) == ["surplus: address 10.0.0.1/8", "surplus: route 10/8"]


def test_lifetimes_run() -> None:
    leased, fixed = replace(FIRST, valid=600, preferred=300), SECOND
    later = aged([leased, fixed], seconds=400)
    assert [(one.valid, one.preferred) for one in later] == [(200, 0), (FOREVER, FOREVER)]
    assert aged([leased, fixed], seconds=600) == [fixed]


def test_a_record_survives_its_file() -> None:
    record = Record("0" * 32, Phase.PENDING, "br-u", 1.5, WANTED, ("gro",))
    assert decode(json.loads(json.dumps(encode(record)))) == record
    with pytest.raises(ValueError):
        decode({**encode(record), "version": 2})
