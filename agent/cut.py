"""Connections that must leave a color: closed at both ends, then forgotten.

`Weights.closed` says which colors senders without a color have to leave. Once those weights are in force, no new
connection gets there and old ones are denied all but resets. Then every host by itself ends them (agent/closing.py),
and what is sent again goes by weight. Echo requests go by weight at once (agent/features/colors.py).

What is to be done follows from what conntrack holds, so it can be done again at any time: a new process does it once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

import structlog

from agent.closing import RETRY, Closing, settled
from agent.connections import Connection
from agent.drivers.base import DeviceUnavailable, Failure
from agent.epochs import Epochs
from agent.inputs import Inputs
from tealnet.core.rows.colors import Weights, weights_key

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Opened:
    """Connections that senders without a color have opened to some colors of one network."""

    uid: str
    colors: frozenset[int]
    prefixes: tuple[IPv4Network | IPv6Network, ...]  # of the network
    colored: tuple[IPv4Network | IPv6Network, ...]  # of all networks with colors in its domain

    def concerns(self, connection: Connection) -> bool:
        """Whether a sender without a color has opened this connection to one of the colors."""
        return (
            connection.mark & 0xFF in self.colors
            and any(connection.target in prefix for prefix in self.prefixes)
            and not any(connection.source in prefix for prefix in self.colored)
        )


def opened_to(inputs: Inputs, row: Weights, colors: Iterable[int]) -> Opened:
    """Some colors of a network, and how its connections are recognised."""
    domain = [segment for segment in inputs.segments.rows.values() if segment.domain == row.domain]
    own = [segment for segment in domain if segment.network_number == row.network_number]
    return Opened(
        uid=row.network_uid,
        colors=frozenset(colors),
        prefixes=tuple({subnet.prefix for segment in own for subnet in segment.subnets}),
        colored=tuple({subnet.prefix for segment in domain if segment.color for subnet in segment.subnets}),
    )


class Cutter:
    """Closes what must be closed. `failures` are by resource key; `on_done` is called after they changed."""

    def __init__(self, inputs: Inputs, epochs: Epochs, closing: Closing) -> None:
        self.failures: dict[str, Failure] = {}
        self.on_done: Callable[[], None] = lambda: None
        self._inputs, self._epochs, self._closing = inputs, epochs, closing
        self._done: dict[str, frozenset[int]] = {}  # by network uid
        self._wake, self._changed = asyncio.Event(), asyncio.Event()
        epochs.on_applied.append(self._wake.set)

    def pending(self) -> bool:
        """Whether weights that are on the switch close a color that has not been left yet."""
        rows = self._inputs.weights.rows.items()
        return any(self._todo(uid, row.closed) and self._epochs.is_committed(uid) for uid, row in rows)

    async def settled(self) -> None:
        """Return when nothing is pending, or has failed; an Ack waits for this, but not for ever."""
        late = "connections are still open in a color that is closed"
        await settled(lambda: self.pending() and not self.failures, self._changed, late=late)

    async def run(self) -> None:
        """Cut for ever."""
        while True:
            try:
                async with asyncio.timeout(RETRY if self.failures else None):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            rows = self._inputs.weights.rows
            for uid in self._done.keys() - rows.keys():
                del self._done[uid]
                if self.failures.pop(weights_key(uid), None):  # said in an Ack, which nothing else may change
                    self.on_done()
            for uid, epoch in list(self._epochs.in_force.items()):
                if uid not in rows:
                    continue
                closed = frozenset(epoch.weights.closed)
                self._done[uid] = self._done.get(uid, frozenset()) & closed  # open again: to be closed anew
                if todo := self._todo(uid, closed):
                    await self._cut(uid, todo)
                elif self.failures.pop(weights_key(uid), None):  # open again
                    self.on_done()

    def _todo(self, uid: str, closed: Iterable[int]) -> frozenset[int]:
        return frozenset(closed) - self._done.get(uid, frozenset())

    async def _cut(self, uid: str, colors: frozenset[int]) -> None:
        key, row = weights_key(uid), self._inputs.weights.rows.get(uid)
        if row is None:  # gone while another network was cut
            return
        try:
            what = opened_to(self._inputs, row, colors)
            await self._closing.close(lambda row, _: what.concerns(row), "connections leave a color", network=uid)
        except (DeviceUnavailable, OSError) as error:
            if key not in self.failures:
                log.warning("connections not closed", network=uid, colors=sorted(colors), error=str(error))
            self.failures[key] = Failure("NotClosed", f"connections of a closed color: {error}")
        else:
            self.failures.pop(key, None)
            self._done[uid] = self._done.get(uid, frozenset()) | colors
        self._changed.set()
        self.on_done()
