"""Flows that stay for a moment after others have taken over from them.

Packets of tracked ports pass the pipeline in parts, with conntrack in between, and keep what they are in (their routing
domain) from part to part. When a network moves to another domain, one that is between two parts looks its target up in
the old one. The switch checks its cached flows one after the other, so for some milliseconds all packets may go that
way (measured: 1 to 2 of 450 pings were lost). So when all flows of an owner go from one home to another, those of the
old home are deleted when no packet can be on its way there any more. Nobody new gets in: what sets the domain has
changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable
from collections.abc import Set as AbstractSet
from typing import Any

from tealnet.core.delta import Delta

Home = Callable[[Any], Hashable | None]


class Staying:
    """`home(value)`: where packets are looked up by this flow, None: anywhere. `beside(key)`: what is wanted now by
    those who want this, or wanted it last.

    `revalidated()` returns when no packet can take the path of flows that were replaced before the call.
    """

    def __init__(
        self,
        delta: Delta[Hashable, Any],
        *,
        home: Home,
        beside: Callable[[Hashable], Iterable[Any]],
        revalidated: Callable[[], Awaitable[None]],
    ) -> None:
        self._delta, self._home, self._beside, self._revalidated = delta, home, beside, revalidated
        self._kept: dict[Hashable, object] = {}  # the value says since which step; None: it may go
        self._wake = asyncio.Event()

    def keep(self, delete: Collection[Hashable]) -> AbstractSet[Hashable]:
        """Of what is to be deleted: flows whose owner moves to another home, or has just moved."""
        self._kept = {key: step for key, step in self._kept.items() if key in self._delta.to_delete}
        step = object()
        for key in delete:
            others = [] if key in self._kept else list(self._beside(key))
            home = self._home(self._delta.actual.get(key)) if others else None
            if home is not None and home not in (now := {self._home(value) for value in others}) and now - {None}:
                self._kept[key] = step
        return {key for key, since in self._kept.items() if since is not None}

    def written(self) -> None:
        """What takes over is on the switch."""
        if any(since is not None for since in self._kept.values()):
            self._wake.set()

    async def run(self, let_go: Callable[[], None]) -> None:
        """Let go what stays when its time has come, and say so; for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            kept = dict(self._kept)
            await self._revalidated()
            for key, step in kept.items():
                if self._kept.get(key) is step:
                    self._kept[key] = None
            let_go()
