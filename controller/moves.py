"""Ends moves: when the new host serves and the others know it, the old host's LocalPort is to go (A20).

new host has applied ──► Endpoint flips ──► every live host of the domain has it, or 5 s ──► tombstone due
"""

from __future__ import annotations

import asyncio

import structlog

from controller.etcd import StoreError
from controller.etcd.types import Compare
from controller.release import mark_due
from controller.rows import TombstoneRow
from controller.store import Change, Store
from controller.sync import Sync

log = structlog.get_logger()

PATIENCE = 5.0  # seconds
Key = tuple[str, str, str]


class Moves:
    """Of one term. `follow` is subscribed to the store, `run` lives as long as the term."""

    def __init__(self, store: Store, sync: Sync, term: Compare) -> None:
        self.store, self.sync, self.term = store, sync, term
        self._open: set[Key] = {key for key, row in store.world.tombstones.rows.items() if _is_move(row)}
        self._busy: set[Key] = set()
        self._wake = asyncio.Event()
        self._wake.set()

    def follow(self, _: int, changes: list[Change]) -> None:
        """Something changed that may begin or end a move."""
        for change in changes:
            if change.table == "tombstones":
                key: Key = change.key  # type: ignore[assignment]
                if change.new and _is_move(change.new):
                    self._open.add(key)
                else:
                    self._open.discard(key)
            elif change.table not in ("port_status", "ports", "hosts"):
                continue
            if self._open:
                self._wake.set()

    async def run(self) -> None:
        """End what can be ended."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._wake.wait()
                self._wake.clear()
                for key in self._open - self._busy:
                    row = self.store.world.tombstones.rows.get(key)
                    if row and self._is_served(row):
                        self._busy.add(key)
                        group.create_task(self._finish(key, row))

    def _is_served(self, row: TombstoneRow) -> bool:
        """The port's present host has it, or nobody is to have it any more."""
        world = self.store.world
        for name in world.ports_by_uid.keys(row.port_uid):
            port = world.ports.rows[name]
            host = world.hosts.rows.get(port.spec.host)
            if host is None:
                return True
            said = world.port_status.rows.get(row.port_uid)
            return bool(said and said.applied and said.host_uid == host.uid)
        return True

    async def _finish(self, key: Key, row: TombstoneRow) -> None:
        try:
            domains = frozenset(self._domains(row))
            outcome = await self.sync.ask(revision=self.store.revision, domains=domains, timeout=PATIENCE)
            await mark_due(self.store, self.term, row)
            log.info("move done", port=row.port_name, behind=len(outcome.behind), seconds=round(outcome.took, 3))
        except StoreError as error:
            log.warning("move not ended yet", port=row.port_name, error=str(error))
            await asyncio.sleep(1)
        finally:
            self._busy.discard(key)
            self._wake.set()  # the port may have been moved once more meanwhile: that is another move

    def _domains(self, row: TombstoneRow) -> list[int]:
        scopes = self.sync.sessions.resources.of_hosts
        names = self.store.world.ports_by_uid.keys(row.port_uid)
        vnis = (scopes.holdings.rows[name].vni for name in names if name in scopes.holdings.rows)
        return [scopes.domain_of_vni.rows[vni] for vni in vnis if vni in scopes.domain_of_vni.rows]


def _is_move(row: TombstoneRow) -> bool:
    return bool(row.moved_to) and not row.due and not row.address
