"""Facts: what this host reports, as tables that features read, and what must happen beside a change of devices.

    ofports   device → number, once the device is plugged and its conntrack zone is empty
    issued    port uid → OpenFlow port number and conntrack zone; read back from OVS at start
    guarded   device → the guard is in place
    spares    device → MTU, taken: port uid → device: see `agent.spares`

A number is issued here, asked for in OVSDB, recorded there and read back, so it survives this process. It is free again
only when no flow and no conntrack entry can hold its old meaning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Mapping
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Protocol

import structlog

from agent.drivers.base import DeviceUnavailable, Failure
from agent.inputs import Inputs
from agent.objects import Guard, Link, Marks, OvsPort
from agent.spares import Spares

log = structlog.get_logger()

FIRST_NUMBER, LAST_NUMBER = 2, 65000  # 1 is the tunnel; from 0xff00 on OpenFlow has other plans
FLUSH_TRIES = 20
FLUSH_PAUSE = 0.05  # seconds; the OpenFlow connection of a bridge that was just made takes a moment


class NumbersExhausted(Exception):
    """Every OpenFlow port number is taken."""


async def _nothing(devices: Collection[str]) -> None:
    """There is nothing to wait for."""


class OvsView(Protocol):
    """What `OvsdbDriver.facts()` says that is needed here."""

    @property
    def ofports(self) -> Mapping[str, int]:
        """Our ports that have a number, by device."""
        ...

    @property
    def used_ofports(self) -> frozenset[int]:
        """Numbers taken or asked for by anybody."""
        ...


def issue(uid: str, used: Collection[int]) -> int:
    """A free number for a port: the first one from a place that depends on its uid, so that numbers spread."""
    size = LAST_NUMBER - FIRST_NUMBER + 1
    start = int.from_bytes(blake2b(uid.encode(), digest_size=4).digest(), "big")
    for offset in range(size):
        number = FIRST_NUMBER + (start + offset) % size
        if number not in used:
            return number
    raise NumbersExhausted


class Facts:
    """The reconciler's watcher (`agent.reconcile.Watcher`).

    `ovs()` is what OVSDB says now, `flush(zones)` empties conntrack zones, `revalidate()` returns when the datapath has
    caught up with the flows, `release(devices)` when Open vSwitch holds no device of these names; all raise
    DeviceUnavailable. `made(devices)` hears of plugged devices that were written.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        ovs: Callable[[], OvsView],
        flush: Callable[[Collection[int]], Awaitable[None]],
        revalidate: Callable[[], Awaitable[None]],
        release: Callable[[Collection[str]], Awaitable[None]] = _nothing,
        made: Callable[[Collection[str]], None] = lambda devices: None,
        spares: Spares | None = None,
    ) -> None:
        self._inputs = inputs
        self._ovs, self._flush, self._revalidate = ovs, flush, revalidate
        self._release, self._made = release, made
        self._spares = spares or Spares(inputs, size=0, there=lambda layer: {})
        self._ports: dict[str, OvsPort] = {}  # by device: what is plugged
        self._adopted = False  # the numbers of a former process have been read back
        self._anew: set[str] = set()  # devices that are about to be made, in place of former ones of their names
        self._links_adopted = False  # … and whose its links are
        self._empty: set[int] = set()  # zones that hold nothing of a former port, or belong to a port in use
        self._leaving: dict[str, int] = {}  # uid → number, until its zone is flushed
        self._flushing: asyncio.Task[None] | None = None  # of zones of ports that are being made
        self._awaited: dict[str, int] = {}  # device → number that a port which is being plugged may be opened with
        self._wake = asyncio.Event()

    # -- numbers

    def issue(self) -> None:
        """Give a number to each local port and spare that has none. Nothing before the numbers in use are known.

        The zones of new numbers are emptied at once: `prepare` does it where that was not possible.
        """
        if not self._adopted:
            return
        self._spares.trim()
        ports, issued = self._inputs.localports.rows, self._inputs.issued
        missing = sorted((ports.keys() | self._inputs.spares.rows.keys()) - issued.rows.keys())
        missing = [uid for uid in missing if uid not in ports or not self._spares.take(uid)]
        if missing:
            used = {*issued.rows.values(), *self._ovs().used_ofports}
            for uid in missing:
                number = issue(uid, used)
                used.add(number)
                issued.put(uid, number)
            self._flush_early({issued.rows[uid] for uid in missing})
        for uid in self._leaving.keys() & ports.keys():  # it has come back
            del self._leaving[uid]

    def _free(self) -> None:
        """Numbers of ports that are neither wanted nor plugged are on their way out."""
        inputs, plugged = self._inputs, self._plugged_uids()
        for uid, number in inputs.issued.rows.items():
            wanted = uid in inputs.localports.rows or uid in inputs.spares.rows
            if not wanted and uid not in plugged and uid not in self._leaving:
                self._leaving[uid] = number
                self._wake.set()

    def _plugged_uids(self) -> dict[str, OvsPort]:
        """What is plugged, by that for which it has its number: a port, or a spare's device."""
        owners, ports = self._spares.owners(), self._ports.values()
        return {p.port_uid if p.port_uid != Marks.POOL else owners.get(p.device, p.device): p for p in ports}

    async def run(self) -> None:
        """Empty the zones of ports that went, then free their numbers; for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            leaving = dict(self._leaving)
            try:
                await self._revalidate()  # or a cached flow could fill the zone again
                await self._flush(sorted(leaving.values()))
            except DeviceUnavailable:
                await asyncio.sleep(1)
                self._wake.set()
                continue
            for uid, number in leaving.items():
                if self._leaving.get(uid) == number:
                    del self._leaving[uid]
                    self._empty.discard(number)  # flushed again before it is opened: this costs little
                    self._inputs.issued.put(uid, None)
                    self._spares.free(uid)

    # -- beside the reconciler

    async def clear(self, layer: str, write: Mapping[Hashable, Any], there: Mapping[Hashable, Any]) -> None:
        """A device is made when no former one of that name is held any more; what can't be told now, `made` finds."""
        if layer == "link":
            links = {key: value for key, value in write.items() if isinstance(value, Link)}
            again = [link.device for key, link in links.items() if link.is_made_anew(there.get(key))]
            self._anew = set(again)
            if again:
                with suppress(DeviceUnavailable):
                    await self._release(again)
        elif layer == "ovsdb":
            if self._flushing is not None:
                await self._flushing
            ports = [value for value in write.values() if isinstance(value, OvsPort)]
            self._awaited = {port.device: port.ofport for port in ports if port.ofport in self._empty}

    def _flush_early(self, zones: set[int]) -> None:
        zones = zones - self._empty
        if zones and (self._flushing is None or self._flushing.done()):
            self._flushing = asyncio.create_task(self._flush_if_possible(zones), name="flush-zones")

    async def _flush_if_possible(self, zones: set[int]) -> None:
        with suppress(DeviceUnavailable):
            await self._flush(sorted(zones))
            self._empty |= zones

    def plugged(self, device: str, number: int) -> bool:
        """The bridge has a new port, says the bridge itself: sooner than OVSDB. Whether that is a new fact.

        Only of a port that is just being plugged, with the number that was issued for it and an empty zone. What OVSDB
        says in the end is put by `observe`, whatever was put here.
        """
        if self._awaited.get(device) != number:
            return False
        self._inputs.ofports.put(device, number)
        return True

    async def prepare(self, layer: str, write: Mapping[Hashable, Any]) -> Mapping[Hashable, Failure]:
        """Before a new port is known to be plugged, its zone is emptied: it may have been another port's."""
        if layer == "link" and (again := self._anew & write.keys() & self._ports.keys()):
            self._made(again)
        if layer != "ovsdb":
            return {}
        ports = {key: value for key, value in write.items() if isinstance(value, OvsPort)}
        zones = {port.ofport for port in ports.values()} - self._empty
        if not zones:
            return {}
        try:
            await self._flush_soon(sorted(zones))
        except DeviceUnavailable as error:
            failure = Failure("ZoneNotFlushed", str(error))
            return {key: failure for key, port in ports.items() if port.ofport in zones}
        self._empty |= zones
        return {}

    def observe(self, layer: str, actual: Mapping[Hashable, Any]) -> None:
        """What a layer holds now becomes facts."""
        if layer == "guard":
            guards = [guard for guard in actual.values() if isinstance(guard, Guard) and not guard.flaw]
            self._inputs.guarded.replace_all({guard.device: True for guard in guards})
        elif layer == "link" and not self._links_adopted:
            self._links_adopted = True
            self._spares.adopt(actual)
        elif layer == "ovsdb":
            self._awaited = {}
            self._ports = {port.device: port for port in actual.values() if isinstance(port, OvsPort)}
            if not self._adopted and self._links_adopted:
                self._adopt()
            self._inputs.ofports.replace_all({p.device: p.ofport for p in self._ports.values() if p.ofport > 0})
            self._free()
            self.issue()

    async def revalidated(self) -> None:
        """The datapath has caught up with the flows; without vswitchd there is nothing that could lag."""
        try:
            await self._revalidate()
        except DeviceUnavailable as error:
            log.info("no revalidation: vswitchd is away", error=str(error))

    def _adopt(self) -> None:
        """Numbers and zones of ports that a former process has plugged stay theirs, with their connections."""
        numbers = self._ovs().ofports
        for uid, port in self._plugged_uids().items():
            number = port.ofport or numbers.get(port.device, 0)
            if FIRST_NUMBER <= number <= LAST_NUMBER:
                self._inputs.issued.put(uid, number)
                self._empty.add(number)
        self._adopted = True

    async def _flush_soon(self, zones: Iterable[int]) -> None:
        for _ in range(FLUSH_TRIES):
            try:
                await self._flush(list(zones))
                return
            except DeviceUnavailable:
                await asyncio.sleep(FLUSH_PAUSE)
        await self._flush(list(zones))
