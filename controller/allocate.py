"""Proposals for numbers and addresses. Pure: what is free is asked, chance comes in as `rng`, etcd decides.

Every search starts at a random place: replicas that all took the lowest free one would block each other (measured:
34 creates/s against 1,100). Large ranges are never enumerated: a search looks only at places that may be taken.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address
from itertools import count

from controller.rows import Address, NetworkSpec, Prefix

ROUTER_MAC = "02:74:6e:00:00:01"
FIRST_NUMBER = 256  # of routing domains and identities
LAST_NUMBER = 2**32 - 1
LAST_NETWORK_NUMBER = 2**31 - 1
LAST_HOST_NUMBER = 65_534

Span = tuple[int, int]  # inclusive


class Exhausted(Exception):
    """Nothing is free. `size`: how many there are at all."""

    def __init__(self, size: int) -> None:
        super().__init__(f"none of {size} is free")
        self.size = size


def number(first: int, last: int, *, is_free: Callable[[int], bool], rng: random.Random) -> int:
    """A free number of an inclusive range. Raises Exhausted."""
    return _search([(first, last)], is_free=is_free, rng=rng)


def address(spans: Sequence[Span], *, version: int, is_free: Callable[[Address], bool], rng: random.Random) -> Address:
    """A free address of the spans that `usable` gave. Raises Exhausted."""
    make: Callable[[int], Address] = IPv4Address if version == 4 else IPv6Address
    return make(_search(spans, is_free=lambda value: is_free(make(value)), rng=rng))


def _search(spans: Sequence[Span], *, is_free: Callable[[int], bool], rng: random.Random) -> int:
    """From a random place onwards, all spans in a ring. Ends at the latest after as many steps as are taken."""
    size = sum(last - first + 1 for first, last in spans)
    if size == 0:
        raise Exhausted(0)
    start = rng.randrange(size)
    for step in range(size):
        value = _at(spans, (start + step) % size)
        if is_free(value):
            return value
    raise Exhausted(size)


def _at(spans: Sequence[Span], place: int) -> int:
    for first, last in spans:
        if place <= last - first:
            return first + place
        place -= last - first + 1
    raise IndexError(place)


# ---- addresses of a network


def held_back(cidr: Prefix, gateway: Address) -> list[Address]:
    """What is never a port's: the network's own address, its gateway and, in v4, its broadcast address.

    In v6 the first address is the routers' anycast address (RFC 4291, 2.6.1); there is no broadcast.
    """
    always = [cidr.network_address, gateway]
    return [*always, cidr.broadcast_address] if cidr.version == 4 else always


def usable(spec: NetworkSpec, version: int) -> list[Span]:
    """The addresses of a family that may be given out by themselves, as numbers."""
    spans: list[Span] = []
    for cidr, gateway in zip(spec.cidrs, spec.gateways, strict=True):
        if cidr.version != version:
            continue
        holes = [(int(a), int(a)) for a in held_back(cidr, gateway)]
        holes += [(int(first), int(last)) for first, last in spec.reserved if first.version == version]
        spans += without((int(cidr.network_address), int(cidr.broadcast_address)), holes)
    return spans


def without(span: Span, holes: Iterable[Span]) -> list[Span]:
    """What is left of a span without the others."""
    left: list[Span] = []
    at, end = span
    for first, last in sorted(holes):
        if last < at or first > end:
            continue
        if first > at:
            left.append((at, first - 1))
        at = last + 1
    return [*left, (at, end)] if at <= end else left


def families(spec: NetworkSpec) -> list[int]:
    """IP versions of a network, v4 first."""
    return sorted({cidr.version for cidr in spec.cidrs})


# ---- MAC addresses


def mac(network_uid: str, first: Address, *, is_free: Callable[[str], bool]) -> str:
    """The MAC of a network's port by its first address: the same again for a re-created port, and for twins.

    Locally administered, unicast (IEEE 802, 8.2); hashed again where it is taken; never the router's.
    """
    for attempt in count():
        seed = f"{network_uid}/{first}/{attempt}".encode()
        raw = bytearray(blake2b(seed, digest_size=6).digest())
        raw[0] = raw[0] & 0xFC | 0x02
        text = raw.hex(":")
        if text != ROUTER_MAC and is_free(text):
            return text
    raise AssertionError("unreachable")
