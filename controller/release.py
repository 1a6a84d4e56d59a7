"""Giving back what was released: addresses out of quarantine, numbers that no host can hold, rows without an object.

Only the chore leader frees, and every transaction compares its term. Times are its own, from when it first saw the
release: a new leader waits longer, never shorter (A8, T6).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import structlog

from controller.etcd.types import Compare, KeyValue, Page, created, delete, empty, get, modified, prefix_end, put
from controller.idle import Idle
from controller.intents.base import identity_digest
from controller.rows import IdentityRow, TombstoneRow
from controller.store import Store
from tealnet.core.tables import Table
from tealnet.store.v1 import store_pb2

log = structlog.get_logger()

_BATCH = 40  # keys per transaction
_ORPHAN = 60.0  # seconds that a row without its object is left alone


class Release:
    """The freeing of one term; `term` is the compare of its writes, `clock` is monotonic, in seconds."""

    def __init__(self, store: Store, term: Compare, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.store, self.term, self.clock = store, term, clock
        self._first: dict[tuple[str, str, str], tuple[int, float]] = {}  # a tombstone's revision, and when it was seen
        self._orphans: dict[bytes, float] = {}  # when a row was first seen without its object
        self._candidates: dict[bytes, int] = {}  # number's key → revision of its release, at the last check
        self.idle = Idle(store)

    # ---- tombstones and addresses

    async def tombstones(self) -> None:
        """Free tombstones that were carried out and whose quarantine is over, and the addresses that wait for them."""
        now = self.clock()
        rows = self.store.world.tombstones.rows
        before, self._first = self._first, {}
        for key, row in rows.items():
            seen = before.get(key)
            # One that was taken back and written again between two looks is another.
            self._first[key] = seen if seen and seen[0] == row.revision else (row.revision, now)
        for key, (revision, first) in self._first.items():
            left = rows.get(key)
            if left and left.revision == revision and now - first >= left.quarantine and self._is_carried_out(left):
                await self._free(left)

    def _is_carried_out(self, row: TombstoneRow) -> bool:
        """Its host has let it go, or is treated as gone."""
        if row.moved_to and not row.due:
            return False
        hosts = [self.store.world.hosts.rows[name] for name in self.store.world.hosts_by_uid.keys(row.host_uid)]
        return row.acked or all(host.spec.fenced for host in hosts)

    async def _free(self, row: TombstoneRow) -> None:
        store = self.store
        key = store.keys.tombstone(row.host_uid, row.port_uid)
        if row.address:
            key += b"/" + row.address.encode()
        wanted = [key, *(address.encode() for address in row.address_keys)]
        answer = await store.etcd.txn((), [get(k) for k in wanted])
        found = [kv for page in answer.responses if isinstance(page, Page) for kv in page.kvs]
        if not found or found[0].key != key or found[0].create_revision != row.revision:
            return  # gone, or another one by now
        # An address that another tombstone or a new port holds by now is not ours to free.
        held = [kv for kv in found[1:] if store_pb2.Holder.FromString(kv.value).tombstone == key.decode()]
        for start in range(0, len(held), _BATCH):
            await self._delete(held[start : start + _BATCH])
        await self._delete(found[:1])
        log.debug("tombstone freed", port=row.port_name, host_uid=row.host_uid, addresses=len(held))

    async def _delete(self, kvs: Iterable[KeyValue]) -> bool:
        """Delete keys if they are unchanged and this is still my term."""
        found = list(kvs)
        compares = [self.term, *(modified(kv.key, kv.mod_revision) for kv in found)]
        return (await self.store.etcd.txn(compares, [delete(kv.key) for kv in found])).succeeded

    # ---- numbers

    async def numbers(self) -> None:
        """Free VNIs, domain and identity numbers that were released before everything that any host still knows.

        A number must be free by this rule at two checks in a row: a session that has just begun is not in its
        replica's low water mark yet.
        """
        low = self._low_water()
        free: dict[bytes, int] = {}
        for prefix in (self.store.keys.vni_prefix, self.store.keys.domain_prefix):
            _, found = await self.store.etcd.scan(prefix, prefix_end(prefix))
            for kv in found:
                if store_pb2.Holder.FromString(kv.value).released and kv.mod_revision < low:
                    free[kv.key] = kv.mod_revision
                    if self._candidates.get(kv.key) == kv.mod_revision and await self._delete([kv]):
                        log.info("number freed", key=self.store.keys.relative(kv.key))
        for number, since in self.idle.expired(low).items():
            key = self.store.keys.identity(number)
            free[key] = since
            if self._candidates.get(key) == since:
                await self._free_identity(number)
        self._candidates = free

    async def _free_identity(self, number: int) -> None:
        """Unless a port has it after all: then one of the two transactions fails."""
        keys, etcd = self.store.keys, self.store.etcd
        row: IdentityRow | None = self.store.world.identities.rows.get(number)
        if row is None:
            return
        key, references = keys.identity(number), keys.references("identity", str(number))
        unused = [self.term, created(key, row.create_revision), empty(references, prefix_end(references))]
        by_set = (await etcd.range(keys.identity_set(identity_digest(row.members)))).kvs
        own = [kv for kv in by_set if kv.value == str(number).encode()]
        compares = [*unused, *(modified(kv.key, kv.mod_revision) for kv in own)]
        if (await etcd.txn(compares, [delete(key), *(delete(kv.key) for kv in own)])).succeeded:
            log.info("number freed", key=keys.relative(key))

    def _low_water(self) -> int:
        """The lowest revision that any host, in session or not, may still be at."""
        world = self.store.world
        marks = [row.low_water for row in world.replicas.rows.values()]
        for host in world.hosts.rows.values():
            row = world.host_status.rows.get(host.uid)
            if row and row.instance_uid and not host.spec.fenced and host.uid not in world.sessions.rows:
                marks.append(row.last_synced)
        return min(marks, default=self.store.revision)

    # ---- orphans

    async def orphans(self) -> None:
        """Delete status of ports, hosts and rollouts that are gone, and the marks of replicas that are."""
        store, world, now = self.store, self.store.world, self.clock()
        living = world.rollouts_by_uid.buckets
        marks = [b for b, row in world.barriers.rows.items() if row.mark and b not in world.replicas.rows]
        found: set[bytes] = {
            *map(store.keys.port_status, _without(world.port_status, world.ports_by_uid.buckets)),
            *map(store.keys.host_status, _without(world.host_status, world.hosts_by_uid.buckets)),
            *map(store.keys.barrier, marks),
            *(store.keys.rollout_step(*key) for key in world.rollout_steps.rows if key[0] not in living),
            *(store.keys.confirmation(uid) for uid in world.confirmations.rows if uid not in living),
        }
        self._orphans = {key: self._orphans.get(key, now) for key in found}
        for key, first in self._orphans.items():
            if now - first >= _ORPHAN:
                await self._delete((await store.etcd.range(key)).kvs)


def _without(table: Table[str, Any], objects: dict[Hashable, Any]) -> list[str]:
    return [uid for uid in table.rows if uid not in objects]


async def mark_due(store: Store, term: Compare, row: TombstoneRow) -> None:
    """A move is over: the old host's LocalPort is to go now. Returns when the tables say so, or what came before."""
    key = store.keys.tombstone(row.host_uid, row.port_uid)
    for kv in (await store.etcd.range(key)).kvs:
        message = store_pb2.Tombstone.FromString(kv.value)
        message.due = True
        write = put(key, message.SerializeToString())
        result = await store.etcd.txn([term, created(key, row.revision), modified(key, kv.mod_revision)], [write])
        await store.passed(result.revision if result.succeeded else kv.mod_revision)
