"""Connections to the colors of networks, counted from look to look.

A connection is counted as opened when it is first seen, and as failed when it was refused or nobody took it in time;
TCP only. Pure: connections as conntrack told them and the time in, numbers out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.connections import OPEN, OPENING, Connection
from agent.conntrack import ANSWERED

NO_ANSWER = 3.0  # seconds after which a connection that nobody has taken counts as failed
REFUSED = frozenset({"TIME_WAIT", "CLOSE", "CLOSED"})  # a reset; without one it would have been answered before


class Key(NamedTuple):
    """Which connection."""

    zone: int
    ends: tuple[object, object, tuple[int, int]]


@dataclass(slots=True)
class _Seen:
    color: int
    since: float
    over: bool = False
    failed: bool = False


@dataclass(slots=True)
class Counted:
    """Of one network, by color. `opened` and `failed` only ever grow."""

    connections: Counter[int] = field(default_factory=Counter)
    opened: Counter[int] = field(default_factory=Counter)
    failed: Counter[int] = field(default_factory=Counter)
    _seen: dict[Key, _Seen] | None = None  # None: what is there is not known, so nothing of it is new

    def forget(self) -> None:
        """There will be no look for a while: what is there at the next one is not new."""
        self._seen = None

    def look(self, rows: Iterable[Connection], *, now: float) -> None:
        """These are all connections of senders without color to the network now."""
        before, self._seen = self._seen, {}
        self.connections = Counter()
        for row in rows:
            color = row.mark & 0xFF
            if row.protocol != "tcp":
                self.connections[color] += 1
                continue
            self.connections[color] += row.state in OPEN
            key = Key(row.zone, (row.source, row.target, row.ports))
            self._seen[key] = self._judge(row, before, key, now)

    def _judge(self, row: Connection, before: dict[Key, _Seen] | None, key: Key, now: float) -> _Seen:
        active = row.state in OPENING or row.state in OPEN
        seen = before.get(key) if before is not None else None
        if seen is None or (seen.over and active):  # its ports may have been used again
            seen = _Seen(row.mark & 0xFF, now)
            if before is None:
                seen.failed = True  # whatever becomes of it: it was not counted as opened
            else:
                self.opened[seen.color] += 1
        seen.over = not active
        if not seen.failed and not row.mark & ANSWERED:
            late = row.state in OPENING and now - seen.since >= NO_ANSWER
            if late or row.state in REFUSED:
                seen.failed = True
                self.failed[seen.color] += 1
        return seen
