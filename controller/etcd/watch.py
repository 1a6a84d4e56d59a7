"""The lossless watch: every change of a range, once, in order, across failures of any endpoint.

Where to resume is known from events only: the last one's revision + 1. The revision in a response's header may be
ahead of the events of a watcher that catches up (on etcd 3.4.23 also in progress notifications, etcd-io/etcd#15220), so
it is never taken for "seen". It is only used to find a store that has gone back in time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import structlog

from controller.etcd import wire
from controller.etcd.calls import HAS_LEADER, WATCH, translate
from controller.etcd.errors import Compacted, HistoryLost, StoreRefused, StoreUnavailable
from controller.etcd.links import Links
from controller.etcd.types import Batch, Previous
from tealnet.etcdpb import etcd_pb2 as pb

log = structlog.get_logger()

_BACKOFF = 0.05, 1.0  # seconds between attempts to open the stream, first and longest


@dataclass(frozen=True, slots=True)
class Range:
    """What is watched, and whether with the values before each change."""

    start: bytes
    end: bytes
    previous: Previous


async def watch(
    links: Links,
    what: Range,
    *,
    from_revision: int,
    store_revision: Callable[[], Awaitable[int]],
    timeout: float,
    silent: asyncio.Event,
) -> AsyncGenerator[Batch, None]:
    """All changes of the range from `from_revision` on.

    `store_revision` is a linearizable read of the store's revision, `timeout` what opening the stream may take. Who
    knows of a change that does not come sets `silent`: the stream is then opened anew, at another endpoint.
    Raises Compacted, HistoryLost and StoreRefused (etcd ended the watch for good). Unreachable endpoints are waited
    for.
    """
    if from_revision < 1:
        raise ValueError("a watch needs the revision to begin with: the one of a scan, plus 1")
    following, cluster, pause = from_revision, 0, _BACKOFF[0]
    while True:
        channel = None
        try:
            channel = await links.ready(time.monotonic() + timeout)
            silent.clear()
            async with _Stream(channel, what, silent) as stream:
                header = await stream.open(following, timeout)
                if cluster not in (0, header.cluster_id):
                    raise HistoryLost(revision=header.revision, expected=following - 1)
                cluster = header.cluster_id
                if header.revision < following - 1:
                    await _same_history(store_revision, expected=following - 1)
                while batch := await stream.batch():
                    if batch.events[0].kv.mod_revision < following:
                        raise HistoryLost(revision=batch.events[0].kv.mod_revision, expected=following)
                    following, pause = batch.revision + 1, _BACKOFF[0]
                    yield batch
        except grpc.aio.AioRpcError as error:
            if refusal := translate(error):
                raise refusal from error
            log.info("etcd watch interrupted", code=error.code().name, text=error.details(), next_revision=following)
        except asyncio.CancelledError:
            if not silent.is_set() or _is_cancelled():
                raise
            log.warning("etcd watch is silent although there are changes", next_revision=following)
        except (StoreUnavailable, TimeoutError, asyncio.InvalidStateError):  # the last: the stream ended before a write
            log.info("etcd watch waits for an endpoint", next_revision=following)
        if channel is not None:
            links.leave(channel)
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, _BACKOFF[1])


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _same_history(store_revision: Callable[[], Awaitable[int]], *, expected: int) -> None:
    """A member may lag behind what another one told; the store itself may not."""
    revision = await store_revision()
    if revision < expected:
        raise HistoryLost(revision=revision, expected=expected)


class _Stream:
    """One watch on one stream to one endpoint."""

    def __init__(self, channel: grpc.aio.Channel, what: Range, silent: asyncio.Event) -> None:
        self._what, self._silent = what, silent
        self._call: Any = WATCH.stream(channel)(metadata=HAS_LEADER)

    async def __aenter__(self) -> _Stream:
        self._watchdog = asyncio.create_task(self._end_if_silent(), name="watchdog of an etcd watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self._call.cancel()

    async def _end_if_silent(self) -> None:
        await self._silent.wait()
        self._call.cancel()  # a read under way ends as cancelled, although its task is not

    async def open(self, revision: int, timeout: float) -> pb.ResponseHeader:
        """Ask for the watch; returns the header of etcd's consent."""
        create = pb.WatchCreateRequest(
            key=self._what.start,
            range_end=self._what.end,
            start_revision=revision,
            prev_kv=self._what.previous is Previous.INCLUDE,
            fragment=True,
        )
        async with asyncio.timeout(timeout):
            await self._call.write(pb.WatchRequest(create_request=create))
            answer = await self._read()
        if answer is None or not answer.created:
            raise StoreUnavailable("etcd did not open the watch")
        return answer.header

    async def batch(self) -> Batch | None:
        """The next changes with all fragments joined; None at the end of the stream."""
        events: list[pb.Event] = []
        while answer := await self._read():
            events.extend(answer.events)
            if events and not answer.fragment:
                return wire.batch(events)
        return None

    async def _read(self) -> pb.WatchResponse | None:
        answer = await self._call.read()
        if not isinstance(answer, pb.WatchResponse):
            return None  # the end of the stream
        if answer.compact_revision:
            raise Compacted(answer.compact_revision)
        if answer.canceled:
            raise StoreRefused("CANCELLED", answer.cancel_reason or "the watch was cancelled")
        return answer
