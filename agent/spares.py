"""Spares: links made in advance, that ports take over instead of having their own made (DESIGN 6, "the warm pool").

To make a namespace, a veth pair and its guard and to plug it takes two thirds of an attachment, more where there are
many ports: vswitchd looks at all of them for each one that is new. So the agent keeps some ready. A port that takes one
over gets its namespace renamed, its MAC and addresses set and its flows written, and nothing else. Each costs the
userspace datapath 2 µs per round of polling (measured), so they are few.

Which spare a port has taken is written nowhere: a device of the pool is whose interface it is, by the namespace that it
leads to. There are spares only on a host that has ports of NETNS, and as many again when half of them are taken, once
there is nothing else to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from agent import names
from agent.features.spares import spare_link
from agent.inputs import Inputs
from agent.objects import Link, Marks
from tealnet.core.rows.stream import Attach, LocalPort

REST = 0.1  # seconds without anything to do before new ones are made

Actual = Mapping[Hashable, Any]


class Spares:
    """`there(layer)` says what is on devices, `has(layer, key)` whether a key is there, is to be or is under way,
    `at_rest()` whether nothing is; `made()` hears of new rows.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        size: int,
        there: Callable[[str], Actual],
        has: Callable[[str, Hashable], bool] = lambda layer, key: False,
        at_rest: Callable[[], bool] = lambda: False,
        made: Callable[[], None] = lambda: None,
    ) -> None:
        self._inputs, self._size = inputs, size
        self._there, self._has, self._at_rest, self._made = there, has, at_rest, made
        self._mtu = 0  # of the last port that asked, or of any
        self._wake = asyncio.Event()

    # -- ports

    def take(self, uid: str) -> bool:
        """Have a port that is new here take over a spare, if there is one that fits and it has nothing of its own."""
        port = self._inputs.localports.rows[uid]
        segment = self._inputs.segments.rows.get(port.vni)
        if port.kind is not Attach.NETNS or segment is None:
            return False
        self._mtu = segment.mtu
        if uid in self._inputs.taken.rows or self._has_place(port):
            return False
        device = next(self._ready(segment.mtu), "")
        if device:
            inputs = self._inputs
            number = inputs.issued.rows[device]
            inputs.spares.put(device, None)
            inputs.issued.put(device, None)
            inputs.taken.put(uid, device)
            inputs.issued.put(uid, number)
        return bool(device)

    def _has_place(self, port: LocalPort) -> bool:
        """It shares a namespace, or something of it is there already, or will be: one that is wanted is made as such.

        That is so of a port that came before it was known which numbers are free, and of one that takes the name of
        another which has just gone.
        """
        beside = self._inputs.localports_of_namespace.keys((port.kind, port.tenant, port.where))
        return len(beside) > 1 or self._has("netns", names.namespace(port)) or self._has("link", names.device(port))

    def _ready(self, mtu: int) -> Iterator[str]:
        """Those that are as they are to be, in all layers."""
        links, inputs = self._there("link"), self._inputs
        unguarded = any(row.datapath != "netdev" for row in inputs.this.rows.values())  # there are no guards
        for device in inputs.spares.rows:
            plugged = device in inputs.issued.rows and inputs.ofports.rows.get(device) == inputs.issued.rows[device]
            guarded = unguarded or device in inputs.guarded.rows
            if plugged and guarded and links.get(device) == spare_link(device, mtu=mtu):
                yield device

    def owners(self) -> dict[str, str]:
        """Port uids by the device that they have taken."""
        return {device: uid for uid, device in self._inputs.taken.rows.items()}

    def free(self, uid: str) -> None:
        """Nothing is left of a port: if it comes back, it is as new."""
        self._inputs.taken.put(uid, None)

    def adopt(self, links: Actual) -> None:
        """What a former process has left: spares are spares again, and ports keep what they have taken."""
        inputs = self._inputs
        ports = {
            (names.netns(port), port.interface): port
            for port in inputs.localports.rows.values()
            if port.kind is Attach.NETNS and names.device(port) not in links
        }
        for link in links.values():
            if not isinstance(link, Link) or link.port_uid != Marks.POOL:
                continue
            port = ports.pop((link.netns, link.interface), None)
            if port is not None:
                inputs.taken.put(port.uid, link.device)
            elif link.netns == names.spare_netns(link.device) and link.mtu:
                inputs.spares.put(link.device, link.mtu)
        self.trim()

    # -- how many

    def trim(self) -> None:
        """None where no port could take them."""
        if not self._wanted():
            self._inputs.spares.replace_all({})

    def _wanted(self) -> bool:
        return self._size > 0 and next(self._takers(), None) is not None

    def _takers(self) -> Iterator[LocalPort]:
        return (port for port in self._inputs.localports.rows.values() if port.kind is Attach.NETNS)

    def kick(self) -> None:
        """Things have changed: look whether there are enough."""
        if self.is_low():
            self._wake.set()

    def is_low(self) -> bool:
        """There are too few: new ones will be made as soon as there is nothing else to do."""
        if not self._mtu:
            segments = (self._inputs.segments.rows.get(port.vni) for port in self._takers())
            self._mtu = next((segment.mtu for segment in segments if segment is not None), 0)
        fit = sum(mtu == self._mtu for mtu in self._inputs.spares.rows.values())
        return self._mtu > 0 and fit <= self._size // 2 and self._wanted()

    def count(self) -> int:
        """How many wait for a port."""
        return len(self._inputs.spares.rows)

    async def run(self) -> None:
        """Make new ones when there are few and nothing else is to be done; for ever."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(REST)
            if not self._at_rest():
                continue
            self._wake.clear()
            if self.is_low():
                self._fill()
                self._made()

    def _fill(self) -> None:
        spares = self._inputs.spares
        fit = {device: mtu for device, mtu in spares.rows.items() if mtu == self._mtu}
        fresh = {names.spare_device(): self._mtu for _ in range(self._size - len(fit))}
        spares.replace_all(fit | fresh)
