"""What a controller wants to hear of colors: connections, epochs, probes and this host's clock.

Counted only while somebody asks. A report goes at each interval, and at once when weights come into force or are held.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

import structlog

from agent.clock import Offset
from agent.closing import Conntrack
from agent.connections import Connection
from agent.core import Core
from agent.counting import Counted
from agent.cut import opened_to
from agent.drivers.base import DeviceUnavailable
from agent.epochs import Epochs
from agent.inputs import Inputs
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.colors import COLORS, Weights, weights_key
from tealnet.core.rows.stream import LocalPort

log = structlog.get_logger()

FIRST, LAST = 0.2, 5.0  # seconds between reports; conntrack remembers what is over for 10
SHARE = 0.1  # of the time that counting may take
ASIDE = 0.5  # seconds before and after an instant in which nobody counts: vswitchd does nothing else meanwhile


class Probes(Protocol):
    """Who asks (`agent.probe.Prober`)."""

    def want(self, probes: Iterable[pb.Probe]) -> None:
        """Ask these from now on, and no others."""
        ...

    def observed(self) -> list[pb.ProbeObserved]:
        """What came of them so far."""
        ...


class Observer:
    """Reports while asked to."""

    def __init__(
        self,
        core: Core,
        inputs: Inputs,
        epochs: Epochs,
        conntrack: Conntrack,
        probes: Probes,
        *,
        offset: Callable[[], Offset],
    ) -> None:
        self._core, self._inputs, self._epochs = core, inputs, epochs
        self._conntrack, self._probes, self._offset = conntrack, probes, offset
        self._since = time.time_ns()
        self._wanted: pb.Observe | None = None
        self._counted: dict[str, Counted] = {}  # by network uid
        self._at = 0
        self._wake = asyncio.Event()
        epochs.on_applied.append(self.kick)

    def want(self, wanted: pb.Observe | None) -> None:
        """Report this from now on; None: nobody listens."""
        self._wanted = wanted
        self._probes.want(wanted.probes if wanted else ())
        networks = self._networks()
        for uid, counted in self._counted.items():
            if uid not in networks:
                counted.forget()
        self._wake.set()

    def kick(self) -> None:
        """Something may be held that was not, or in force: others wait to hear of it, while counting may take long."""
        if self._wanted is not None:
            self._say(self._wanted)

    async def run(self) -> None:
        """Report for ever."""
        loop = asyncio.get_running_loop()
        due, took = 0.0, 0.0
        while True:
            self._wake.clear()
            wanted = self._wanted
            if wanted is not None:
                left = self._core.until_instant()
                if left < took + ASIDE:
                    due = max(due, loop.time() + max(left, 0.0) + ASIDE)
                elif loop.time() >= due:
                    began = loop.time()
                    await self._count()
                    took = loop.time() - began
                    interval = min(max((wanted.interval_ms or 1000) / 1000, FIRST, took / SHARE), LAST)
                    due = began + interval
                self._say(wanted)
            try:
                async with asyncio.timeout(None if wanted is None else max(due - loop.time(), 0)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _networks(self) -> set[str]:
        return {uid.hex() for uid in self._wanted.networks} if self._wanted else set()

    async def _count(self) -> None:
        wanted = {uid: row for uid, row in self._inputs.weights.rows.items() if uid in self._networks()}
        if not wanted:
            return
        ports = self._senders({row.domain for row in wanted.values()})
        try:
            found = await self._conntrack.connections(ports.keys())
        except DeviceUnavailable as error:
            log.debug("connections not counted", error=str(error))
            return
        self._at, now = time.time_ns(), time.monotonic()
        for uid, row in wanted.items():
            what = opened_to(self._inputs, row, range(1, COLORS + 1))
            mine = [each for each in found if _is_sent_by(each, ports.get(each.zone)) and what.concerns(each)]
            self._counted.setdefault(uid, Counted()).look(mine, now=now)

    def _senders(self, domains: Collection[int]) -> dict[int, LocalPort]:
        """Local ports without a color in these routing domains, by zone."""
        ports, segments = self._inputs.localports.rows, self._inputs.segments.rows
        return {
            number: port
            for uid, number in self._inputs.issued.rows.items()
            if (port := ports.get(uid)) and (segment := segments.get(port.vni))
            if segment.domain in domains and not segment.color
        }

    def _say(self, wanted: pb.Observe) -> None:
        offset = self._offset()
        observed = pb.Observed(
            number=wanted.number,
            at=self._at,
            since=self._since,
            networks=[
                self._network(uid, row)
                for uid, row in sorted(self._inputs.weights.rows.items())
                if uid in self._networks()
            ],
            probes=self._probes.observed(),
            clock=pb.Clock(offset_ns=offset.offset, uncertainty_ns=offset.uncertainty),
        )
        if self._core.sender is not None:
            self._core.sender.send("observed", pb.FromAgent(observed=observed))

    def _network(self, uid: str, row: Weights) -> pb.NetworkObserved:
        epoch, counted = self._epochs.in_force.get(uid), self._counted.get(uid, Counted())
        out = pb.NetworkObserved(network_uid=bytes.fromhex(uid), armed_epoch=self._core.armed_epoch(weights_key(uid)))
        if epoch is not None:
            out.epoch, out.late = epoch.weights.epoch, epoch.late
            out.committed_at, out.applied_at = epoch.committed_at, epoch.applied_at
        for color, _ in row.colors:
            out.colors.add(
                color=color,
                connections=counted.connections[color],
                opened=counted.opened[color],
                failed=counted.failed[color],
            )
        return out


def _is_sent_by(connection: Connection, port: LocalPort | None) -> bool:
    """Seen at its sender, not at a target on the same host."""
    return port is not None and connection.source in port.addresses
