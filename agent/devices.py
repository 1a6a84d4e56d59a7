"""The drivers of this host, put together: one per layer, and what makes a layer read back."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Hashable, Mapping
from typing import Any

import structlog

from agent.desired import PlaceOf
from agent.drivers.base import DeviceUnavailable, Driver
from agent.drivers.openflow import FlowDriver
from agent.drivers.openflow_session import RefusedError
from agent.drivers.ovsdb import OvsdbDriver
from agent.drivers.unixctl import UnixctlError
from agent.openflow.flow import Flow
from agent.reconcile import Reconciler
from agent.settings import Settings

log = structlog.get_logger()


def flow_place(key: Hashable, value: Any) -> Hashable:
    """Only one flow can have a match in a table at a priority, whatever its actions and so its key."""
    return (value.table, value.priority, value.match) if isinstance(value, Flow) else key


class Devices:
    """All drivers. `run` keeps their connections, `follow` has layers read back when something has changed."""

    def __init__(self, settings: Settings) -> None:
        self.run_dir = run_dir = str(settings.ovs_run_dir)
        self.ovsdb = OvsdbDriver(settings.ovsdb, run_dir=run_dir)
        self.flow = FlowDriver(f"{run_dir}/{settings.bridge}.mgmt", run_dir=run_dir)
        self.drivers: Mapping[str, Driver[Any, Any]] = {"ovsdb": self.ovsdb, "flow": self.flow}
        self.places: Mapping[str, PlaceOf] = {"flow": flow_place}

    async def run(self) -> None:
        """Stay connected for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.ovsdb.run(), name="ovsdb")
            tasks.create_task(self.flow.run(), name="openflow")

    async def follow(self, reconciler: Reconciler) -> None:
        """Tell the reconciler what to read back, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_ovsdb(reconciler), name="follow-ovsdb")
            tasks.create_task(self._follow_flows(reconciler), name="follow-flows")

    async def _follow_ovsdb(self, reconciler: Reconciler) -> None:
        last = None
        async for facts in self.ovsdb.changes():
            seen = (facts.connected, facts.vswitchd_starts, facts.generation)
            if seen != last:
                last = seen
                reconciler.reread("ovsdb")

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
            for zone in zones:
                await self.flow.flush_zone(zone)
        except RefusedError as error:
            raise DeviceUnavailable(f"zones not flushed: {error}") from error

    async def revalidated(self) -> None:
        """Return when the datapath has caught up with the flows. Raises DeviceUnavailable."""
        try:
            await self.flow.revalidated()
        except UnixctlError as error:
            raise DeviceUnavailable(f"no revalidation: {error}") from error
