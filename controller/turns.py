"""Whose unit is cut next: a change of weights at once, all others one per round of the event loop (A24).

A change of a large scope makes hundreds of sessions busy at the same moment. Cutting them all in one round would keep a
change of weights, which the next round would bring, waiting for as long as that takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable


class Turns:
    """Turns of one event loop, first come, first served. They are passed on for as long as somebody waits."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, asyncio.Future[None]] = {}
        self._passing = False

    async def take(self, who: Hashable) -> None:
        """Wait for one's turn, or for `hurry`; the first of a round has it at once. Nobody may wait twice at a time."""
        loop = asyncio.get_running_loop()
        if not self._passing:
            self._passing = True
            loop.call_soon(self._pass)
            return
        future = self._waiting[who] = loop.create_future()
        try:
            await future
        finally:
            self._waiting.pop(who, None)

    def hurry(self, who: Hashable) -> None:
        """If this one waits, its turn is now."""
        future = self._waiting.pop(who, None)
        if future is not None and not future.done():
            future.set_result(None)

    def _pass(self) -> None:
        self._passing = bool(self._waiting)
        if self._passing:
            self.hurry(next(iter(self._waiting)))
            asyncio.get_running_loop().call_soon(self._pass)
