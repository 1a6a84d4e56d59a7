"""Weights that come into force at one instant on this host, whatever the datapath has cached.

A bundle changes the switch's tables at one instant, but packets go by cached flows, which its revalidators bring up to
date one after the other. Of two networks that change in one step, a client would meet the new color of the first one
and a moment later the old color of the second. So before such a step new connections are made to ask the tables, each
by itself: no cached flow serves two of them. Then the weights change, all in one bundle, and when no cached flow of the
old ones is left connections share cached flows again.

It costs an upcall for each new connection meanwhile, and two more bundles; a change of one network does not need it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import structlog

from agent.epochs import Epoch
from agent.inputs import Inputs
from agent.reconcile import Reconciler
from tealnet.core.rows.colors import weights_key

log = structlog.get_logger()

LIMIT = 1.0  # seconds that a change waits for its preparation at most: a switch that is away must not hold it up


class Uncached:
    """Keeps `inputs.uncached`: by network uid, the weights that are about to end or have just ended."""

    def __init__(self, inputs: Inputs, reconciler: Reconciler) -> None:
        self._inputs, self._reconciler = inputs, reconciler
        self._wake = asyncio.Event()

    def kick(self) -> None:
        """More may be on the switch than was."""
        self._wake.set()

    async def prepare(self, weights: Collection[str], *, within: float = LIMIT) -> None:
        """These weights, by resource key, are going to change.

        Return when new connections to their networks ask the tables, if it is several; or after so many seconds.
        """
        if len(weights) < 2 or within <= 0:
            return
        known = {uid: row for uid, row in self._inputs.weights.rows.items() if weights_key(uid) in weights}
        for uid, row in known.items():
            self._inputs.uncached.put(uid, row)
        self._reconciler.settle()
        try:
            async with asyncio.timeout(within):
                while not all(self._reconciler.in_place(weights_key(uid)) for uid in known):
                    self._wake.clear()
                    await self._wake.wait()
                await self._reconciler.revalidated()
        except TimeoutError:
            log.warning("networks change one after the other: the switch is not ready", networks=len(known))

    def applied(self, in_force: Mapping[str, Epoch]) -> None:
        """No cached flow goes by weights older than these: connections may share cached flows again."""
        ended = [
            uid
            for uid, before in self._inputs.uncached.rows.items()
            if uid in in_force and in_force[uid].weights == self._inputs.weights.rows.get(uid) != before
        ]
        for uid in ended:
            self._inputs.uncached.put(uid, None)
        if ended:
            self._reconciler.settle()

    def forget(self, *, held: Collection[str]) -> None:
        """Of what was prepared: what has not changed and is not going to, as none of it is held; derive afterwards."""
        weights = self._inputs.weights.rows
        for uid, before in list(self._inputs.uncached.rows.items()):
            if uid not in weights or (weights[uid] == before and weights_key(uid) not in held):
                self._inputs.uncached.put(uid, None)
