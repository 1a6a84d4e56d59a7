"""What one replica does for all: elected by a leased key, fenced by that key's create revision (T10).

A term ends when the key is not mine any more; whatever is under way then fails its compare and changes nothing.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from controller.admission import FOREIGN_HISTORY, LOST
from controller.drains import Drains
from controller.etcd import StoreError
from controller.etcd.embedded import QUOTA as EMBEDDED_QUOTA
from controller.etcd.types import Compare, absent, created, delete, put
from controller.hosts import edit_host_status, timestamp
from controller.intents.group import ensure_default
from controller.liveness import Liveness
from controller.moves import Moves
from controller.names import default_group
from controller.release import Release
from controller.replica import Replica
from controller.rollouts.leader import Leader, Tools
from controller.settings import Settings
from controller.store import Change
from tealnet.store.v1 import store_pb2

log = structlog.get_logger()

_LINEAGE = 600.0  # seconds
_LINEAGES_KEPT = 5000
_ROOM, _FULL = 60.0, 70  # seconds between looks at the store's size; percent of its quota
_COMPACT, _HISTORY = 300.0, 1800.0  # seconds: how often, and what is kept


class TermOver(Exception):
    """Another replica does the chores now."""


class Chores:
    """`run` as long as the process lives."""

    def __init__(self, rollouts: Tools, *, replica: Replica, settings: Settings) -> None:
        self.rollouts, self.replica, self.settings = rollouts, replica, settings
        self.store, self.sync, self.events = rollouts.store, rollouts.sync, rollouts.events
        self.moves: Moves | None = None
        self.release: Release | None = None
        self.leader: Leader | None = None
        self._moved = asyncio.Event()  # the term row changed
        self.store.subscribe(self._follow)

    def _follow(self, revision: int, changes: list[Change]) -> None:
        if any(change.table == "terms" for change in changes):
            self._moved.set()
        if self.moves is not None:
            self.moves.follow(revision, changes)
        if self.release is not None:
            self.release.idle.follow(revision, changes)
        if self.leader is not None:
            self.leader.follow(revision, changes)

    async def run(self) -> None:
        """Stand for election; when elected, do the chores until the term is over."""
        while True:
            term = await self._campaign()
            log.info("chores begin", replica=self.replica.id)
            try:
                await self._term(term)
            except* TermOver:
                log.warning("chores end", replica=self.replica.id)

    async def _campaign(self) -> Compare:
        key = self.store.keys.chores
        while True:
            self._moved.clear()
            row = self.store.world.terms.rows.get("chores")
            if row and row.replica == self.replica.id:  # elected by a write that was not answered
                return created(key, row.create_revision)
            if row is None:
                await self.replica.ready.wait()
                try:
                    write = put(key, self.replica.id.encode(), self.replica.lease_id)
                    result = await self.store.etcd.txn([absent(key)], [write])
                    if result.succeeded:
                        await self.store.passed(result.revision)
                        return created(key, result.revision)
                except StoreError as error:
                    log.warning("not elected", error=str(error))
                    await asyncio.sleep(1)
                    continue
            await self._moved.wait()

    async def _term(self, term: Compare) -> None:
        release, drains = Release(self.store, term), Drains(self.store, term, self.events)
        self.release = release
        self.moves, self.leader = Moves(self.store, self.sync, term), Leader(self.rollouts, term)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._end(term))
                group.create_task(self.moves.run())
                group.create_task(self.leader.run())
                group.create_task(self._liveness(term))
                group.create_task(_every(_LINEAGE, lambda: self._lineage(term)))
                group.create_task(_every(1, drains.step))
                group.create_task(_every(5, release.tombstones))
                group.create_task(_every(60, release.numbers))
                group.create_task(_every(30, release.orphans))
                group.create_task(_every(_ROOM, self._room))
                group.create_task(_every(60, lambda: self._default_groups(term)))
                if not self.settings.is_embedded and self.settings.compact == "on":
                    group.create_task(self._compact())
        finally:
            self.moves = self.release = self.leader = None

    async def _end(self, term: Compare) -> None:
        while (row := self.store.world.terms.rows.get("chores")) and row.create_revision == term.operand:
            self._moved.clear()
            await self._moved.wait()
        raise TermOver

    # ---- what earlier versions did not have

    async def _default_groups(self, term: Compare) -> None:
        """Tenants of before there were security groups get their default one."""
        world = self.store.world
        for name in [name for name in world.tenants.rows if default_group(name) not in world.groups.rows]:
            await ensure_default(self.store, name, term)

    # ---- lineage and compaction

    async def _lineage(self, term: Compare) -> None:
        """A new random id of the history (A3); old ones go after a month."""
        keys, number = self.store.keys, self.store.lineage[0] + 1
        row = store_pb2.LineageRow(id=secrets.token_hex(16)).SerializeToString()
        await self.store.etcd.txn([term, absent(keys.lineage(number))], [put(keys.lineage(number), row)])
        for old in [n for n in self.store.world.lineages.rows if n <= number - _LINEAGES_KEPT][:50]:
            await self.store.etcd.txn([term], [delete(keys.lineage(old))])

    async def _compact(self) -> None:
        """Forget what is older than half an hour; the embedded etcd does this by itself (A18)."""
        samples: deque[tuple[float, int]] = deque()

        async def step() -> None:
            now = time.monotonic()
            samples.append((now, self.store.revision))
            old = 0
            while samples and now - samples[0][0] >= _HISTORY:
                old = samples.popleft()[1]
            if old:
                await self.store.etcd.compact(old)
                log.info("store compacted", revision=old)

        await _every(_COMPACT, step)

    async def _room(self) -> None:
        """Say in time that the store fills up: from its quota on etcd refuses every write (A18)."""
        quota = EMBEDDED_QUOTA if self.settings.is_embedded else self.settings.etcd_quota_mib << 20
        size = (await self.store.etcd.status()).db_size
        if 100 * size >= _FULL * quota:
            text = (
                f"etcd uses {size >> 20} of {quota >> 20} MiB, and takes no writes when that is full: "
                "`teal admin defrag --compact` gives back what is not needed"
            )
            await self.events.note(name="", uid="cluster", reason="StoreAlmostFull", text=text)

    # ---- lost hosts

    async def _liveness(self, term: Compare) -> None:
        liveness = Liveness(self.settings.lost_after)
        last = time.monotonic()
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            elapsed, last = now - last, now
            if self.store.stale_since is not None or not self.replica.ready.is_set() or elapsed > 2:
                liveness.unhealthy()
                continue
            world = self.store.world
            known = {
                host.uid
                for host in world.hosts.rows.values()
                if (row := world.host_status.rows.get(host.uid)) and row.instance_uid and row.state != FOREIGN_HISTORY
            }
            before = len(liveness.excused)
            lost = liveness.tick(now, elapsed=elapsed, present=world.sessions.rows.keys(), known=known)
            if len(liveness.excused) > before:
                text = f"{len(liveness.excused)} hosts vanished together; they stay DISCONNECTED"
                await self.events.note(name="", uid="cluster", reason="ManyHostsVanished", text=text)
            for host in lost:
                if world.host_status.rows[host].state != LOST:
                    await self._lose(term, host)

    async def _lose(self, term: Compare, host_uid: str) -> None:
        def edit(row: store_pb2.HostStatusRow) -> None:
            row.state = LOST
            row.since.CopyFrom(timestamp())

        gone = absent(self.store.keys.session(host_uid))
        try:
            if await edit_host_status(self.store.etcd, self.store.keys, host_uid, edit, [term, gone]) is None:
                return
        except StoreError as error:
            log.warning("host not marked as lost yet", host_uid=host_uid, error=str(error))
            return
        for name in self.store.world.hosts_by_uid.keys(host_uid):
            text = f"no session for {self.settings.lost_after} s; its workloads most likely forward still"
            await self.events.note(name=name, uid=host_uid, reason="HostLost", text=text)


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do it now and again; what the store refuses is tried again next time."""
    while True:
        try:
            await work()
        except StoreError as error:
            log.warning("chore failed", chore=getattr(work, "__qualname__", ""), error=str(error))
        await asyncio.sleep(seconds)
