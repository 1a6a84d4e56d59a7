"""Proposals are pure: free places only, at random, without enumerating what is large."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import allocate
from controller.rows import NetworkSpec


def spec(*cidrs: str, reserved: tuple[tuple[str, str], ...] = ()) -> NetworkSpec:
    nets: Any = tuple(ip_network(cidr) for cidr in cidrs)
    return NetworkSpec(
        tenant="tenants/acme",
        cidrs=nets,
        gateways=tuple(net.network_address + 1 for net in nets),
        reserved=tuple((ip_address(a), ip_address(b)) for a, b in reserved),
        router="",
        mtu=0,
        number=1,
        own_domain=256,
        segments=(),
        quarantine=0,
    )


def test_what_is_never_given_out() -> None:
    found = allocate.usable(spec("10.0.0.0/29", "fd00::/64", reserved=(("10.0.0.3", "10.0.0.4"),)), 4)
    assert [(str(IPv4Address(a)), str(IPv4Address(b))) for a, b in found] == [
        ("10.0.0.2", "10.0.0.2"),
        ("10.0.0.5", "10.0.0.6"),
    ]
    (v6,) = allocate.usable(spec("10.0.0.0/29", "fd00::/64"), 6)
    assert v6 == (int(ip_address("fd00::2")), int(ip_address("fd00::ffff:ffff:ffff:ffff")))


@given(
    taken=st.sets(st.integers(0, 19)),
    spans=st.just([(0, 4), (10, 14), (15, 19)]),
    seed=st.integers(0, 2**32),
)
def test_a_free_one_is_found_if_there_is_one(taken: set[int], spans: list[tuple[int, int]], seed: int) -> None:
    free = {n for a, b in spans for n in range(a, b + 1)} - taken

    def find() -> int:
        make = allocate.address(
            spans, version=4, is_free=lambda address: int(address) not in taken, rng=random.Random(seed)
        )
        return int(make)

    if free:
        assert find() in free
    else:
        with pytest.raises(allocate.Exhausted) as caught:
            find()
        assert caught.value.size == 15


def test_a_huge_prefix_is_not_enumerated() -> None:
    looks = 0

    def is_free(_: Any) -> bool:
        nonlocal looks
        looks += 1
        return looks > 100

    spans = allocate.usable(spec("fd00::/16", reserved=(("fd00::", "fd00:7fff::"),)), 6)
    allocate.address(spans, version=6, is_free=is_free, rng=random.Random(1))
    assert looks == 101


def test_starts_are_spread() -> None:
    rng = random.Random(1)
    found = {allocate.number(1, 1000, is_free=lambda _: True, rng=rng) for _ in range(100)}
    assert len(found) > 80


def test_macs() -> None:
    first = allocate.mac("uid", ip_address("10.0.0.5"), is_free=lambda _: True)
    assert first == allocate.mac("uid", ip_address("10.0.0.5"), is_free=lambda _: True)
    assert first != allocate.mac("other", ip_address("10.0.0.5"), is_free=lambda _: True)
    second = allocate.mac("uid", ip_address("10.0.0.5"), is_free=lambda mac: mac != first)
    assert second != first
    for mac in (first, second):
        assert int(mac[:2], 16) & 3 == 2
