"""Which weights are in force on the datapath, and since when.

A change of weights is committed when the switch has answered, and applied when no cached flow of older ones is left:
from then on no new connection takes the old path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Hashable
from dataclasses import dataclass

from agent.desired import Desired
from agent.inputs import Inputs
from agent.pipeline import Feature
from agent.reconcile import FLOW, Reconciler
from tealnet.core.rows.colors import Weights, weights_key

_KIND = "weights/"


@dataclass(frozen=True, slots=True)
class Epoch:
    """Weights in force. Times are Unix time in ns; 0: before this process was started."""

    weights: Weights
    committed_at: int
    applied_at: int
    late: bool  # their instant had passed when they came


class Epochs:
    """Follows the weights of all networks. `in_force` is by network uid; `on_applied` is called after it changed."""

    def __init__(
        self,
        inputs: Inputs,
        desired: Desired,
        reconciler: Reconciler,
        *,
        late: Collection[str],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.in_force: dict[str, Epoch] = {}
        self.on_applied: list[Callable[[], None]] = []
        self._inputs, self._desired, self._reconciler = inputs, desired, reconciler
        self._late, self._clock = late, clock  # `late`: resource keys, a view
        self._seen: dict[str, tuple[Weights, int]] = {}  # … and when they were first seen to differ
        self._committed: dict[str, int] = {}  # by network uid
        self._wake = asyncio.Event()
        reconciler.on_committed = self.committed

    def kick(self) -> None:
        """Something may have come into force."""
        self._wake.set()

    def is_committed(self, uid: str) -> bool:
        """Whether the weights that are wanted now are on the switch."""
        return self._reconciler.in_place(weights_key(uid))

    def committed(self, keys: Collection[Hashable]) -> None:
        """These flows and groups are on the switch (`Reconciler.on_committed`)."""
        now = self._clock()
        for key in keys:
            if not isinstance(key, int) or key >> 48 & 0xFF == Feature.COLORS:
                for resource in self._desired.resources(FLOW, key):
                    if resource.startswith(_KIND):
                        self._committed[resource.removeprefix(_KIND)] = now

    async def run(self, revalidated: Callable[[], Awaitable[None]]) -> None:
        """Follow for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            rows = dict(self._inputs.weights.rows)
            for known in (self.in_force, self._seen, self._committed):
                for uid in known.keys() - rows.keys():
                    del known[uid]
            fresh = [uid for uid, row in rows.items() if self._is_fresh(uid, row)]
            if not fresh:
                continue
            await revalidated()
            now = self._clock()
            for uid in fresh:
                if self._inputs.weights.rows.get(uid) == rows[uid]:
                    self._apply(uid, rows[uid], now)
            for call in self.on_applied:
                call()

    def _is_fresh(self, uid: str, row: Weights) -> bool:
        """Whether a row that is not in force yet is on the switch."""
        known = self.in_force.get(uid)
        if known is not None and known.weights == row:
            return False
        if uid not in self._seen or self._seen[uid][0] != row:
            self._seen[uid] = row, self._clock()
        return self.is_committed(uid)

    def _apply(self, uid: str, row: Weights, now: int) -> None:
        committed = self._committed.get(uid, 0)
        if uid in self.in_force:  # where no flow had to change, it was so when it was seen
            committed = max(committed, self._seen[uid][1])
        self.in_force[uid] = Epoch(
            weights=row,
            committed_at=committed,
            applied_at=now if committed else 0,
            late=weights_key(uid) in self._late,
        )
