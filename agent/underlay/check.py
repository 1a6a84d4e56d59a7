"""May this card be moved, and is the way out open?"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from agent.underlay import switch
from agent.underlay.state import Snapshot
from agent.underlay.tools import UnderlayError, call, succeeds

_PROBE = 1.0  # seconds that one answer may take
_STACKED = ("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec")


@dataclass(frozen=True, slots=True)
class Target:
    """Somebody who must be reachable: by ping, or with a port by TCP."""

    address: str
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`. Raises UnderlayError."""
        if text.startswith("["):
            address, _, port = text[1:].partition("]")
            port = port.removeprefix(":")
        else:
            address, _, port = text.partition(":") if text.count(":") == 1 else (text, "", "")
        if not address or not (port or "0").isdecimal():
            raise UnderlayError(f"{text!r} is no ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT")
        return cls(address, int(port or 0))

    def answers(self, device: str) -> bool:
        """Whether it is reachable now. A silent neighbour on `device` counts if it answers ARP or ND."""
        if self.port:
            try:
                socket.create_connection((self.address.partition("%")[0], self.port), timeout=_PROBE).close()
            except OSError:
                return False
            return True
        scope = f"%{device}" if self.address.startswith("fe80:") else ""
        if succeeds("ping", "-n", "-q", "-c", "1", "-W", f"{_PROBE:g}", self.address + scope):
            return True
        rows = json.loads(call("ip", "-json", "neigh", "show", self.address, "dev", device) or "[]")
        return any("REACHABLE" in row.get("state", []) for row in rows)

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address and self.port else self.address
        return f"{host}:{self.port}" if self.port else host


def targets(uplink: Snapshot, asked: Sequence[str]) -> list[Target]:
    """Whom to ask: those that the operator names, else the gateways of the default routes."""
    if asked:
        return [Target.parse(text) for text in asked]
    found = []
    for route in uplink.routes:
        if "default" in route.words:
            found += [Target(after) for word, after in pairwise(route.words) if word == "via"]
    return [one for one in dict.fromkeys(found) if one.address not in ("inet", "inet6")]


def answering(asked: Iterable[Target], device: str) -> list[Target]:
    """Those that are reachable now."""
    return [target for target in asked if target.answers(device)]


def wait_answers(asked: Sequence[Target], device: str, *, until: float) -> list[Target]:
    """Wait until every target has answered; returns those that have not at `until` (monotonic seconds)."""
    silent = list(asked)
    while silent and time.monotonic() < until:
        silent = [target for target in silent if not target.answers(device)]
        if silent:
            time.sleep(0.1)
    return silent


def objections(uplink: Snapshot, *, bridge: str, vtep: str) -> list[str]:
    """Why this card cannot be moved without cutting somebody off; empty = it can. Raises UnderlayError."""
    link, out = uplink.link, []
    if link.kind in ("bridge", "openvswitch", "tun") or link.name == "lo":
        out.append(f"{link.name} is not a network card")
    if link.master:
        out.append(f"{link.name} is part of {link.master}; name that one")
    if not link.up or not uplink.addresses:
        out.append(f"{link.name} is down or has no address")
    if vtep and vtep not in (one.local for one in uplink.addresses):
        out.append(f"{link.name} does not have the address {vtep}")
    if inside := switch.bridge_of(link.name):
        out.append(f"{link.name} is in the bridge {inside} already")
    if bridge in switch.bridges() and switch.owner(bridge) != link.name:
        out.append(f"there is a bridge {bridge} that was not made for {link.name}")
    links: list[dict[str, Any]] = json.loads(call("ip", "-json", "-d", "link", "show"))
    for row in links:
        kind = row.get("linkinfo", {}).get("info_kind", "")
        if row.get("link") == link.name and kind in _STACKED:
            out.append(f"{row['ifname']} ({kind}) is stacked on {link.name}: its frames would be dropped")
    for family in ("-4", "-6"):
        for rule in json.loads(call("ip", "-json", family, "rule", "show")):
            out += (
                [f"the rule {rule} of ip-rule(8) names it"] if link.name in (rule.get("iif"), rule.get("oif")) else []
            )
    return out


def leases(uplink: Snapshot) -> list[str]:
    """IPv4 addresses that a DHCP client has to renew on the card, where it would no longer get an answer."""
    return [one.local for one in uplink.addresses if one.family == 4 and one.is_dynamic]


def filters_that_name(device: str) -> bool:
    """Whether nft's rules (also those of iptables-nft) speak of the card: they will not see its packets any more."""
    return f'"{device}"' in call("nft", "list", "ruleset")
