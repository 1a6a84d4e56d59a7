"""Devices of others that ports plug as they are (attachment DEVICE)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from ipaddress import ip_interface

from agent.drivers import allow, rtnetlink
from agent.drivers.allow import Allowed, DeviceFacts, PlacementRefused
from agent.drivers.kernel import Kernel
from agent.drivers.rtnetlink import LOOPBACK, LinkInfo
from agent.objects import Link


class Adopted:
    """The devices that have been plugged. We set their MTU; they are never made and never deleted."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._links: dict[str, Link] = {}

    def read(self, kernel: Kernel, foreign: Collection[str] | None) -> dict[str, Link]:
        """Those that are there; one that would be refused now has a flaw."""
        found: dict[str, Link] = {}
        for name, link in self._links.items():
            info = rtnetlink.link(kernel.host, name)
            if info is None:
                continue
            found[name] = replace(link, mtu=info.mtu)
            try:
                allow.device(_facts(kernel, info, foreign or ()), self._allowed)
            except PlacementRefused as refused:
                found[name] = replace(found[name], flaw=refused.text)
        return found

    def write(self, kernel: Kernel, want: Link, foreign: Collection[str] | None) -> Link:
        """Check a device and set its MTU. Raises PlacementRefused, OSError."""
        allow.device(DeviceFacts(want.device), self._allowed)  # say nothing of devices that are not in the list
        if foreign is None:
            raise PlacementRefused("OvsUnknown", "Open vSwitch does not answer: whose port it is?", retriable=True)
        info = rtnetlink.link(kernel.host, want.device)
        if info is None:
            raise PlacementRefused("DeviceMissing", f"{want.device}: no such device", retriable=True)
        allow.device(_facts(kernel, info, foreign), self._allowed)
        if info.mtu != want.mtu:
            kernel.host.check(rtnetlink.set_link(info.index, mtu=want.mtu))
        self._links[want.device] = want
        return want

    def drop(self, name: str) -> None:
        """It is not ours to plug any more."""
        self._links.pop(name, None)


def _facts(kernel: Kernel, info: LinkInfo, foreign: Collection[str]) -> DeviceFacts:
    found = [item.address for item in rtnetlink.addresses(kernel.host, info.index)]
    master = rtnetlink.link_at(kernel.host, info.master) if info.master else None
    above = (
        other.name
        for other in rtnetlink.links(kernel.host)
        if other.peer == info.index and other.peer_nsid is None and other.kind != "veth" and other.index != info.index
    )
    return DeviceFacts(
        name=info.name,
        kind=info.kind,
        loopback=bool(info.flags & LOOPBACK),
        alias=info.alias,
        addresses=tuple(a for a in found if not (ip_interface(a).version == 6 and ip_interface(a).is_link_local)),
        default_route=any(route.prefix.endswith("/0") for route in rtnetlink.routes(kernel.host, info.index)),
        master_kind=(master.kind if master else "unknown") if info.master else None,
        carries=next(above, ""),
        foreign_ovs_ports=foreign,
    )
