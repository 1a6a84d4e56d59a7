"""Layer ovsdb on a userspace datapath: ports whose device Open vSwitch really holds.

vswitchd opens a device once. When the device is deleted and made again under its name, the port looks as before, even
its ifindex is the new one, but not one packet passes until the port has been deleted and added again, in two
transactions (measured on 3.1). What tells is the device's own flag IFF_PROMISC: vswitchd sets it on each device that it
opens. (A capture does not: it asks for the mode, but does not set the flag.)

When it lets go of a device, it writes back by name the flags that it remembers: a new device of that name goes down. So
a device is released before it is made again; what is found not to be held has been made by others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace

import structlog

from agent.drivers import rtnetlink
from agent.drivers.base import Failure
from agent.drivers.kernel import Kernel
from agent.drivers.nsthread import NetnsThread
from agent.drivers.ovsdb import OvsdbDriver
from agent.drivers.ovsdb_rows import Key, Value
from agent.objects import OvsPort

log = structlog.get_logger()

IFF_PROMISC = 0x100  # linux/if.h
ALL_EVERY = 60.0  # seconds


class PlugDriver:
    """See `agent.drivers.base.Driver`. `doubt` names devices that may have been made again."""

    def __init__(self, ovsdb: OvsdbDriver, thread: NetnsThread) -> None:
        self._ovsdb, self._thread = ovsdb, thread
        self._doubted: set[str] = set()
        self._all_due = 0.0  # when all devices are to be looked at again, loop time
        self._loose: set[str] = set()  # devices that vswitchd does not hold although they are plugged

    def doubt(self, devices: Collection[str] | None) -> None:
        """Look at these devices (None: at all) with the next read."""
        if devices is None:
            self._all_due = 0.0
        else:
            self._doubted |= set(devices)

    async def read(self) -> dict[Key, Value]:
        """As OVSDB says; a port that does not hold its device has ofport 0, which nobody wants."""
        values = dict(await self._ovsdb.read())
        ports = {value.device: key for key, value in values.items() if isinstance(value, OvsPort)}
        now = asyncio.get_running_loop().time()
        doubted = set(ports) if self._all_due <= now else self._doubted & ports.keys()
        self._all_due = now + ALL_EVERY if self._all_due <= now else self._all_due
        self._doubted = set()
        if doubted:
            self._loose = (self._loose - doubted) | await self._not_held(doubted)
        self._loose &= ports.keys()
        for device in self._loose:
            value = values[ports[device]]
            assert isinstance(value, OvsPort)
            values[ports[device]] = replace(value, ofport=0)
        return values

    async def apply(self, write: Mapping[Key, Value], delete: Collection[Key]) -> Mapping[Key, Failure]:
        """As `OvsdbDriver.apply`; ports that do not hold their device are unplugged first."""
        loose = {key for key, value in write.items() if isinstance(value, OvsPort) and value.device in self._loose}
        if loose:
            log.info("plugging devices again that were made again", count=len(loose))
            await self.release({key[1] for key in loose})
        return await self._ovsdb.apply(write, delete)

    async def release(self, devices: Collection[str]) -> bool:
        """Unplug what is plugged of these; returns, when vswitchd holds none of them, whether anything was.

        In one step with what follows vswitchd would notice nothing. Raises DeviceUnavailable.
        """
        values = (await self._ovsdb.read()).items()
        plugged = {key for key, value in values if isinstance(value, OvsPort) and value.device in devices}
        if plugged:
            await self._ovsdb.apply({}, plugged)
        await self._ovsdb.let_go(devices)
        self._loose -= set(devices)
        return bool(plugged)

    async def _not_held(self, devices: Collection[str]) -> set[str]:
        def job(kernel: Kernel) -> set[str]:
            found = {device: rtnetlink.link(kernel.host, device) for device in devices}
            return {device for device, link in found.items() if link is not None and not link.flags & IFF_PROMISC}

        return await self._thread.run(job)
