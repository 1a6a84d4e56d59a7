"""Etcd as tables: one scan, then the one watch; after each batch everything derived is settled once.

Tables change here and nowhere else. A wait for a revision ends at an event; where none may come (a read that must be
linearizable), `barrier` writes a key and waits for that one.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import secrets
import time
import uuid
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import structlog
from google.protobuf.message import DecodeError

from controller import decode, decode_status
from controller.audit.trail import current_trail
from controller.etcd import Compacted, Etcd, HistoryLost, StoreError, StoreUnavailable
from controller.etcd.types import Event, EventKind, KeyValue, absent, get, prefix_end, put
from controller.keys import Keys, cluster_key
from controller.world import World
from tealnet.core.tables import Graph, Table
from tealnet.store.v1 import store_pb2

log = structlog.get_logger()

STALE_AFTER = 2.0  # seconds without the own heartbeat
_SILENT = 0.5  # seconds without anything from the watch, when something must come
_CANCELLED = 1000  # waits that were given up, after which they are cleared away
_BARRIER_GAP = 0.005  # seconds between two marks
_LINEAGES_AT_ONCE = 100
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Change:
    """One row that is not what it was; None = absent. `revision` is the commit's."""

    table: str
    key: Hashable
    old: Any
    new: Any
    revision: int


Unasked = Callable[[str, list[str], int], None]
"""Told of writes that no call has asked for: what was done, to which objects, at which revision."""
Subscriber = Callable[[int, list[Change]], None]


async def bootstrap(etcd: Etcd, cluster: str) -> Keys:
    """The keys of a cluster, by name; its uid, format and first lineage are written if it is new."""
    key = cluster_key(cluster)
    uid = uuid.uuid4().hex
    result = await etcd.txn([absent(key)], [put(key, uid.encode())], [get(key)])
    if not result.succeeded:
        uid = result.responses[0].kvs[0].value.decode()  # type: ignore[union-attr]
    keys = Keys(uid)
    first = store_pb2.LineageRow(id=secrets.token_hex(16)).SerializeToString()
    await etcd.txn([absent(keys.lineage(1))], [put(keys.lineage(1), first)])
    await etcd.txn([absent(keys.format)], [put(keys.format, str(FORMAT).encode())])
    return keys


async def new_history(etcd: Etcd, cluster: str) -> None:
    """Say that this store was restored: no host will take it for the history that it knows (A3).

    By revisions alone nobody could tell, once the store has written past what hosts have seen.
    """
    keys = await bootstrap(etcd, cluster)
    prefix = keys.lineage_prefix
    _, found = await etcd.scan(prefix, prefix_end(prefix))
    rows = [put(kv.key, store_pb2.LineageRow(id=secrets.token_hex(16)).SerializeToString()) for kv in found]
    for start in range(0, len(rows), _LINEAGES_AT_ONCE):
        await etcd.txn((), rows[start : start + _LINEAGES_AT_ONCE])


class Store:
    """The tables of one replica. `load` once, then `run` for as long as the process lives."""

    def __init__(self, etcd: Etcd, keys: Keys, *, replica: str) -> None:
        self.etcd, self.keys, self.replica = etcd, keys, replica
        self.graph = Graph()
        self.world = World(self.graph)
        self.loads = 0  # how often everything was read; between two changes are known one by one
        self.revision = 0  # tables and everything derived are at this one
        self.unasked: Unasked = lambda what, names, revision: None
        self.broken: dict[str, str] = {}  # keys whose values do not parse → why
        self._subscribers: list[Subscriber] = []
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ticket, self._cancelled = itertools.count(), 0
        self._beat_key = keys.beat(replica)
        self._beat_seen = self._heard = time.monotonic()
        self._asked: list[asyncio.Future[int]] = []
        self._ask = asyncio.Event()

    # ---- reading

    @property
    def stale_since(self) -> float | None:
        """Unix time when the store was last heard of, if that is more than two seconds ago."""
        silent = time.monotonic() - self._beat_seen
        return time.time() - silent if silent > STALE_AFTER else None

    @property
    def lineage(self) -> tuple[int, str]:
        """The newest id of the store's history: (number, id)."""
        return max(self.world.lineages.rows.items(), default=(0, ""))

    def wrote(self, what: str, names: list[str], revision: int) -> None:
        """For the audit log: objects were written, by the call that this is part of, or else as `what` says."""
        if trail := current_trail():
            trail.wrote(revision, names)
        else:
            self.unasked(what, names, revision)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber(revision, changes)` after every batch, when all is settled."""
        self._subscribers.append(subscriber)

    async def passed(self, revision: int) -> None:
        """Wait until the tables have passed a revision at which something under `w/` was written."""
        if revision > self.revision:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (revision, next(self._ticket), future))
            try:
                await future
            except asyncio.CancelledError:
                self._forget_cancelled()
                raise

    async def committed(self, revision: int) -> None:
        """`passed` for a revision that etcd has told: if nothing at all comes, the watch goes to another member."""
        while True:
            try:
                async with asyncio.timeout(_SILENT):
                    await self.passed(revision)
                return
            except TimeoutError:
                if time.monotonic() - self._heard > _SILENT:
                    self.etcd.renew_watch()

    def _forget_cancelled(self) -> None:
        """Keep the heap small when callers wait for revisions that never come and give up."""
        self._cancelled += 1
        if self._cancelled > _CANCELLED:
            self._cancelled = 0
            self._waiting = [waiting for waiting in self._waiting if not waiting[2].done()]
            heapq.heapify(self._waiting)

    async def barrier(self) -> int:
        """Wait until the tables have everything that was committed before this call; returns their revision.

        Raises StoreUnavailable.
        """
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        self._ask.set()
        return await future

    # ---- following etcd

    async def load(self) -> None:
        """Read everything at one revision; the tables become equal to it (a diff, not a reset)."""
        start = time.monotonic()
        revision, found = await self.etcd.scan(self.keys.watched, prefix_end(self.keys.watched))
        tables: dict[str, dict[Hashable, Any]] = {}
        self.broken.clear()
        for kv in found:
            if (place := self._place(kv.key)) and (row := self._row(place, kv)) is not None:
                tables.setdefault(place[0], {})[place[1]] = row
        changes: list[Change] = []
        for name, table in self._tables():
            changes.extend(_difference(name, table, tables.get(name, {}), revision))
            table.replace_all(tables.get(name, {}))
        self.loads += 1
        self._settle(revision, changes)
        took = time.monotonic() - start
        log.info("store read", keys=len(found), revision=revision, seconds=round(took, 3), broken=len(self.broken))

    async def run(self) -> None:
        """Follow the watch. Raises HistoryLost if etcd went back in time: the process must end and start anew."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._barriers(group))
            group.create_task(self._follow())

    async def _follow(self) -> None:
        start, end = self.keys.watched, prefix_end(self.keys.watched)
        while True:
            try:
                async with contextlib.aclosing(self.etcd.watch(start, end, from_revision=self.revision + 1)) as batches:
                    async for batch in batches:
                        self._apply(batch.revision, batch.events)
            except Compacted as error:
                log.warning("watch fell behind compaction", compacted=error.compact_revision, revision=self.revision)
            try:
                await self.load()
            except HistoryLost:
                raise
            except StoreError as error:
                log.warning("store not read again yet", error=str(error))
                await asyncio.sleep(1)

    def _apply(self, revision: int, events: Iterable[Event]) -> None:
        self._heard = time.monotonic()
        changes = [change for event in events if (change := self._put(event))]
        self._settle(revision, changes)

    def _put(self, event: Event) -> Change | None:
        if event.kv.key == self._beat_key:
            self._beat_seen = time.monotonic()
            return None
        place = self._place(event.kv.key)
        if place is None:
            return None
        table: Table[Any, Any] = getattr(self.world, place[0])
        old = table.rows.get(place[1])
        new = None if event.kind is EventKind.DELETE else self._row(place, event.kv)
        table.put(place[1], new)
        return None if old == new else Change(place[0], place[1], old, new, event.kv.mod_revision)

    def _place(self, key: bytes) -> decode_status.Place | None:
        try:
            return decode_status.place(self.keys.relative(key))
        except ValueError:
            log.error("strange key in the store", key=repr(key))
            return None

    def _row(self, place: decode_status.Place, kv: KeyValue) -> Any:
        """The row, or None where the value can't be read: that object is absent and named, all others go on."""
        table, key = place
        relative = self.keys.relative(kv.key)
        try:
            if table in decode_status.INTENTS.values():
                row: Any = decode.intent(relative.split("/")[2], kv, self.keys)
            else:
                row = decode_status.row(table, key, kv)
        except (ValueError, DecodeError) as error:
            self.broken[relative] = str(error)
            log.error("value in the store does not parse", key=relative, error=str(error))
            return None
        self.broken.pop(relative, None)
        return row

    def _settle(self, revision: int, changes: list[Change]) -> None:
        self.graph.settle()
        self.revision = revision
        for subscriber in self._subscribers:
            subscriber(revision, changes)
        while self._waiting and self._waiting[0][0] <= revision:
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                future.set_result(None)

    def _tables(self) -> list[tuple[str, Table[Any, Any]]]:
        return [(name, table) for name, table in vars(self.world).items() if isinstance(table, Table)]

    # ---- barriers

    async def _barriers(self, group: asyncio.TaskGroup) -> None:
        """Write marks: one for all who asked before it was sent, at most one per 5 ms."""
        while True:
            await self._ask.wait()
            self._ask.clear()
            asked, self._asked = self._asked, []
            group.create_task(self._mark(asked))
            await asyncio.sleep(_BARRIER_GAP)

    async def _mark(self, asked: list[asyncio.Future[int]]) -> None:
        mark = store_pb2.Barrier(mark=True).SerializeToString()
        try:
            # One key per replica, written over and over: nothing is left to collect but one key when the process ends.
            result = await self.etcd.txn((), [put(self.keys.barrier(self.replica), mark)])
        except StoreError as error:
            for future in asked:
                if not future.done():
                    future.set_exception(StoreUnavailable(str(error)))
            return
        await self.committed(result.revision)
        for future in asked:
            if not future.done():
                future.set_result(result.revision)


def _difference(name: str, table: Table[Any, Any], rows: dict[Hashable, Any], revision: int) -> list[Change]:
    keys = table.rows.keys() | rows.keys()
    pairs = ((key, table.rows.get(key), rows.get(key)) for key in keys)
    return [Change(name, key, old, new, revision) for key, old, new in pairs if old != new]
