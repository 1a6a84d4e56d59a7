"""A lease that this process keeps alive, and that knows when it can no longer promise to hold it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import TracebackType
from typing import Any

import grpc
import grpc.aio
import structlog

from controller.etcd.calls import HAS_LEADER, LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE, Caller
from controller.etcd.errors import LeaseNotFound, StoreError, StoreRefused, StoreUnavailable
from tealnet.etcdpb import etcd_pb2 as pb

log = structlog.get_logger()

_SHARE = 5  # a lease is renewed five times in its life: every second for a TTL of 5 s
_PAUSE = 0.1  # seconds between two attempts to open a stream


class Lease:
    """A lease kept alive by a task until `close`.

    `lost` is set when etcd says that it is gone, or when no renewal was confirmed for a whole TTL: counted from when
    the last confirmed renewal was *sent*, so here it ends before it ends in etcd. Once set it stays set; whoever needs
    a lease again takes a new one. Use as `async with await etcd.lease(5) as lease: ...`.
    """

    def __init__(self, caller: Caller, lease_id: int, *, ttl: float, sent: float) -> None:
        self.id = lease_id
        self.ttl = ttl
        self.lost = asyncio.Event()
        self._caller = caller
        self._until = sent + ttl
        self._task = asyncio.create_task(self._keep(), name=f"lease {lease_id:x}")

    async def __aenter__(self) -> Lease:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop renewing and revoke, which deletes the keys on it; if etcd can't be reached it runs out by itself."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        with contextlib.suppress(StoreError):
            await revoke(self._caller, self.id, timeout=min(self.ttl, self._caller.timeout))

    async def _keep(self) -> None:
        try:
            async with asyncio.timeout(None) as end:
                while True:
                    # The timeout ends whatever waits inside, so a silent endpoint can't outlive the lease.
                    end.reschedule(asyncio.get_running_loop().time() + self._until - time.monotonic())
                    await self._renew_on_one_endpoint(end)
                    await asyncio.sleep(_PAUSE)
        except TimeoutError:
            log.warning("etcd lease not renewed in time", lease=f"{self.id:x}", ttl=self.ttl)
        except LeaseNotFound:
            log.warning("etcd lease is gone", lease=f"{self.id:x}", ttl=self.ttl)
        self.lost.set()

    async def _renew_on_one_endpoint(self, end: asyncio.Timeout) -> None:
        """Renew until the endpoint fails."""
        patience = max(self.ttl / _SHARE * 2, 0.5)
        try:
            channel = await self._caller.links.ready(time.monotonic() + patience)
        except StoreUnavailable:
            return
        call: Any = LEASE_KEEP_ALIVE.stream(channel)(metadata=HAS_LEADER)
        try:
            while True:
                sent = time.monotonic()
                async with asyncio.timeout(patience):
                    answer = await self._renew(call)
                if answer is None:
                    break
                if answer.TTL <= 0:
                    raise LeaseNotFound("NOT_FOUND", "lease expired or revoked")
                self._until = sent + answer.TTL
                end.reschedule(asyncio.get_running_loop().time() + self._until - time.monotonic())
                await asyncio.sleep(self.ttl / _SHARE)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as error:
            if time.monotonic() >= self._until:
                raise TimeoutError from error
            log.info("etcd lease renewal interrupted", lease=f"{self.id:x}", error=type(error).__name__)
        finally:
            call.cancel()
        self._caller.links.leave(channel)

    async def _renew(self, call: Any) -> pb.LeaseKeepAliveResponse | None:
        await call.write(pb.LeaseKeepAliveRequest(ID=self.id))
        answer = await call.read()  # the write raises InvalidStateError when the stream has ended before it
        return answer if isinstance(answer, pb.LeaseKeepAliveResponse) else None


async def grant(caller: Caller, *, ttl: int, lease_id: int) -> int:
    """Take a lease of at least `ttl` seconds under an id of the caller's choice; returns the TTL that etcd gives.

    The caller chose the id (63 bits at random), so a repeated request that finds it there has found its own.
    """
    request = pb.LeaseGrantRequest(TTL=ttl, ID=lease_id)
    try:
        answer = await caller.call(LEASE_GRANT, request)
    except StoreRefused as refusal:
        if refusal.code != grpc.StatusCode.FAILED_PRECONDITION.name:
            raise
        return ttl
    return answer.TTL


async def revoke(caller: Caller, lease_id: int, *, timeout: float | None = None) -> None:
    """End a lease and delete its keys; one that is already gone is fine."""
    request = pb.LeaseRevokeRequest(ID=lease_id)
    with contextlib.suppress(LeaseNotFound):
        await caller.call(LEASE_REVOKE, request, timeout=timeout)
