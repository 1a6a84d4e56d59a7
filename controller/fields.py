"""Checks of single fields, shared by all kinds: names, labels, texts, addresses, prefixes. Pure.

A value that is right but written otherwise (FD00::1) is put into its canonical form (RFC 5952), so that equal values
are equal texts in the store.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from google.protobuf.internal.containers import ScalarMap
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from controller.errors import Invalid, Violation
from controller.rows import Address, Prefix

NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
NAME_HELP = "a lower-case letter, then letters, digits or hyphens, at most 63, not ending in a hyphen"
_LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
MOST_LABELS = 64
LONGEST_TEXT = 1024


class Violations:
    """Collects what is wrong; all of it is told at once. Paths are prefixed, for example with `network`."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.found: list[Violation] = []

    def add(self, field: str, text: str) -> None:
        """One more."""
        self.found.append(Violation(f"{self.prefix}.{field}" if self.prefix else field, text))

    def finish(self) -> None:
        """Raises Invalid if there is any."""
        if self.found:
            raise Invalid(self.found)


def common(message: Any, found: Violations) -> None:
    """Labels, description and unknown fields of any kind."""
    labels(message.labels, "labels", found)
    text(message.description, "description", found)
    unknown(message, "", found)


def labels(values: ScalarMap[str, str], field: str, found: Violations) -> None:
    """A map of labels, or a selector of hosts."""
    if len(values) > MOST_LABELS:
        found.add(field, f"at most {MOST_LABELS} labels")
        return
    for key, value in values.items():
        if not _LABEL_KEY.fullmatch(key):
            found.add(field, f"key {key[:80]!r}: letters, digits, '.', '_', '-', at most 63, optionally domain/ before")
        if not _LABEL_VALUE.fullmatch(value):
            found.add(field, f"value of {key[:80]!r}: letters, digits, '.', '_', '-', at most 63")


def text(value: str, field: str, found: Violations) -> None:
    """Free text for people."""
    if len(value) > LONGEST_TEXT:
        found.add(field, f"at most {LONGEST_TEXT} characters")
    elif any((ord(c) < 32 and c not in "\n\t") or ord(c) == 127 for c in value):
        found.add(field, "no control characters")


def unknown(message: Message, path: str, found: Violations) -> None:
    """Fields that this controller does not know: refused, because ignoring them would do something else than asked."""
    if len(UnknownFieldSet(message)):
        found.add(path.rstrip("."), "has a field that this controller does not know; is the client newer?")
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None or descriptor.message_type.GetOptions().map_entry:
            continue
        values: Iterable[Message] = value if descriptor.is_repeated else (value,)
        for part in values:
            unknown(part, f"{path}{descriptor.name}.", found)


# ---- addresses


def address(value: str, field: str, found: Violations) -> Address | None:
    """One unicast address that a workload or host may have."""
    try:
        parsed = ip_address(value)
    except ValueError:
        found.add(field, f"{value[:80]!r} is not an IPv4 or IPv6 address")
        return None
    if isinstance(parsed, IPv6Address) and parsed.scope_id:
        found.add(field, f"{value[:80]!r} has a zone; leave it out")
        return None
    if problem := _special(parsed):
        found.add(field, f"{parsed} is {problem}; use a unicast address")
        return None
    return parsed


def _special(value: Address) -> str:
    """What a unicast address of a workload must not be; "" if it is fine."""
    if value.is_unspecified:
        return "the unspecified address"
    if value.is_multicast:
        return "a multicast address"
    if value.is_loopback:
        return "a loopback address"
    if value.is_link_local:
        return "a link-local address"
    if isinstance(value, IPv6Address):
        if value.ipv4_mapped is not None:
            return "an IPv4-mapped address"
        return "a site-local address" if value.is_site_local else ""
    if value in IPv4Network("0.0.0.0/8") or value in IPv4Network("240.0.0.0/4"):
        return "of a reserved range"
    return ""


def prefix(value: str, field: str, found: Violations) -> Prefix | None:
    """One prefix without host bits."""
    try:
        parsed = ip_network(value)
    except ValueError:
        found.add(field, _prefix_problem(value))
        return None
    if "/" not in value:
        found.add(field, f"{value[:80]!r} has no length; did you mean {parsed}?")
        return None
    if isinstance(parsed, IPv6Network) and parsed.network_address.scope_id:
        found.add(field, f"{value[:80]!r} has a zone; leave it out")
        return None
    return parsed


def _prefix_problem(value: str) -> str:
    try:
        loose = ip_network(value, strict=False)
    except ValueError:
        return f"{value[:80]!r} is not a prefix like 10.0.0.0/24 or fd00::/64"
    return f"{value[:80]} has bits set beyond its length; did you mean {loose}?"


_NEVER = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
        "::/8", "fe80::/10", "fec0::/10", "ff00::/8",
    )
)  # fmt: skip


def unicast(value: Prefix, field: str, found: Violations) -> None:
    """A prefix that workloads can have addresses of."""
    for never in _NEVER:
        if never.version == value.version and never.overlaps(value):
            found.add(field, f"{value} overlaps {never}, which workloads can't have")
            return


def mac(value: str, field: str, found: Violations) -> str:
    """A unicast MAC address, in lower case with colons."""
    lower = value.lower().replace("-", ":")
    if not _MAC.fullmatch(lower):
        found.add(field, f"{value[:40]!r} is not a MAC address like 02:00:00:00:00:01")
    elif int(lower[:2], 16) & 1:
        found.add(field, f"{lower} is a group address; the lowest bit of the first byte must be 0")
    elif lower == "00:00:00:00:00:00":
        found.add(field, "all zeros is not an address")
    return lower


def span(value: str, field: str, found: Violations) -> tuple[Address, Address] | None:
    """`a-b`, one address or a prefix, as an inclusive range."""
    first, dash, last = value.partition("-")
    try:
        low: Address
        high: Address
        if dash:
            low, high = ip_address(first.strip()), ip_address(last.strip())
        else:
            net = ip_network(value.strip())
            low, high = net.network_address, net.broadcast_address
    except ValueError:
        found.add(field, f"{value[:80]!r} is not an address, a prefix or a range like 10.0.0.2-10.0.0.9")
        return None
    if "%" in value:
        found.add(field, f"{value[:80]!r} has a zone; leave it out")
        return None
    if low.version != high.version or int(low) > int(high):
        found.add(field, f"{value[:80]!r} ends before it begins")
        return None
    return low, high


def distinct(values: Iterable[str], field: str, found: Violations) -> None:
    """A list in canonical form in which nothing stands twice."""
    seen: dict[str, int] = {}
    for i, value in enumerate(values):
        if value in seen:
            found.add(f"{field}[{i}]", f"{value[:80]} stands in {field}[{seen[value]}] already")
        seen.setdefault(value, i)


def span_text(first: Address, last: Address) -> str:
    """The canonical form of a range."""
    return str(first) if first == last else f"{first}-{last}"


def within(value: Address, cidrs: Iterable[Prefix]) -> Prefix | None:
    """The prefix that has an address."""
    return next((cidr for cidr in cidrs if cidr.version == value.version and value in cidr), None)


def is_v4(value: Address) -> bool:
    """Whether it is IPv4."""
    return isinstance(value, IPv4Address)
