"""The drivers of this host, put together: one per layer, and what makes a layer read back."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import structlog

from agent.connections import Connection
from agent.desired import PlaceOf
from agent.drivers.address import AddressDriver
from agent.drivers.allow import Allowed, PlacementRefused
from agent.drivers.base import DeviceUnavailable, Driver
from agent.drivers.guard import GuardDriver
from agent.drivers.kernel import NetnsMissing
from agent.drivers.link import LinkDriver
from agent.drivers.netlinkevents import NetlinkEvents
from agent.drivers.netns import NetnsDriver
from agent.drivers.nssocket import Speaks, open_inside
from agent.drivers.nsthread import NetnsThread
from agent.drivers.openflow import FlowDriver
from agent.drivers.openflow_session import RefusedError
from agent.drivers.ovsdb import OvsdbDriver
from agent.drivers.plug import PlugDriver
from agent.drivers.sockdiag import Ends, close_connections
from agent.drivers.unixctl import UnixctlError, unixctl
from agent.drivers.vswitchd import control_socket
from agent.drivers.zone import Usage, ZoneDriver
from agent.era import era
from agent.objects import Link, NetnsKind
from agent.openflow.flow import Flow
from agent.pipeline import PULSE
from agent.reconcile import Actual, Reconciler
from agent.settings import Settings

log = structlog.get_logger()

# Milliseconds. An Ack of anything that was removed waits for the revalidators, which at rest look that seldom.
REVALIDATE_WITHIN = "100"
# Threads that look through what is cached after a change, on `netdev`: one for each processor, up to so many. By itself
# Open vSwitch takes a quarter: the rest is for upcalls, which `netdev` without PMD threads does in its main loop.
REVALIDATORS = 4
# Open vSwitch's own devices, one for each type of datapath.
OVS_DEVICES = frozenset({"ovs-netdev", "ovs-system"})
KERNEL_MODULE = "/sys/module/openvswitch"


def flow_place(key: Hashable, value: Any) -> Hashable:
    """Only one flow can have a match in a table at a priority, whatever its actions and so its key."""
    return (value.table, value.priority, value.match) if isinstance(value, Flow) else key


def link_place(key: Hashable, value: Any) -> Hashable:
    """Only one link can lead to an interface of a namespace. No attachment can name the device of a pair of ours."""
    inside = isinstance(value, Link) and value.netns.kind is not NetnsKind.HOST
    return (value.netns.path, value.interface) if inside else key


def link_stands(wanted: Any, there: Any) -> bool:
    """Whether a device need not be made anew to be as it is wanted: what was put on it stays on it."""
    return isinstance(wanted, Link) and isinstance(there, Link) and not wanted.is_made_anew(there)


def namespaces_in_use(actual: Mapping[str, Actual]) -> set[Hashable]:
    """Names of our namespaces that links of ours are in."""
    places = [link.netns for link in actual["link"].values() if isinstance(link, Link)]
    return {os.path.basename(netns.path) for netns in places if netns.kind is NetnsKind.OURS}


def find_datapath(setting: str) -> str:
    """The datapath to use: for `auto` the kernel's where its module is loaded, else the userspace one."""
    if setting != "auto":
        return setting
    return "system" if os.path.exists(KERNEL_MODULE) else "netdev"


def revalidators() -> int:
    """How many `netdev` is to have on this machine; 0: as many as Open vSwitch takes by itself."""
    processors = os.cpu_count() or 1
    wanted = min(processors, REVALIDATORS)
    return wanted if processors // 4 + 1 < wanted else 0


class Devices:
    """All drivers. `run` keeps their connections, `follow` has layers read back when something has changed.

    `issued`: see `ZoneDriver`.
    """

    def __init__(self, settings: Settings, *, datapath: str, issued: Callable[[], Collection[int]]) -> None:
        self.run_dir = run_dir = str(settings.ovs_run_dir)
        self.ovsdb = OvsdbDriver(settings.ovsdb, run_dir=run_dir)
        self.flow = FlowDriver(
            f"{run_dir}/{settings.bridge}.mgmt",
            run_dir=run_dir,
            pulse=PULSE,
            era=era() if datapath == "netdev" else None,
        )
        self.flow.refusal = self.ovsdb.refusal
        self._thread = NetnsThread()
        self._netns, self._guard = NetnsDriver(self._thread), GuardDriver(self._thread)
        self._address = AddressDriver(self._thread)
        self._link = LinkDriver(
            self._thread,
            datapath_type=datapath,
            allowed=Allowed(
                netns=settings.allow_netns,
                devices=settings.allow_device,
                never=OVS_DEVICES | {settings.bridge, settings.tunnel, settings.uplink, settings.underlay_bridge},
            ),
            foreign_ovs_ports=self._foreign_ports,
        )
        self._events = NetlinkEvents(
            self._thread, self._changed, netns=self._netns, link=self._link, guard=self._guard, address=self._address
        )
        self.zone = ZoneDriver(self.ovsdb, run_dir=run_dir, datapath=datapath, issued=issued, forget=self._forget_zones)
        # The kernel's datapath notices by itself that a device was made again.
        self._plug = PlugDriver(self.ovsdb, self._thread) if datapath == "netdev" else None
        self.drivers: Mapping[str, Driver[Any, Any]] = {
            "netns": self._netns,
            "link": self._link,
            "guard": self._guard,
            "ovsdb": self._plug or self.ovsdb,
            "address": self._address,
            "zone": self.zone,
            "flow": self.flow,
        }
        self.places: Mapping[str, PlaceOf] = {"link": link_place, "flow": flow_place}
        self.in_use = {"netns": namespaces_in_use}
        self.on_underlay: Callable[[], None] = lambda: None
        self.on_ovs: Callable[[], None] = lambda: None  # OVSDB has changed, or vswitchd has started
        self._reconciler: Reconciler | None = None

    def start(self, reconciler: Reconciler) -> None:
        """Start the namespace thread: before anything is read or applied."""
        self._reconciler = reconciler
        self._thread.start(self._events)

    def close(self) -> None:
        """End the namespace thread when it has done what it was told; devices stay as they are."""
        self._thread.close()

    async def run(self) -> None:
        """Stay connected for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.ovsdb.run(), name="ovsdb")
            tasks.create_task(self.flow.run(), name="openflow")
            tasks.create_task(self._events.run(), name="netlink-events")

    async def connections(self, zones: Collection[int] | None = None) -> list[Connection]:
        """Connections that the datapath's conntrack knows in these zones, or at all. Raises DeviceUnavailable."""
        try:
            return await self.zone.connections(zones)
        except UnixctlError as error:
            raise DeviceUnavailable(f"connections not told: {error}") from error

    async def usage(self) -> Mapping[int, Usage]:
        """How full conntrack zones are, by number. Raises DeviceUnavailable."""
        return await self.zone.usage()

    async def forget(self, connections: Sequence[Connection]) -> None:
        """Have conntrack forget these TCP and UDP connections. Raises DeviceUnavailable."""
        try:
            await self.flow.forget(connections)
        except RefusedError as error:
            raise DeviceUnavailable(f"connections not forgotten: {error}") from error

    async def close_connections(self, path: str, ends: Collection[Ends]) -> int:
        """Close TCP connections of a workload namespace; returns how many there were."""
        return await self._thread.run(partial(close_connections, path=path, wanted=ends))

    async def open_inside(self, path: str, *, speaks: Speaks, source: IPv4Address | IPv6Address) -> socket.socket:
        """A socket in a workload namespace. Raises OSError, DeviceUnavailable (also: no such namespace)."""
        try:
            return await self._thread.run(partial(open_inside, path=path, speaks=speaks, source=source))
        except (NetnsMissing, PlacementRefused) as error:
            raise DeviceUnavailable(str(error)) from error

    def _foreign_ports(self) -> Collection[str] | None:
        facts = self.ovsdb.facts()
        return facts.foreign_ports if facts.connections else None

    async def release(self, devices: Collection[str]) -> None:
        """Return when Open vSwitch holds no devices of these names: they are about to be made. See `PlugDriver`."""
        if self._plug is not None and await self._plug.release(devices) and self._reconciler is not None:
            self._reconciler.reread("ovsdb")

    def made(self, devices: Collection[str] | None) -> None:
        """These devices (None: any) may have been made again: are they still plugged?"""
        if self._plug is not None and self._reconciler is not None:
            self._plug.doubt(devices)
            self._reconciler.reread("ovsdb")

    def _changed(self, layer: str, key: str | None) -> None:
        """A driver found something that is not as it knew it."""
        if layer == "link":
            self.made(None if key is None else {key})
        if layer == "underlay":
            self.on_underlay()
        elif self._reconciler is not None and key is None:
            self._reconciler.reread(layer)
        elif self._reconciler is not None:
            self._reconciler.reread_key(layer, key)

    async def ovs_version(self) -> str:
        """The version of Open vSwitch; OVSDB says it only if the start scripts have put it there."""
        if version := self.ovsdb.facts().ovs_version:
            return version
        try:
            return (await unixctl(control_socket(self.run_dir), "version")).split()[-1]  # … (Open vSwitch) 3.1.0
        except (DeviceUnavailable, UnixctlError, OSError, ValueError, IndexError):
            return ""

    async def follow(self, reconciler: Reconciler) -> None:
        """Tell the reconciler what to read back, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_ovsdb(reconciler), name="follow-ovsdb")
            tasks.create_task(self._follow_flows(reconciler), name="follow-flows")

    async def _follow_ovsdb(self, reconciler: Reconciler) -> None:
        last, last_zones, connections = None, None, 0
        async for facts in self.ovsdb.changes():
            if facts.connected and facts.connections != connections:
                connections = facts.connections
                await self._set_defaults()
            parties = (facts.connected, facts.connections, facts.vswitchd_starts)
            seen, zones = (*parties, facts.generation), (*parties, facts.zones)
            if zones != last_zones:  # not with each port that comes: to look is to ask vswitchd
                last_zones = zones
                reconciler.reread("zone")
            if seen != last:
                last = seen
                reconciler.reread("ovsdb")
                self.on_ovs()

    async def _set_defaults(self) -> None:
        with suppress(DeviceUnavailable):  # it comes back, and so do we
            await self.ovsdb.default("max-revalidator", REVALIDATE_WITHIN)
            if self._plug is not None and (wanted := revalidators()):
                await self.ovsdb.default("n-revalidator-threads", str(wanted))

    async def _follow_flows(self, reconciler: Reconciler) -> None:
        last = None
        async for facts in self.flow.changes():
            seen = (facts.connections, facts.generation)
            if facts.connected and seen != last:
                last = seen
                reconciler.reread("flow")

    async def flush_zones(self, zones: Collection[int]) -> None:
        """Empty conntrack zones. Raises DeviceUnavailable."""
        try:
            await self.flow.flush_zones(zones)
        except RefusedError as error:
            raise DeviceUnavailable(f"zones not flushed: {error}") from error

    async def _forget_zones(self, zones: Collection[int]) -> None:
        await self.revalidated()  # or a cached flow could fill them again
        await self.flush_zones(zones)

    async def revalidated(self) -> None:
        """Return when the datapath has caught up with the flows. Raises DeviceUnavailable."""
        try:
            await self.flow.revalidated()
        except UnixctlError as error:
            raise DeviceUnavailable(f"no revalidation: {error}") from error
