"""When is a host LOST? Counted only while we can tell (A19). Pure: time and sights are given.

A paused store ends every lease at once; then it is us, not the hosts. So time counts only in ticks at which the store
was healthy, and when many hosts vanish together none of them is counted until it has been seen again.
"""

from __future__ import annotations

from collections.abc import Iterable

WINDOW = 10.0  # seconds within which vanishing counts as together
FEW, SHARE = 3, 0.2


class Liveness:
    """One term's view. `tick` is called about once a second."""

    def __init__(self, lost_after: float) -> None:
        self.lost_after = lost_after
        self.excused: set[str] = set()  # vanished together with many others
        self._absent: dict[str, float] = {}  # host → seconds it was absent in healthy ticks
        self._vanished: dict[str, float] = {}  # host → when
        self._seen: set[str] = set()

    def tick(self, now: float, *, elapsed: float, present: Iterable[str], known: Iterable[str]) -> set[str]:
        """One healthy tick: hosts in session and all that were ever seen; returns those that are lost now."""
        here, hosts = set(present), set(known)
        gone = self._seen - here
        self._seen = here
        self._vanished = {h: at for h, at in self._vanished.items() if now - at <= WINDOW and h not in here}
        self._vanished.update(dict.fromkeys(gone, now))
        self.excused -= here
        self.excused &= hosts
        if len(self._vanished) > max(FEW, SHARE * len(hosts)):
            self.excused |= self._vanished.keys()
        absent = hosts - here - self.excused
        self._absent = {h: self._absent.get(h, 0.0) + elapsed for h in absent}
        return {h for h, seconds in self._absent.items() if seconds >= self.lost_after}

    def unhealthy(self) -> None:
        """A tick at which the store was silent: nothing is counted, and who is gone afterwards vanished with us."""
        self._vanished.clear()
