"""Open connections whose rule has gone, where CUT says what becomes of them: ended at the guarded port.

The flows of OPENED (agent/policy/stages.py) already let nothing of them in but resets, and of TCP out what the guarded
end still sends, so that its reset fits. Once they are in force that end is closed, so that both ends notice at once,
and the connection is forgotten: what comes after it is new.

What is to be done follows from what conntrack holds, so a new process does it for what its predecessor has left. Where
nobody says CUT, and no connection remembers it, conntrack is never looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

import structlog

from agent.closing import RETRY, Closing, settled
from agent.connections import Connection
from agent.drivers.base import DeviceUnavailable, Failure
from agent.inputs import Inputs
from agent.policy.compile import let_in
from agent.policy.stages import CODE_OF_LABEL, CODES
from tealnet.core.rows.security import OnChange, Policy, rules_key
from tealnet.core.rows.stream import LocalPort
from tealnet.core.tables import Derived, Graph, Read

log = structlog.get_logger()

NO_RULES = (frozenset[int](), OnChange.KEEP)


@dataclass(frozen=True, slots=True)
class Guarding:
    """Which connections of a guarded port may stay open: those that one of `rules` has let in."""

    identity: int
    rules: frozenset[int]
    on_change: OnChange

    def cuts(self, connection: Connection) -> bool:
        """Whether this connection has to end. As in OPENED: the strictest of what it remembers and what is said now."""
        rule, code = connection.label & 0xFFFFFFFF, connection.label >> CODE_OF_LABEL & 3
        if not rule or rule in self.rules:
            return False
        return self.on_change is OnChange.CUT or code == CODES[OnChange.CUT]


class PolicyCutter:
    """Ends what must end. `failures` are by resource key; `on_done` is called after they changed.

    `waiting()`: resources whose flows are not on the switch yet, None while that is not known; `revalidated()` returns
    when no cached flow of older ones is left.
    """

    def __init__(
        self,
        graph: Graph,
        inputs: Inputs,
        closing: Closing,
        *,
        waiting: Callable[[], Collection[str] | None],
        revalidated: Callable[[], Awaitable[None]],
    ) -> None:
        self.failures: dict[str, Failure] = {}
        self.on_done: Callable[[], None] = lambda: None
        self._inputs, self._closing = inputs, closing
        self._waiting, self._revalidated = waiting, revalidated
        self._wanted = _declare(graph, inputs)
        self._wanted.watch_changes()
        self._todo: set[str] = set()  # port uids whose connections have to be looked at
        self._done: dict[str, Guarding] = {}  # … as it was when their connections were in order
        self._adopted: frozenset[str] | None = None  # ports that may have connections of a former process
        self._remembered = True  # connections may remember CUT
        self._wake, self._changed = asyncio.Event(), asyncio.Event()

    def kick(self) -> None:
        """Rules or ports may have changed, or come into force."""
        self._note()
        if self._todo:
            self._wake.set()

    def pending(self) -> bool:
        """Whether rules that are on the switch end connections that have not been ended yet."""
        self._note()
        return bool(self._ready())

    async def settled(self) -> None:
        """Return when nothing is pending, or has failed; an Ack waits for this, but not for ever."""
        late = "connections are still open that a rule has let in which is gone"
        await settled(lambda: self.pending() and not self.failures, self._changed, late=late)

    async def run(self) -> None:
        """Cut for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._note()
            if ready := self._ready():
                await self._settle(ready)
            elif self.failures:  # what could not be closed is not there, or not to be closed, any more
                self._say({})
            if self.failures:
                await asyncio.sleep(RETRY)
                self._wake.set()

    def _note(self) -> None:
        """Take in what has changed; most of it needs no look at any connection."""
        if self._adopted is None:
            if self._waiting() is None:
                return
            self._adopted = frozenset(self._inputs.issued.rows)
        self._todo |= self._wanted.take_changes()
        for uid in list(self._todo):
            row = self._wanted.rows.get(uid)
            if row is None:  # where only its policy is OFF, it may be guarded again
                self._todo.discard(uid)
                if uid not in self._inputs.localports.rows:
                    self._done.pop(uid, None)
            elif not self._must_look(uid, row):
                self._todo.discard(uid)
                self._done[uid] = row

    def _must_look(self, uid: str, new: Guarding) -> bool:
        old, cut = self._done.get(uid), new.on_change is OnChange.CUT
        self._remembered = self._remembered or cut
        if not self._remembered:
            return False
        if old is None:
            return self._adopted is None or uid in self._adopted
        return bool(old.rules - new.rules) or (cut and old.on_change is not OnChange.CUT)

    def _ready(self) -> dict[str, Guarding]:
        """What has to be looked at, and is on the switch."""
        waiting = self._waiting() if self._todo else None
        if waiting is None:
            return {}
        wanted = {uid: self._wanted.rows[uid] for uid in self._todo if uid in self._wanted.rows}
        return {uid: row for uid, row in wanted.items() if not any(key in waiting for key in _resources(uid, row))}

    async def _settle(self, ready: dict[str, Guarding]) -> None:
        failures: dict[str, Failure] = {}
        try:
            await self._revalidated()  # or a cached flow could let in what an older rule allows
            await self._cut(ready)
        except (DeviceUnavailable, OSError) as error:
            failure = Failure("NotClosed", f"connections of a rule that has gone: {error}")
            failures = {rules_key(row.identity): failure for row in ready.values()}
        else:
            self._done |= ready
            self._todo -= {uid for uid, row in ready.items() if self._wanted.rows.get(uid) == row}
        self._say(failures)

    def _say(self, failures: dict[str, Failure]) -> None:
        """What is now not as it should be."""
        for key in failures.keys() - self.failures.keys():
            log.warning("connections not closed", rules=key, error=failures[key].text)
        self.failures = failures
        self._changed.set()
        self.on_done()

    async def _cut(self, ports: dict[str, Guarding]) -> None:
        code, remembered = CODES[OnChange.CUT], self._is_said()

        def concerns(row: Connection, port: LocalPort) -> bool:
            nonlocal remembered
            remembered = remembered or row.label >> CODE_OF_LABEL & 3 == code
            guarding = ports.get(port.uid)
            return guarding is not None and guarding.cuts(row)

        await self._closing.close(concerns, "connections of a rule that has gone are cut")
        self._remembered = remembered or self._is_said()

    def _is_said(self) -> bool:
        """Whether any rules say CUT."""
        return any(row.on_change is OnChange.CUT for row in self._wanted.rows.values())


def _resources(uid: str, row: Guarding) -> tuple[str, ...]:
    return rules_key(row.identity), f"localport/{uid}", f"endpoint/{uid}"


def _declare(graph: Graph, inputs: Inputs) -> Derived[str, Guarding]:
    """Guarding by port uid."""

    def there(read: Read, identity: int) -> tuple[frozenset[int], OnChange] | None:
        rules = read.get(inputs.rules, identity)
        return (frozenset(let_in(rules)), rules.on_change) if rules else None

    rules_there = graph.derive(inputs.rules, there)

    def guarding(read: Read, uid: str) -> Guarding | None:
        port = read.get(inputs.localports, uid)
        if port is None or port.policy is not Policy.ENFORCE:
            return None
        return Guarding(port.identity, *(read.get(rules_there, port.identity) or NO_RULES))

    return graph.derive(inputs.localports, guarding)
