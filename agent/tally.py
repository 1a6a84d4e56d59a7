"""What conntrack could not do as it should: packets of twins that excluded each other, ports with too many connections.

Both are limits that docs/pipeline.md tells. Twins that use the same ports to the same shared server have one 5-tuple
there: the second is refused until the first connection is gone, and counted by the flows that drop its packets. A zone
at its limit forgets nothing and drops nothing: what comes beyond goes untracked, unpinned and judged packet by packet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

from agent.conntrack import collision_flows
from agent.core import Condition
from agent.drivers.zone import Usage
from agent.inputs import Inputs

EVERY = 10  # seconds between looks
LASTS = 60.0  # seconds that the last collision is shown as a condition

_COLLISIONS = frozenset(flow.cookie for flow in collision_flows())


class Tally:
    """`packets` tells the packets of flows by cookie, `usage` how full zones are. Look again and again."""

    def __init__(
        self,
        inputs: Inputs,
        *,
        packets: Callable[[], Awaitable[Mapping[int, tuple[int, int]]]],
        usage: Callable[[], Awaitable[Mapping[int, Usage]]],
    ) -> None:
        self.collisions = 0  # packets, since the start of this process
        self.full: dict[int, Usage] = {}  # zones of local ports at their limit, by number
        self._inputs, self._packets, self._usage = inputs, packets, usage
        self._seen: dict[int, int] | None = None  # None: what was counted before is not known
        self._last: float | None = None  # when one was counted

    async def look(self, *, now: float) -> None:
        """Count. Raises DeviceUnavailable; UnixctlError never."""
        found = await self._packets()
        counted = {cookie: found[cookie][0] for cookie in _COLLISIONS & found.keys()}
        if self._seen is not None:
            more = sum(_since(self._seen.get(cookie, 0), count) for cookie, count in counted.items())
            self.collisions += more
            if more:
                self._last = now
        self._seen = counted
        if self._last is not None and now - self._last > LASTS:
            self._last = None
        ours = self._inputs.issued.rows.values()
        usage = await self._usage() if ours else {}
        self.full = {zone: used for zone, used in usage.items() if zone in ours and 0 < used.limit <= used.count}

    def conditions(self) -> Iterator[Condition]:
        """What a person should know of it. Texts stay the same while it lasts."""
        if self._last is not None:
            text = "twins have used the same ports to the same shared server: the second is refused"
            yield Condition("ColorCollision", text, "let clients choose their source ports; see docs/pipeline.md")
        ports = {zone: uid for uid, zone in self._inputs.issued.rows.items()}
        for zone, used in sorted(self.full.items()):
            port = self._inputs.localports.rows.get(ports.get(zone, ""))
            if port is not None:
                text = f"port {port.tenant}/{port.name}: {used.limit} connections; further ones are not remembered"
                yield Condition("ConnectionsFull", text, "raise ct_zone_limit in agent.yaml, or spread the load")


def _since(before: int, now: int) -> int:
    """A flow that was written again counts from 0."""
    return now - before if now >= before else now
