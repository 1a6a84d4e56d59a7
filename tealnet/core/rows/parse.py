"""Parsing of what travels on the stream: values checked once, at the edge. Every function raises BadResource."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from tealnet.agent.v1 import agent_pb2 as pb

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network

_UID = re.compile(r"[0-9a-f]{32}")


class BadResource(ValueError):
    """A resource that this build can't make sense of: to be treated as absent, and reported."""


def matching(pattern: re.Pattern[str], text: str, what: str) -> str:
    """Text of a form. Raises BadResource."""
    if pattern.fullmatch(text) is None:
        raise BadResource(f"not a valid {what}: {text!r}")
    return text


def within(number: int, low: int, high: int, what: str) -> int:
    """A number in its range, both ends included. Raises BadResource."""
    if not low <= number <= high:
        raise BadResource(f"{what} {number} is not within {low}…{high}")
    return number


def vni(number: int) -> int:
    """A VNI: 24 bits, never 0."""
    return within(number, 1, 2**24 - 1, "VNI")


def uid_text(text: str) -> str:
    """A uid as 32 hex."""
    return matching(_UID, text, "uid")


def uid(raw: bytes) -> str:
    """16 bytes of a uid as 32 hex."""
    if len(raw) != 16:
        raise BadResource(f"a uid has 16 bytes, not {len(raw)}")
    return raw.hex()


def address(raw: bytes) -> Address:
    """4 or 16 bytes. Raises BadResource, also for v4-mapped ones."""
    if len(raw) not in (4, 16):
        raise BadResource(f"an address has 4 or 16 bytes, not {len(raw)}")
    address = ip_address(raw)
    if address.version == 6 and address.ipv4_mapped is not None:
        raise BadResource(f"{address} is the v4 address {address.ipv4_mapped} in another form")
    return address


def addresses(raws: Iterable[bytes]) -> tuple[Address, ...]:
    """At least one address."""
    addresses = tuple(address(raw) for raw in raws)
    if not addresses:
        raise BadResource("no addresses")
    return addresses


def prefix(message: pb.Prefix) -> Prefix:
    """A prefix without host bits."""
    return ip_network((address(message.address), message.length))  # strict: host bits are an error


def mac(raw: bytes) -> str:
    """A unicast MAC, lower case with colons."""
    if len(raw) != 6:
        raise BadResource(f"a MAC has 6 bytes, not {len(raw)}")
    if raw[0] & 1 or raw == bytes(6):
        raise BadResource("not a unicast MAC")
    return raw.hex(":")
