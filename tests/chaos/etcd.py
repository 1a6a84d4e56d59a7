"""An etcd in memory: what `controller.etcd.Etcd` promises, and all that it does not.

`Server` is the store itself: revisions, transactions, leases, history. `Link` is one replica's way to it, with delays,
answers that never come, watches that lag or break, and leases that run out. `test_etcd.py` runs random transactions on
this and on the real one.
"""

from __future__ import annotations

import asyncio
import bisect
import random
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from controller.etcd import Compacted, HistoryLost, LeaseNotFound, OutcomeUnknown, StoreRefused, StoreUnavailable
from controller.etcd.types import (
    Alarm,
    Batch,
    Compare,
    Delete,
    Deleted,
    Event,
    EventKind,
    Fetch,
    Field,
    Get,
    Is,
    KeyValue,
    Nested,
    Op,
    Page,
    Previous,
    Put,
    PutDone,
    Response,
    Status,
    TxnResult,
)
from tests.chaos.loop import running

DEADLINE = 2.0  # seconds of a call, as with a cluster of several members
ABSENT = KeyValue(b"", b"", 0, 0, 0)
MAX_OPS = 4096


@dataclass
class _Lease:
    ttl: float
    until: float
    keys: set[bytes] = field(default_factory=set)


class Server:
    """The store. All of it happens at once: who talks to it makes the delays."""

    def __init__(self) -> None:
        self.revision = 1
        self.rows: dict[bytes, KeyValue] = {}
        self._order: list[bytes] = []
        self.history: list[tuple[int, tuple[Event, ...]]] = []
        self.compacted = 0
        self.leases: dict[int, _Lease] = {}
        self.cluster = 1
        self.changed = asyncio.Event()
        self.is_up = True  # there is a quorum

    # -- keys

    def range(self, key: bytes, end: bytes = b"") -> list[KeyValue]:
        """Keys in order."""
        if not end:
            return [self.rows[key]] if key in self.rows else []
        start = bisect.bisect_left(self._order, key)
        stop = len(self._order) if end == b"\x00" else bisect.bisect_left(self._order, end)
        return [self.rows[name] for name in self._order[start:stop]]

    def page(self, get: Get) -> Page:
        """The answer to a read."""
        found = self.range(get.key, get.end)
        shown = found[: get.limit] if get.limit else found
        if get.fetch is Fetch.COUNT:
            shown = []
        elif get.fetch is Fetch.KEYS:
            shown = [replace(kv, value=b"") for kv in shown]
        more = bool(get.limit) and len(found) > get.limit and get.fetch is not Fetch.COUNT
        return Page(tuple(shown), more, len(found), self.revision)

    # -- transactions

    def txn(self, compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op] = ()) -> TxnResult:
        """One transaction, whole or not at all."""
        for ops in (compares, then, orelse):
            if len(ops) > MAX_OPS:
                raise StoreRefused("INVALID_ARGUMENT", "etcdserver: too many operations in txn request")
        taken = self._decide(compares, then, orelse)
        self._check(taken)
        events: dict[bytes, Event] = {}
        revision = self.revision + 1
        succeeded, responses = self._run(taken, revision, events)
        if events:
            self.revision = revision
            self._publish(revision, events.values())
        done = self.revision
        return _at(TxnResult(succeeded, done, tuple(responses)), done)

    def _decide(self, compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op]) -> tuple[bool, list[Any]]:
        """Which branches are taken, decided on the state before: (succeeded, operations with nested ones decided)."""
        succeeded = all(self._holds(compare) for compare in compares)
        chosen = then if succeeded else orelse
        return succeeded, [
            self._decide(op.compares, op.then, op.orelse) if isinstance(op, Nested) else op for op in chosen
        ]

    def _check(self, taken: tuple[bool, list[Any]]) -> None:
        put: set[bytes] = set()
        gone: list[Delete] = []

        def walk(ops: list[Any]) -> None:
            for op in ops:
                if isinstance(op, tuple):
                    walk(op[1])
                elif isinstance(op, Put):
                    if op.key in put:
                        raise StoreRefused("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request")
                    if op.lease and op.lease not in self.leases:
                        raise LeaseNotFound("NOT_FOUND", "etcdserver: requested lease not found")
                    put.add(op.key)
                elif isinstance(op, Delete):
                    gone.append(op)

        walk(taken[1])
        for op in gone:
            if any(key == op.key or (op.end and op.key <= key < op.end) for key in put):
                raise StoreRefused("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request")

    def _run(self, taken: tuple[bool, list[Any]], revision: int, events: dict[bytes, Event]) -> tuple[bool, list[Any]]:
        responses: list[Response] = []
        for op in taken[1]:
            if isinstance(op, tuple):
                succeeded, inner = self._run(op, revision, events)
                responses.append(TxnResult(succeeded, 0, tuple(inner)))
            elif isinstance(op, Put):
                self._put(op, revision, events)
                responses.append(PutDone())
            elif isinstance(op, Delete):
                found = self.range(op.key, op.end)
                for kv in found:
                    self._delete(kv.key, revision, events)
                responses.append(Deleted(len(found)))
            else:
                responses.append(self.page(op))
        return taken[0], responses

    def _holds(self, compare: Compare) -> bool:
        found = self.range(compare.key, compare.end) or [ABSENT]
        return all(_compared(compare, kv) for kv in found)

    def _put(self, op: Put, revision: int, events: dict[bytes, Event]) -> None:
        old = self.rows.get(op.key)
        if old is None:
            bisect.insort(self._order, op.key)
        elif old.lease in self.leases:
            self.leases[old.lease].keys.discard(op.key)
        created = old.create_revision if old else revision
        kv = KeyValue(op.key, op.value, created, revision, old.version + 1 if old else 1, op.lease)
        if op.lease:
            self.leases[op.lease].keys.add(op.key)
        self.rows[op.key] = kv
        events[op.key] = Event(EventKind.PUT, kv)

    def _delete(self, key: bytes, revision: int, events: dict[bytes, Event]) -> None:
        old = self.rows.pop(key)
        del self._order[bisect.bisect_left(self._order, key)]
        if old.lease in self.leases:
            self.leases[old.lease].keys.discard(key)
        events[key] = Event(EventKind.DELETE, KeyValue(key, b"", 0, revision, 0))

    def _publish(self, revision: int, events: Iterable[Event]) -> None:
        self.history.append((revision, tuple(events)))
        self.changed.set()
        self.changed = asyncio.Event()

    # -- leases

    def expire(self) -> None:
        """End leases whose time is over: nobody could renew them, or nobody has."""
        now = running().time()
        if self.is_up:
            for ident in [i for i, lease in self.leases.items() if lease.until <= now]:
                self.revoke(ident)

    def grant(self, ident: int, ttl: float) -> None:
        """A lease from now on."""
        if ident not in self.leases:
            self.leases[ident] = _Lease(ttl, running().time() + ttl)
            running().later(ttl + 0.01, self._due, ident)

    def renew(self, ident: int) -> float:
        """Its TTL, or 0: it is gone."""
        lease = self.leases.get(ident)
        if lease is None:
            return 0.0
        lease.until = running().time() + lease.ttl
        return lease.ttl

    def _due(self, ident: int) -> None:
        lease = self.leases.get(ident)
        if lease is None:
            return
        left = lease.until - running().time()
        if left <= 0 and self.is_up:
            self.revoke(ident)
        else:
            running().later(max(left, 0.2) + 0.01, self._due, ident)

    def revoke(self, ident: int) -> None:
        """It goes, with its keys, in one revision."""
        lease = self.leases.pop(ident, None)
        if lease and lease.keys:
            events: dict[bytes, Event] = {}
            revision = self.revision + 1
            for key in sorted(lease.keys):
                self._delete(key, revision, events)
            self.revision = revision
            self._publish(revision, events.values())

    def compact(self, revision: int) -> None:
        """Forget what was before."""
        self.compacted = max(self.compacted, revision)
        self.history = [item for item in self.history if item[0] >= revision]


def _at(result: TxnResult, revision: int) -> TxnResult:
    """With the revision of the whole in its pages and nested results."""

    def stamped(response: Response) -> Response:
        if isinstance(response, TxnResult):
            return TxnResult(response.succeeded, revision, tuple(map(stamped, response.responses)))
        return replace(response, revision=revision) if isinstance(response, Page) else response

    return TxnResult(result.succeeded, revision, tuple(map(stamped, result.responses)))


def _compared(compare: Compare, kv: KeyValue) -> bool:
    match compare.field:
        case Field.CREATE:
            value: Any = kv.create_revision
        case Field.MOD:
            value = kv.mod_revision
        case Field.VERSION:
            value = kv.version
        case Field.VALUE:
            if kv is ABSENT:
                return False
            value = kv.value
    match compare.relation:
        case Is.EQUAL:
            return bool(value == compare.operand)
        case Is.NOT_EQUAL:
            return bool(value != compare.operand)
        case Is.GREATER:
            return bool(value > compare.operand)
        case Is.LESS:
            return bool(value < compare.operand)


class SimLease:
    """As `controller.etcd.Lease`."""

    def __init__(self, link: Link, ident: int, ttl: float) -> None:
        self.id, self.ttl, self.lost = ident, ttl, asyncio.Event()
        self._link = link
        self._until = running().time() + ttl
        self._task = asyncio.create_task(self._keep())

    async def __aenter__(self) -> SimLease:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with suppress(StoreUnavailable):
            await self._link.revoke(self.id)

    async def _keep(self) -> None:
        while running().time() < self._until:
            sent = running().time()
            try:
                async with asyncio.timeout(max(self._until - sent, 0)):
                    left = await self._link.renew(self.id)
                if not left:
                    break
                self._until = sent + left
                await asyncio.sleep(self.ttl / 5)
            except (StoreUnavailable, TimeoutError):
                await asyncio.sleep(0.1)
        self.lost.set()


@dataclass
class Weather:
    """What is between one replica and the store."""

    is_cut: bool = False
    slow: float = 0.0  # seconds more for each way
    lost_answers: float = 0.0  # share of writes whose answer never comes
    watch_lag: float = 0.0  # seconds that the watch is behind
    breaks: float = 0.0  # share of batches after which the watch breaks off


class Link:
    """As `controller.etcd.Etcd`, for one replica."""

    def __init__(self, server: Server, dice: random.Random) -> None:
        self.server, self.dice, self.weather = server, dice, Weather()
        self._silent = asyncio.Event()

    endpoint = "memory"

    async def __aenter__(self) -> Link:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        pass

    # -- the way there and back

    async def _go(self, deadline: float) -> None:
        """One way; raises TimeoutError at the deadline."""
        delay = self.dice.expovariate(1 / 0.0008) + self.weather.slow * self.dice.random()
        async with asyncio.timeout_at(deadline):
            await asyncio.sleep(delay)
            while self.weather.is_cut or not self.server.is_up:
                await asyncio.sleep(0.05)

    async def _read(self, act: Any) -> Any:
        deadline = running().time() + DEADLINE
        try:
            await self._go(deadline)
            found = act()
            await self._go(deadline)
        except TimeoutError:
            raise StoreUnavailable("no endpoint answers") from None
        return found

    # -- reading

    async def range(
        self, key: bytes, end: bytes = b"", *, revision: int = 0, limit: int = 0, fetch: Fetch = Fetch.VALUES
    ) -> Page:
        assert not revision, "only scans read the past, and they take no pages here"
        page: Page = await self._read(lambda: self.server.page(Get(key, end, limit, fetch)))
        return page

    async def scan(self, start: bytes, end: bytes, *, revision: int = 0) -> tuple[int, list[KeyValue]]:
        assert not revision
        page: Page = await self._read(lambda: self.server.page(Get(start, end)))
        return page.revision, list(page.kvs)

    async def revision(self) -> int:
        found: int = await self._read(lambda: self.server.revision)
        return found

    async def watch(
        self, start: bytes, end: bytes, *, from_revision: int, previous: Previous = Previous.OMIT
    ) -> AsyncGenerator[Batch, None]:
        following = from_revision
        while True:
            await asyncio.sleep(self.dice.expovariate(1 / 0.002))
            while self.weather.is_cut or not self.server.is_up:
                await asyncio.sleep(0.05)
            self._silent.clear()
            if self.server.revision < following - 1:
                raise HistoryLost(revision=self.server.revision, expected=following - 1)
            async for batch in self._stream(start, end, following):
                following = batch.revision + 1
                yield batch
                if self.dice.random() < self.weather.breaks:
                    break
            await asyncio.sleep(0.05 * self.dice.random())

    async def _stream(self, start: bytes, end: bytes, following: int) -> AsyncGenerator[Batch, None]:
        """Until this stream breaks: whoever waits too long sets `_silent`."""
        while not self._silent.is_set():
            changed, silent = self.server.changed, self._silent
            if following <= self.server.compacted - 1:
                raise Compacted(self.server.compacted)
            at = bisect.bisect_left(self.server.history, following, key=lambda item: item[0])
            found = self.server.history[at : at + self.dice.choice([1, 1, 1, 2, 5])]
            await asyncio.sleep(self.dice.expovariate(1 / 0.0008) + self.weather.watch_lag * self.dice.random())
            if self.weather.is_cut:
                while self.weather.is_cut:
                    await asyncio.sleep(0.05)
                return
            if found:
                following = found[-1][0] + 1
                events = [event for _, many in found for event in many if start <= event.kv.key < end]
                if events:
                    yield Batch(events[-1].kv.mod_revision, tuple(events))
                continue
            waits = [asyncio.ensure_future(changed.wait()), asyncio.ensure_future(silent.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    def renew_watch(self) -> None:
        self._silent.set()

    # -- writing

    async def txn(self, compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op] = ()) -> TxnResult:
        if not _writes((*then, *orelse)):
            found: TxnResult = await self._read(lambda: self.server.txn(compares, then, orelse))
            return found
        deadline = running().time() + DEADLINE
        try:
            await self._go(deadline)
        except TimeoutError:
            if self.dice.random() < 0.5:
                raise StoreUnavailable("no endpoint answers") from None
            if self.dice.random() < 0.5:  # it was on its way, and comes when there is a way
                running().outside(self._late(compares, then, orelse))
            raise OutcomeUnknown("no answer in time") from None
        if self.dice.random() < self.weather.lost_answers / 2:
            raise OutcomeUnknown("the connection broke before it was sent")
        result = self.server.txn(compares, then, orelse)
        if self.dice.random() < self.weather.lost_answers:
            await asyncio.sleep(self.dice.random() * DEADLINE)
            raise OutcomeUnknown("the answer was lost")
        try:
            await self._go(deadline)
        except TimeoutError:
            raise OutcomeUnknown("no answer in time") from None
        return result

    async def _late(self, compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op]) -> None:
        while not self.server.is_up:
            await asyncio.sleep(0.05)
        with suppress(StoreRefused):
            self.server.txn(compares, then, orelse)

    # -- leases

    async def lease(self, ttl: int) -> SimLease:
        return SimLease(self, await self.grant(ttl), ttl)

    async def grant(self, ttl: int) -> int:
        ident = self.dice.getrandbits(62) + 1
        await self._read(lambda: self.server.grant(ident, ttl))
        return ident

    async def renew(self, ident: int) -> float:
        left: float = await self._read(lambda: self.server.renew(ident))
        return left

    async def revoke(self, lease_id: int) -> None:
        await self._read(lambda: self.server.revoke(lease_id))

    async def time_to_live(self, lease_id: int) -> int:
        def left() -> int:
            lease = self.server.leases.get(lease_id)
            return int(lease.until - running().time()) if lease else -1

        found: int = await self._read(left)
        return found

    # -- upkeep

    async def compact(self, revision: int) -> None:
        await self._read(lambda: self.server.compact(revision))

    async def status(self) -> Status:
        def look() -> Status:
            return Status("memory", "3.4.23", 1, 1, 1, self.server.revision, 1, 1 << 20, 1 << 20, ())

        found: Status = await self._read(look)
        return found

    async def alarms(self) -> tuple[Alarm, ...]:
        return ()


def _writes(ops: Iterable[Op]) -> bool:
    return any(
        isinstance(op, (Put, Delete)) or (isinstance(op, Nested) and _writes((*op.then, *op.orelse))) for op in ops
    )
