"""Identities that no port has: since when, so that their numbers are given back only when no host can know them.

Followed change by change: a number that is used again, however briefly, begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from controller.rows import IdentityRow
from controller.store import Change, Store

KEPT = 600.0  # seconds that a set of groups keeps its number although nobody uses it


class Since(NamedTuple):
    """When an identity was left by its last port: the tables' revision, and the monotonic clock."""

    revision: int
    moment: float


class Idle:
    """The idle identities of one replica's tables, as one term knows them: a new term waits longer, never shorter."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self.store, self.clock = store, clock
        self._since: dict[int, Since] = {}
        self._loads = store.loads
        self._look()

    def follow(self, revision: int, changes: list[Change]) -> None:
        """The tables have changed. Call it for every batch."""
        if self._loads != self.store.loads:  # read anew: what lay between is not known change by change
            self._loads = self.store.loads
            self._since.clear()
            self._look()
            return
        for change in changes:
            if change.table == "ports":
                for row in (change.old, change.new):
                    if row is not None:
                        self._changed(row.spec.identity, revision)
            elif change.table == "identities":
                self._changed(int(str(change.key)), revision)

    def expired(self, low_water: int) -> dict[int, int]:
        """The identities whose numbers may be free, if every host is synced past `low_water`: number → since when.

        At once where the tenant or one of the groups is no more: nobody will ever have this set again.
        """
        world, now = self.store.world, self.clock()
        past = (pair for pair in self._since.items() if pair[1].revision < low_water)
        return {
            number: since.revision
            for number, since in past
            if now - since.moment >= KEPT or self._is_over(world.identities.rows[number])
        }

    def _look(self) -> None:
        for number in self.store.world.identities.rows:
            self._changed(number, self.store.revision)

    def _changed(self, number: int, revision: int) -> None:
        world = self.store.world
        self._since.pop(number, None)
        if number in world.identities.rows and number not in world.ports_by_identity.buckets:
            self._since[number] = Since(revision, self.clock())

    def _is_over(self, row: IdentityRow) -> bool:
        world = self.store.world
        tenant, *groups = row.members
        return not world.tenants_by_uid.keys(tenant) or not all(world.groups_by_uid.keys(uid) for uid in groups)
