"""Ending open connections: sockets of local workloads first, then what conntrack remembers.

Sockets are closed (agent/drivers/sockdiag.py) while the connection is still known, so that the reset finds the other
end; one round trip later the connections are flushed, so that UDP and what virtual machines send again is new.
Who calls this has put flows in place that let no more be opened, and stop one direction but for resets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

import structlog

from agent import names
from agent.connections import FLUSHED, Address, Connection
from agent.inputs import Inputs
from agent.objects import NetnsKind
from tealnet.core.rows.stream import LocalPort

log = structlog.get_logger()

Ends = tuple[Address, int, Address, int]
Concerns = Callable[[Connection, LocalPort], bool]

PATIENCE = 3.0  # seconds that an Ack waits for a cut
RETRY = 1.0
ROUND_TRIP = 0.05  # seconds that a reset gets to reach the other end
ROUNDS = 5  # what is closed may have been opened while we looked


class Sockets(Protocol):
    """Who closes sockets in namespaces (`agent.devices.Devices`)."""

    async def close_connections(self, path: str, ends: Collection[Ends]) -> int:
        """Close these TCP connections; returns how many there were. Raises OSError, DeviceUnavailable."""
        ...


class Conntrack(Protocol):
    """The datapath's connections (`agent.devices.Devices`)."""

    async def connections(self, zones: Collection[int] | None = None) -> list[Connection]:
        """Those of these zones at least; None: all. Raises DeviceUnavailable."""
        ...

    async def forget(self, connections: list[Connection]) -> None:
        """Flush these. Raises DeviceUnavailable."""
        ...


class Closing:
    """Ends connections in the zones of local ports."""

    def __init__(self, inputs: Inputs, conntrack: Conntrack, sockets: Sockets) -> None:
        self._inputs, self._conntrack, self._sockets = inputs, conntrack, sockets

    async def close(self, concerns: Concerns, why: str, **words: object) -> None:
        """End those TCP and UDP connections that `concerns` says. Raises DeviceUnavailable, OSError.

        What the kernel does not close (OSError) is forgotten all the same: its other end hears nothing more.
        """
        for _ in range(ROUNDS):
            ports = self._ports()
            rows = [row for row in await self._conntrack.connections(ports.keys()) if row.protocol in FLUSHED]
            found = [row for row in rows if (port := ports.get(row.zone)) is not None and concerns(row, port)]
            if not found:
                return
            closed = 0
            try:
                for path, ends in _by_namespace(found, ports).items():
                    closed += await self._sockets.close_connections(path, ends)
            except OSError:
                await self._conntrack.forget(found)
                raise
            log.info(why, connections=len(found), sockets=closed, **words)
            await asyncio.sleep(ROUND_TRIP)
            await self._conntrack.forget(found)
        log.warning(f"{why}, and go on being opened", **words)

    def _ports(self) -> dict[int, LocalPort]:
        """Local ports by their zone."""
        ports = self._inputs.localports.rows
        return {number: ports[uid] for uid, number in self._inputs.issued.rows.items() if uid in ports}


async def settled(pending: Callable[[], bool], changed: asyncio.Event, *, late: str) -> None:
    """Return when nothing is `pending` any more; an Ack waits for this, but not for ever: then `late` is logged.

    `changed` is set whenever something may have ended.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            while pending():
                changed.clear()
                await changed.wait()
    except TimeoutError:
        log.warning(late)


def _by_namespace(found: Iterable[Connection], ports: Mapping[int, LocalPort]) -> dict[str, set[Ends]]:
    """The ends of TCP connections that are in workload namespaces of this host, as those see them."""
    out: dict[str, set[Ends]] = {}
    for row in found:
        port = ports[row.zone]
        where = names.netns(port)
        if row.protocol != "tcp" or where.kind is NetnsKind.HOST:
            continue
        here, there = (row.source, row.ports[0]), (row.target, row.ports[1])
        out.setdefault(where.path, set()).add((*here, *there) if row.source in port.addresses else (*there, *here))
    return out
