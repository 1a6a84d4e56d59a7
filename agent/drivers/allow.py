"""What this host lets be plugged into a network. Decided here alone: no controller can overrule it.

A port may name a namespace by its path or a device of the host. Whoever could name any would be root on the host, so
both need an entry in the agent's own allow-lists (empty by default), and some are never accepted.
"""

from __future__ import annotations

import os.path
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from agent.drivers.base import Failure
from agent.objects import Marks

# Bridges (OVS's own devices have kind "openvswitch") and what carries somebody else's traffic.
_NEVER_KINDS = frozenset({"bridge", "openvswitch", "vxlan", "geneve", "vrf", "team", "bond"})


@dataclass(frozen=True, slots=True)
class Allowed:
    """The agent's own allow-lists: globs, of which `*` and `?` match within one part of a path."""

    netns: tuple[str, ...] = ()  # "/run/netns/cni-*"
    devices: tuple[str, ...] = ()  # "tap*"
    never: frozenset[str] = frozenset()  # devices that are this host's own, whatever `devices` says


class PlacementRefused(Exception):
    """It may not be plugged. `reason` is a stable CamelCase word, `text` is for people."""

    def __init__(self, reason: str, text: str, *, retriable: bool) -> None:
        super().__init__(text)
        self.reason, self.text, self.retriable = reason, text, retriable

    def failure(self) -> Failure:
        """As what a driver returns."""
        return Failure(self.reason, self.text, retriable=self.retriable)


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What is asked about a device before it is plugged."""

    name: str
    kind: str = ""
    loopback: bool = False
    alias: str = ""
    addresses: tuple[str, ...] = ()  # but IPv6 link-local ones, which each device that is up has
    default_route: bool = False
    master_kind: str | None = None  # None = it has no master
    carries: str = ""  # a device stacked on it, for instance a VLAN
    foreign_ovs_ports: Collection[str] = field(default=frozenset())


def netns_path(path: str, globs: Sequence[str]) -> None:
    """Refuse a path that the list does not name. Raises PlacementRefused(NetnsNotAllowed)."""
    plain = path.startswith("/") and not path.startswith("//") and os.path.normpath(path) == path
    if not plain or not any(_matches(path, glob) for glob in globs):
        text = f"{path}: not in this agent's allow_netns" if plain else f"{path}: not a plain absolute path"
        raise PlacementRefused("NetnsNotAllowed", text, retriable=False)


def netns_identity(path: str, identity: tuple[int, int], never: Collection[tuple[int, int]]) -> None:
    """Refuse the host's namespaces by (device, inode) of the opened file, wherever they are mounted.

    Raises PlacementRefused(NetnsNotAllowed).
    """
    if identity in never:
        text = f"{path}: it is the agent's own or the first process's network namespace"
        raise PlacementRefused("NetnsNotAllowed", text, retriable=False)


def device(facts: DeviceFacts, allowed: Allowed) -> None:
    """Refuse a device. Raises PlacementRefused(DeviceNotAllowed: never as it is; DeviceInUse: not as it is used)."""
    if not any(fnmatchcase(facts.name, glob) for glob in allowed.devices):
        raise PlacementRefused("DeviceNotAllowed", f"{facts.name}: not in this agent's allow_device", retriable=False)
    # By name: a bridge of a userspace datapath is a tap like any other.
    never = "it is the host's own uplink, bridge or tunnel" if facts.name in allowed.never else _why_never(facts)
    if never:
        raise PlacementRefused("DeviceNotAllowed", f"{facts.name}: {never}", retriable=False)
    used = _why_in_use(facts)
    if used:
        raise PlacementRefused("DeviceInUse", f"{facts.name}: {used}", retriable=True)


def _why_never(facts: DeviceFacts) -> str:
    if facts.loopback:
        return "it is a loopback device"
    if facts.kind in _NEVER_KINDS:
        return f"it is a {facts.kind} device"
    if facts.alias.startswith(Marks.ALIAS_PREFIX):
        return "it belongs to another port"
    return ""


def _why_in_use(facts: DeviceFacts) -> str:
    if facts.addresses:
        return f"it has the address {facts.addresses[0]}"
    if facts.default_route:
        return "a default route leads over it"
    if facts.name in facts.foreign_ovs_ports:
        return "it is a port of an OVS bridge that is not ours"
    if facts.master_kind not in (None, "openvswitch"):
        return f"it is in a {facts.master_kind} device"
    if facts.carries:
        return f"it carries the device {facts.carries}"
    return ""


def _matches(path: str, glob: str) -> bool:
    parts, patterns = path.split("/"), glob.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
