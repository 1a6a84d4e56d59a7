"""The etcd client: reads at a revision, transactions, leases, the lossless watch, and upkeep.

Wire-compatible with etcd's v3 API (3.4 and later). Every call has a deadline. Reads are linearizable and go on to other
endpoints by themselves; what writes is sent once, and the errors say whether it may have been applied (`errors`). Why
it is our own: docs/adr/0001-own-etcd-client.md.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import grpc
import grpc.aio

from controller.etcd import lease as leases
from controller.etcd import watch as watches
from controller.etcd import wire
from controller.etcd.calls import (
    ALARM,
    COMPACT,
    DEFRAGMENT,
    HAS_LEADER,
    LEASE_TIME_TO_LIVE,
    MEMBER_LIST,
    RANGE,
    SNAPSHOT,
    STATUS,
    TXN,
    Caller,
    Effect,
    translate,
)
from controller.etcd.errors import (
    Compacted,
    HistoryLost,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    TxnTooLarge,
)
from controller.etcd.links import Links, Tls
from controller.etcd.types import (
    Alarm,
    AlarmKind,
    Batch,
    Compare,
    Fetch,
    Get,
    KeyValue,
    Member,
    Op,
    Page,
    Previous,
    Status,
    TxnResult,
)
from tealnet.etcdpb import etcd_pb2 as pb

_PAGE = 2000  # keys: about a megabyte of our rows
_LEAST_TXN_OPS = 128  # etcd's default of --max-txn-ops
_LEAST_TXN_BYTES = 1 << 20  # its default of --max-request-bytes is 1.5 MiB, with overhead
_UPKEEP = 120.0  # seconds a compaction or defragmentation may take


class Etcd:
    """One etcd, by its endpoints (`https://host:port`, `http://host:port` or `unix:/path`).

    `timeout` is the deadline of a call in seconds. For one event loop; close it, or use it as `async with`.
    """

    def __init__(self, endpoints: Sequence[str], tls: Tls | None = None, *, timeout: float = 5.0) -> None:
        self._links = Links(endpoints, tls)
        self._caller = Caller(self._links, timeout=timeout)
        self._silent = asyncio.Event()

    async def __aenter__(self) -> Etcd:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; calls, watches and leases under way fail."""
        await self._links.close()

    @property
    def endpoint(self) -> str:
        """The endpoint that is used now."""
        return self._links.endpoint

    # ---- reading

    async def range(
        self, key: bytes, end: bytes = b"", *, revision: int = 0, limit: int = 0, fetch: Fetch = Fetch.VALUES
    ) -> Page:
        """The key, or the keys of `[key, end)` in order, at `revision` (0: now, linearizable); `limit` 0 = all.

        Raises Compacted if that revision is no longer kept, HistoryLost if the store has not reached it.
        """
        request = wire.range_message(Get(key, end, limit, fetch), revision=revision)
        try:
            answer = await self._caller.call(RANGE, request)
        except StoreRefused as refusal:
            if revision and refusal.code == grpc.StatusCode.OUT_OF_RANGE.name:
                await self._explain_revision(revision, refusal)
            raise
        return wire.page(answer)

    async def scan(self, start: bytes, end: bytes, *, revision: int = 0) -> tuple[int, list[KeyValue]]:
        """All keys of `[start, end)` at one revision, in pages; returns that revision, from which a watch can go on."""
        found: list[KeyValue] = []
        while True:
            page = await self.range(start, end, revision=revision, limit=_PAGE)
            revision = revision or page.revision
            found.extend(page.kvs)
            if not page.more:
                return revision, found
            start = page.kvs[-1].key + b"\x00"

    async def revision(self) -> int:
        """The store's revision now, linearizable: no write that was answered before is above it."""
        return (await self.range(b"\x00", fetch=Fetch.COUNT)).revision

    def watch(
        self, start: bytes, end: bytes, *, from_revision: int, previous: Previous = Previous.OMIT
    ) -> AsyncGenerator[Batch, None]:
        """Every change of `[start, end)` from `from_revision` (≥ 1) on, in commit order, whatever fails in between.

        Close it (`contextlib.aclosing`) to end it. Raises Compacted or HistoryLost: scan again, then watch from the
        scan's revision + 1.
        """
        return watches.watch(
            self._links,
            watches.Range(start, end, previous),
            from_revision=from_revision,
            store_revision=self.revision,
            timeout=self._caller.timeout,
            silent=self._silent,
        )

    def renew_watch(self) -> None:
        """A change that is known has not come through the watch in time: open it at another endpoint."""
        self._silent.set()

    # ---- writing

    async def txn(self, compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op] = ()) -> TxnResult:
        """If all compares hold do `then`, else `orelse`, atomically. One key may be written only once.

        Raises TxnTooLarge, LeaseNotFound, StoreFull or StoreRefused (not applied), StoreUnavailable (not applied) and
        OutcomeUnknown (may be applied). A transaction that only reads is repeated until the deadline instead.
        """
        request = wire.txn_message(compares, then, orelse)
        effect = Effect.ONCE if wire.writes((*then, *orelse)) else Effect.REPEATABLE
        try:
            answer = await self._caller.call(TXN, request, effect=effect)
        except StoreRefused as refusal:
            await self._explain_txn(refusal, size=request.ByteSize(), longest=wire.longest_list(compares, then, orelse))
            raise
        return wire.txn_result(answer)

    # ---- leases

    async def lease(self, ttl: int) -> leases.Lease:
        """A lease that is kept alive until it is closed; etcd raises a `ttl` (seconds) below its election timeout."""
        lease_id, sent = _lease_id(), time.monotonic()
        granted = await leases.grant(self._caller, ttl=ttl, lease_id=lease_id)
        return leases.Lease(self._caller, lease_id, ttl=granted, sent=sent)

    async def grant(self, ttl: int) -> int:
        """A lease that nobody renews: keys put on the id returned go after `ttl` seconds, or a little later."""
        lease_id = _lease_id()
        await leases.grant(self._caller, ttl=ttl, lease_id=lease_id)
        return lease_id

    async def revoke(self, lease_id: int) -> None:
        """End a lease now and delete its keys; one that is gone already is fine."""
        await leases.revoke(self._caller, lease_id)

    async def time_to_live(self, lease_id: int) -> int:
        """Seconds that a lease has left; -1 if it is gone."""
        request = pb.LeaseTimeToLiveRequest(ID=lease_id)
        answer = await self._caller.call(LEASE_TIME_TO_LIVE, request)
        return answer.TTL

    # ---- upkeep

    async def compact(self, revision: int) -> None:
        """Forget what was before `revision`; reads and watches of older ones then raise Compacted.

        Returns when it is gone from the disk: what is defragmented sooner takes it along.
        A revision that is compacted already is fine; one that the store has not reached raises HistoryLost.
        """
        request = pb.CompactionRequest(revision=revision, physical=True)
        try:
            await self._caller.call(COMPACT, request, timeout=_UPKEEP)
        except StoreRefused as refusal:
            if refusal.code != grpc.StatusCode.OUT_OF_RANGE.name:
                raise
            if (now := await self.revision()) < revision:
                raise HistoryLost(revision=now, expected=revision) from refusal

    async def status(self) -> Status:
        """The member at the endpoint that is used now."""
        reply = await self._caller.call(STATUS, pb.StatusRequest())
        return Status(
            endpoint=self._links.endpoint,
            version=reply.version,
            cluster_id=reply.header.cluster_id,
            member_id=reply.header.member_id,
            leader=reply.leader,
            revision=reply.header.revision,
            raft_term=reply.raftTerm,
            db_size=reply.dbSize,
            db_size_in_use=reply.dbSizeInUse,
            errors=tuple(reply.errors),
        )

    async def members(self) -> tuple[Member, ...]:
        """The members of the cluster."""
        reply = await self._caller.call(MEMBER_LIST, pb.MemberListRequest())
        return tuple(Member(m.ID, m.name, tuple(m.peerURLs), tuple(m.clientURLs)) for m in reply.members)

    async def alarms(self) -> tuple[Alarm, ...]:
        """The alarms that are on."""
        return await self._alarm(pb.AlarmRequest(action=pb.AlarmRequest.GET))

    async def disarm(self, alarm: Alarm) -> None:
        """Switch an alarm off, after its cause is gone."""
        off = pb.AlarmRequest.DEACTIVATE
        await self._alarm(pb.AlarmRequest(action=off, memberID=alarm.member_id, alarm=alarm.kind.value))

    async def defragment(self) -> None:
        """Give the space of the member at the endpoint that is used now back; it serves nothing meanwhile."""
        await self._caller.call(
            DEFRAGMENT,
            pb.DefragmentRequest(),
            timeout=_UPKEEP,
        )

    async def snapshot(self, path: Path, *, timeout: float = 600.0) -> int:
        """Save a snapshot of the store (for `etcdctl snapshot restore`) to `path`, mode 0600; returns its bytes.

        The file appears whole or not at all; a write under another name beside it comes first. It holds everything,
        secrets included. Raises StoreUnavailable when the stream breaks, OSError for the file.
        """
        draft, size = path.with_name(path.name + ".part"), 0
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                async for part in self.snapshot_parts(timeout=timeout):
                    size += len(part)
                    await asyncio.to_thread(file.write, part)
                await asyncio.to_thread(_sync, file)
            await asyncio.to_thread(draft.replace, path)
        finally:
            draft.unlink(missing_ok=True)
        return size

    async def snapshot_parts(self, *, timeout: float = 600.0) -> AsyncIterator[bytes]:
        """A snapshot of the store piece by piece. Raises StoreUnavailable when the stream breaks or ends early."""
        channel = await self._links.ready(time.monotonic() + self._caller.timeout)
        call: Any = SNAPSHOT.download(channel)(pb.SnapshotRequest(), timeout=timeout, metadata=HAS_LEADER)
        size, left = 0, 1
        try:
            async for part in call:
                size, left = size + len(part.blob), part.remaining_bytes
                yield part.blob
        except grpc.aio.AioRpcError as error:
            self._links.leave(channel)
            raise translate(error) or StoreUnavailable(f"the snapshot broke off: {error.code().name}") from error
        finally:
            call.cancel()
        if left or not size:
            raise StoreUnavailable("the snapshot ended early")

    # ---- inside

    async def _alarm(self, request: pb.AlarmRequest) -> tuple[Alarm, ...]:
        reply = await self._caller.call(ALARM, request)
        names = ((a.memberID, pb.AlarmMember.AlarmType.Name(a.alarm)) for a in reply.alarms)
        return tuple(Alarm(member, AlarmKind(name)) for member, name in names)

    async def _explain_revision(self, revision: int, refusal: StoreRefused) -> None:
        """Out of range is said of compacted and of future revisions alike; only the store's own one tells which."""
        if (now := await self.revision()) < revision:
            raise HistoryLost(revision=now, expected=revision) from refusal
        raise Compacted(0) from refusal

    async def _explain_txn(self, refusal: StoreRefused, *, size: int, longest: int) -> None:
        """Etcd's codes say less than its words, which are no interface: tell by what was sent and by the alarms."""
        exhausted = refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED.name
        if exhausted and any(a.kind is AlarmKind.NOSPACE for a in await self.alarms()):
            raise StoreFull(refusal.code, refusal.reason) from refusal
        invalid = refusal.code == grpc.StatusCode.INVALID_ARGUMENT.name
        if (exhausted or invalid) and (size > _LEAST_TXN_BYTES or longest > _LEAST_TXN_OPS):
            raise TxnTooLarge(operations=longest, size=size, reason=refusal.reason) from refusal
        if exhausted:  # a member that lags far behind what is committed; this passes
            raise StoreUnavailable(refusal.reason) from refusal


def _lease_id() -> int:
    return secrets.randbits(62) + 1


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
