"""One unary call to etcd: deadline, failover, and what an error means."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar, cast

import grpc
import grpc.aio
import structlog
from google.protobuf.message import Message

from controller.etcd.errors import LeaseNotFound, OutcomeUnknown, StoreError, StoreRefused, StoreUnavailable
from controller.etcd.links import Links
from tealnet.etcdpb import etcd_pb2 as pb

log = structlog.get_logger()

HAS_LEADER = (("hasleader", "true"),)
"""Asks a member that has lost its leader to refuse at once (and to end streams) instead of serving what it has."""

Answer = TypeVar("Answer", bound=Message)

_REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}
_TRY = 0.7  # seconds one endpoint gets to answer while there are others
_BACKOFF = 0.02, 0.5  # seconds, first and longest


def _encode(message: Message) -> bytes:
    return message.SerializeToString()  # not Message.SerializeToString itself: the base class encodes to nothing


@dataclass(frozen=True, slots=True)
class Method(Generic[Answer]):
    """A method of etcd by its full name, and what it answers.

    Made into a call by hand instead of by the generated stubs, which are untyped and make all methods of a service anew
    for each channel.
    """

    name: str
    answer: type[Answer]

    def unary(self, channel: grpc.aio.Channel) -> Any:
        """One request, one answer."""
        return channel.unary_unary(self.name, request_serializer=_encode, response_deserializer=self.answer.FromString)

    def download(self, channel: grpc.aio.Channel) -> Any:
        """One request, a stream of answers."""
        return channel.unary_stream(self.name, request_serializer=_encode, response_deserializer=self.answer.FromString)

    def stream(self, channel: grpc.aio.Channel) -> Any:
        """A stream both ways."""
        return channel.stream_stream(
            self.name, request_serializer=_encode, response_deserializer=self.answer.FromString
        )


RANGE = Method("/etcdserverpb.KV/Range", pb.RangeResponse)
TXN = Method("/etcdserverpb.KV/Txn", pb.TxnResponse)
COMPACT = Method("/etcdserverpb.KV/Compact", pb.CompactionResponse)
WATCH = Method("/etcdserverpb.Watch/Watch", pb.WatchResponse)
LEASE_GRANT = Method("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantResponse)
LEASE_REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeResponse)
LEASE_KEEP_ALIVE = Method("/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveResponse)
LEASE_TIME_TO_LIVE = Method("/etcdserverpb.Lease/LeaseTimeToLive", pb.LeaseTimeToLiveResponse)
MEMBER_LIST = Method("/etcdserverpb.Cluster/MemberList", pb.MemberListResponse)
ALARM = Method("/etcdserverpb.Maintenance/Alarm", pb.AlarmResponse)
STATUS = Method("/etcdserverpb.Maintenance/Status", pb.StatusResponse)
DEFRAGMENT = Method("/etcdserverpb.Maintenance/Defragment", pb.DefragmentResponse)
SNAPSHOT = Method("/etcdserverpb.Maintenance/Snapshot", pb.SnapshotResponse)


class Effect(Enum):
    """Whether a call may be sent twice."""

    REPEATABLE = "repeatable"
    ONCE = "once"


def translate(error: grpc.aio.AioRpcError) -> StoreError | None:
    """The refusal that an RPC error is; None if it does not say whether anything was done."""
    code, reason = error.code(), error.details() or ""
    if code not in _REFUSED:
        return None
    if code is grpc.StatusCode.NOT_FOUND:  # etcd says this of leases only, in the methods used here
        return LeaseNotFound(code.name, reason)
    return StoreRefused(code.name, reason)


class Caller:
    """Makes unary calls over whichever endpoint answers."""

    def __init__(self, links: Links, *, timeout: float) -> None:
        self.links = links
        self.timeout = timeout

    async def call(
        self,
        method: Method[Answer],
        request: Message,
        *,
        effect: Effect = Effect.REPEATABLE,
        timeout: float | None = None,
    ) -> Answer:
        """Send `request` and return the answer, within `timeout` seconds (default: the client's).

        A repeatable call goes on to other endpoints until the deadline; then StoreUnavailable. One that must not be
        sent twice raises OutcomeUnknown if it was sent and not answered, StoreUnavailable if it never left.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        pause = _BACKOFF[0]
        while True:
            channel = await self.links.ready(deadline)
            left = max(deadline - time.monotonic(), 0.001)
            several = len(self.links) > 1 and timeout is None
            try:
                send = method.unary(channel)
                return cast(
                    Answer, await send(request, timeout=min(left, _TRY) if several else left, metadata=HAS_LEADER)
                )
            except grpc.aio.AioRpcError as error:
                if refusal := translate(error):
                    raise refusal from error
                self.links.leave(channel)
                log.debug("etcd call failed", method=method.name, code=error.code().name, text=error.details())
                if effect is Effect.ONCE:
                    raise OutcomeUnknown(f"etcd did not answer a write: {error.code().name}") from error
                if time.monotonic() + pause >= deadline:
                    raise StoreUnavailable(f"etcd did not answer in time: {error.code().name}") from error
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, _BACKOFF[1])
