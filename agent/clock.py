"""How far this host's clock is ahead of a controller replica's, from pings that come back (as NTP does; RFC 5905)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

SAMPLES = 16  # pings of the last 8 seconds


@dataclass(frozen=True, slots=True)
class Offset:
    """Nanoseconds that our clock is ahead, and by how much that may be wrong; 0 uncertainty: not known yet."""

    offset: int = 0
    uncertainty: int = 0


class Instants:
    """Unix time in ns that does not jump while something waits for an instant: `holds` says whether anything does.

    An instant is of the near future. Who sets the clock back by an hour meanwhile does not put it off by an hour, and
    who sets it forward does not bring it about.
    """

    def __init__(self, wall: Callable[[], int] = time.time_ns, steady: Callable[[], int] = time.monotonic_ns) -> None:
        self.holds = False
        self._wall, self._steady = wall, steady
        self._ahead = 0  # of the steady clock, when nothing waited last

    def now(self) -> int:
        """Now."""
        steady = self._steady()
        if not self.holds:
            self._ahead = self._wall() - steady
        return steady + self._ahead


class Clock:
    """Of one session: each replica has a clock of its own."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int]] = deque(maxlen=SAMPLES)  # (round trip, offset)

    def heard(self, *, sent: int, received: int, answered: int, now: int) -> None:
        """We sent a ping at `sent`, it came at `received`, an answer left at `answered` and came `now`.

        `sent` and `now` are by our clock, the others by the replica's; all in Unix ns.
        """
        round_trip = (now - sent) - (answered - received)
        if round_trip > 0:
            self._samples.append((round_trip, ((sent - received) + (now - answered)) // 2))

    def offset(self) -> Offset:
        """From the exchange with the least delay of late."""
        if not self._samples:
            return Offset()
        round_trip, offset = min(self._samples)
        return Offset(offset, max(round_trip // 2, 1))
