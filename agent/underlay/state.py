"""What a device has: link, addresses, routes; can be compared, kept in a file and given back to ip(8)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from agent.underlay.tools import UnderlayError, call

FOREVER = 4294967295  # seconds, as ip(8) prints INFINITY_LIFE_TIME
HERE = "@"  # stands for the device itself in the words of a route
_SETTABLE = ("home", "nodad", "mngtmpaddr", "noprefixroute", "autojoin")  # CONFFLAG-LIST of ip-address(8)
# Words of a route that say how it fares, not what it is: alone, or with a value behind.
_FATE = {"linkdown", "dead", "offload", "offload_failed", "trap", "rt_offload", "rt_offload_failed", "rt_trap"}
_FATE_WITH_VALUE = {"error", "users", "used", "age"}
_KERNELS_TYPES = ("2", "3", "4", "5")  # local, broadcast, anycast, multicast: rtnetlink(7), rtm_type
_KERNEL = "2"  # RTPROT_KERNEL


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a device. Lifetimes (seconds from the moment of reading) do not count in comparisons."""

    family: int  # 4 or 6
    local: str
    prefix_length: int
    peer: str = ""
    broadcast: str = ""
    scope: str = "global"
    label: str = ""
    metric: int = 0
    flags: tuple[str, ...] = ()  # those of CONFFLAG-LIST, sorted
    protocol: str = ""  # who made it, where ip(8) tells
    valid: int = field(default=FOREVER, compare=False)
    preferred: int = field(default=FOREVER, compare=False)

    @property
    def key(self) -> tuple[str, int]:
        """What makes it another address."""
        return self.local, self.prefix_length

    @property
    def is_dynamic(self) -> bool:
        """Whether somebody (DHCP, router advertisements) has to renew it."""
        return self.valid != FOREVER

    def words(self, device: str) -> str:
        """The arguments for `ip address add`."""
        peer = f" peer {self.peer}" if self.peer else ""
        words = [f"{self.local}{peer}/{self.prefix_length}", "dev", device, "scope", self.scope]
        for name in ("broadcast", "label", "metric", "protocol"):
            if value := getattr(self, name):
                words += [{"protocol": "proto"}.get(name, name), str(value)]
        words += [f"valid_lft {_lifetime(self.valid)}", f"preferred_lft {_lifetime(self.preferred)}"]
        return " ".join([*words, *self.flags])


@dataclass(frozen=True, slots=True)
class Route:
    """One route, in the words of ip-route(8) with numbers for names; `@` where the device's name stands."""

    family: int
    words: tuple[str, ...]
    expires: int = field(default=0, compare=False)  # seconds; 0 = never

    @property
    def is_on_link(self) -> bool:
        """Whether it needs no other route to reach a gateway."""
        return "via" not in self.words

    def text(self, device: str) -> str:
        """The arguments for `ip route del`, without the lifetime."""
        return " ".join(device if word == HERE else word for word in self.words)

    def text_to_add(self, device: str) -> str:
        """The arguments for `ip route add`."""
        return self.text(device) + (f" expires {self.expires}" if self.expires else "")


@dataclass(frozen=True, slots=True)
class Link:
    """A device itself."""

    name: str
    index: int
    up: bool
    promisc: bool
    mtu: int  # bytes
    mac: str
    kind: str = ""  # "" for hardware
    master: str = ""
    generates: str = ""  # IPv6 address generation mode; "" = IPv6 is off


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A device with all it has. Addresses are in the order of ip(8)."""

    link: Link
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]


def read(device: str) -> Snapshot | None:
    """What a device has now; None = there is no such device. Raises UnderlayError."""
    links = _rows("link", device)
    if not links:
        return None
    found = [row for link in _rows("address", device) for row in link.get("addr_info", []) if row]
    # What temporary addresses are (RFC 8981) nobody but the kernel can say.
    addresses = (parse_address(row) for row in found if not row.get("temporary"))
    return Snapshot(parse_link(links[0]), tuple(addresses), tuple(_routes(device)))


def _rows(kind: str, device: str) -> list[dict[str, Any]]:
    # Asked for all: that a device is not there must not be an error.
    rows: list[dict[str, Any]] = json.loads(call("ip", "-json", "-d", kind, "show"))
    return [row for row in rows if row.get("ifname") == device]


def parse_link(row: dict[str, Any]) -> Link:
    """A link from an object of `ip -json -d link`."""
    return Link(
        name=row["ifname"],
        index=row["ifindex"],
        up="UP" in row["flags"],
        promisc="PROMISC" in row["flags"],
        mtu=row["mtu"],
        mac=row["address"],
        kind=row.get("linkinfo", {}).get("info_kind", ""),
        master=row.get("master", ""),
        generates=row.get("inet6_addr_gen_mode", ""),
    )


def parse_address(row: dict[str, Any]) -> Address:
    """An address from an object of `ip -json address`."""
    return Address(
        family=4 if row["family"] == "inet" else 6,
        local=row["local"],
        prefix_length=row["prefixlen"],
        peer=row.get("address", ""),
        broadcast=row.get("broadcast", ""),
        scope=row["scope"],
        label=row.get("label", ""),
        metric=row.get("metric", 0),
        flags=tuple(flag for flag in _SETTABLE if row.get(flag)),
        protocol=row.get("protocol", ""),
        valid=row["valid_life_time"],
        preferred=row["preferred_life_time"],
    )


def parse_route(family: int, line: str, device: str) -> Route | None:
    """A route from a line of `ip -o -N route show table all`; None = not of this device, or the kernel's own.

    Raises:
        UnderlayError: it goes over this device and cannot be moved by its words.
    """
    words = [word for word in line.split() if word != "\\" and word not in _FATE]
    devices = {after for word, after in pairwise(words) if word == "dev"}
    if device not in devices or (words[0] in _KERNELS_TYPES and _value(words, "proto") == _KERNEL):
        return None
    if len(devices) > 1 or "nhid" in words or "encap" in words:
        raise UnderlayError(f"cannot move the route {' '.join(words)!r}: over several devices, nexthop object or encap")
    expires = int(_value(words, "expires").removesuffix("sec") or 0)
    kept, skip = [], False
    for at, word in enumerate(words):
        is_name = at and words[at - 1] == "dev"
        if skip or (word in _FATE_WITH_VALUE or word == "expires"):
            skip = not skip
            continue
        kept.append(HERE if is_name else word)
    return Route(family, tuple(kept), expires)


def aged(addresses: Iterable[Address], *, seconds: int) -> list[Address]:
    """Addresses as they are that much later; what has run out is gone."""
    out = []
    for address in addresses:
        if address.is_dynamic:
            address = replace(
                address,
                valid=address.valid - seconds,
                preferred=max(0, address.preferred - seconds) if address.preferred != FOREVER else FOREVER,
            )
        if address.valid > 0:
            out.append(address)
    return out


def _routes(device: str) -> Iterable[Route]:
    for family in (4, 6):
        for line in call("ip", "-o", "-N", f"-{family}", "route", "show", "table", "all").splitlines():
            if line.strip() and (route := parse_route(family, line, device)):
                yield route


def _value(words: list[str], name: str) -> str:
    return words[words.index(name) + 1] if name in words[:-1] else ""


def _lifetime(seconds: int) -> str:
    return "forever" if seconds == FOREVER else str(seconds)
