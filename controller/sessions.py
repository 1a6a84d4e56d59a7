"""All sessions of this replica, and the service that opens them.

Every batch of the store is followed here first: resources are collected once, and the sessions that have a changed
scope are told which keys changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Container
from typing import Any, NamedTuple

import grpc
import grpc.aio
import structlog

from controller.admission import Admission, Refusal
from controller.etcd import StoreError
from controller.line import Line
from controller.metrics import Metrics
from controller.replica import Replica
from controller.resources import Resources
from controller.rule_counts import Denials
from controller.rule_origins import Origins
from controller.session import Session, SessionOver
from controller.store import Change, Store
from controller.turns import Turns
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.crl import Revoked
from tealnet.store.v1 import store_pb2

log = structlog.get_logger()

SERVICE = "tealnet.agent.v1.AgentService"
_HELLO = 5.0  # seconds until the first message must have come
_CLOSE = 3.0  # seconds that ending all sessions, or one agent's leave-taking, may take


class Peer(NamedTuple):
    """Who opened a stream: a host's name, when its certificate was issued and ends (Unix time), and which one it is."""

    host: str
    issued: float
    ends: float
    certificate: Revoked


Identify = Callable[[grpc.aio.ServicerContext[Any, Any]], Peer]
"""Reads a peer's certificate; raises Refusal if it is not a host's."""


class Sessions:
    """The sessions of one replica."""

    def __init__(
        self,
        store: Store,
        resources: Resources,
        *,
        replica: Replica,
        admission: Admission,
        metrics: Metrics,
        identify: Identify,
        version: str,
    ) -> None:
        self.store, self.resources, self.replica = store, resources, replica
        self.admission, self.metrics, self.identify, self.version = admission, metrics, identify, version
        self.by_host: dict[str, Session] = {}
        self.origins = Origins(store.world, resources.security)
        self.denials = Denials(store.world, self.origins.of_identity)
        self._by_scope: dict[str, set[Session]] = {}
        self._peers: dict[Session, Peer] = {}
        self._turns = Turns()
        self._ends: dict[Session, asyncio.TimerHandle] = {}  # of certificates
        self._moved = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._revision = store.revision
        store.subscribe(self._follow)
        replica.renewed.append(self._reclaim)
        replica.describe = self.describe

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service for a server; answers are bytes, because resources are encoded once for all sessions."""
        connect = grpc.stream_stream_rpc_method_handler(
            self._connect, request_deserializer=pb.FromAgent.FromString, response_serializer=None
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Connect": connect})

    @property
    def low_water(self) -> int:
        """The lowest revision that all sessions are synced to."""
        return min((session.synced for session in self.by_host.values()), default=self.store.revision)

    async def progress(self) -> None:
        """Wait until some session has come further (or came, or went)."""
        await self._moved.wait()

    def pulse(self) -> None:
        """Some session has come further."""
        self._moved.set()
        self._moved = asyncio.Event()

    def describe(self) -> store_pb2.ReplicaRow:
        """This replica, for others."""
        return store_pb2.ReplicaRow(low_water=self.low_water, version=self.version, sessions=len(self.by_host))

    # ---- following the store

    def _follow(self, revision: int, changes: list[Change]) -> None:
        start = time.perf_counter()
        # A batch may hold several commits: its keys may have become dirty at the first of them.
        since, self._revision = self._revision + 1, revision
        # Hosts with ports to plug first: theirs is the longer way.
        for scope, keys in sorted(self.resources.collect().items(), key=lambda item: not item[0].startswith("host/")):
            flips = any(key.startswith("weights/") for key in keys)
            for member in self._by_scope.get(scope, ()):
                member.changed(since, scope, keys)
                if flips:
                    member.hurry()
        for host_uid in self.resources.rescoped:
            if session := self.by_host.get(host_uid):
                came, went = session.rescoped(since)
                for scope in came:
                    self._by_scope.setdefault(scope, set()).add(session)
                self._leave(session, went)
        for change in changes:
            self._tell(since, change)
        self.pulse()
        self.metrics.revision.set(revision)
        self.metrics.settle.observe(time.perf_counter() - start)

    def _tell(self, since: int, change: Change) -> None:
        """What concerns one session beside its resources."""
        match change.table:
            case "sessions":
                if session := self.by_host.get(str(change.key)):
                    self._check_key(session)
            case "host_status":
                if session := self.by_host.get(str(change.key)):
                    session.accepted(since)
            case "tombstones":
                if change.new and (session := self.by_host.get(change.new.host_uid)):
                    session.tombstones_changed()
            case "hosts":
                self._host_changed(change)
            case "ports":
                if change.new and change.old and change.new.spec.host != change.old.spec.host:
                    host = self.store.world.hosts.rows.get(change.new.spec.host)
                    if host and (session := self.by_host.get(host.uid)):
                        session.report.bound(change.new.uid)

    def _check_key(self, session: Session) -> None:
        """The session key is there and this session's; one that went is written again."""
        found = self.store.world.sessions.rows.get(session.host_uid)
        if found is None:
            if self.replica.ready.is_set():  # otherwise when there is a lease again
                self._spawn(session.reclaim())
        elif found.session != store_pb2.Session.FromString(session.key_value).session:
            session.end("replaced", Refusal("Replaced", "this host has a newer session"))

    def _host_changed(self, change: Change) -> None:
        session = self.by_host.get((change.new or change.old).uid)
        if session is None:
            return
        if change.new is None or change.new.uid != session.host_uid:
            session.end("host deleted", Refusal("UnknownHost", "the host was deleted", retry_after_ms=5000))
        elif change.new.spec.fenced:
            session.end("fenced", Refusal("Fenced", "the host is fenced", retry_after_ms=10_000))
        elif change.new.spec.vtep != session.admitted.vtep:
            session.end("tunnel address changed", Refusal("VtepMismatch", "the Host object has another vtep"))
        elif self._peers[session].issued < change.new.spec.revoked_before:
            session.end("revoked", Refusal("Revoked", "the certificate is revoked", retry_after_ms=10_000))

    def revoke(self, certificates: Container[Revoked]) -> None:
        """End the sessions that were opened with one of these."""
        for session, peer in self._peers.items():
            if peer.certificate in certificates:
                text = "the certificate is on the revocation list"
                session.end("revoked", Refusal("Revoked", text, retry_after_ms=10_000))

    def _reclaim(self) -> None:
        for session in self.by_host.values():
            self._spawn(session.reclaim())

    # ---- the service

    async def _connect(self, _: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        line = Line(context)
        try:
            await self._serve(line, context)
        finally:
            line.close()

    async def _serve(self, line: Line, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            hello = await self._hello(line)
            peer = self.identify(context)
            session = await self._open(peer, hello, line)
        except Refusal as refusal:
            await self._refuse(line, refusal)
            return
        except StoreError as error:
            await self._refuse(line, Refusal("NotReady", f"the store does not answer: {error}"))
            return
        reason, told = "cancelled", None
        try:
            await session.run()
        except* SessionOver as group:
            over = group.exceptions[0]
            assert isinstance(over, SessionOver)
            reason, told = over.reason, over.refusal
        except* StoreError as errors:
            reason = f"store: {errors.exceptions[0]}"
        finally:
            self._remove(session, reason)
        if told:
            await self._refuse(line, told)

    async def _hello(self, line: Line) -> pb.Hello:
        try:
            async with asyncio.timeout(_HELLO):
                first = await line.read()
        except TimeoutError:
            raise Refusal("Protocol", "no Hello") from None
        if first is None or first.WhichOneof("message") != "hello":
            raise Refusal("Protocol", "the first message is not Hello")
        hello: pb.Hello = first.hello
        return hello

    async def _open(self, peer: Peer, hello: pb.Hello, line: Line) -> Session:
        admitted = await self.admission.admit(peer.host, peer.issued, hello)
        if old := self.by_host.get(admitted.host.uid):
            old.end("replaced")
        session = Session(
            store=self.store,
            resources=self.resources,
            replica=self.replica,
            metrics=self.metrics,
            admitted=admitted,
            hello=hello,
            line=line,
            progressed=self.pulse,
            turns=self._turns,
            denied=self.denials.take,
        )
        try:
            if await self.admission.settled(admitted, hello):
                session.report.began_anew()
        except BaseException:
            self._spawn(session.report.close(hello.revision))
            raise
        session.begin()
        self._peers[session] = peer
        over = Refusal("Revoked", "the certificate has ended")
        left = peer.ends - time.time()
        self._ends[session] = asyncio.get_running_loop().call_later(left, session.end, "certificate ended", over)
        self.by_host[session.host_uid] = session
        self._check_key(session)  # it may have gone, or have become another's, since it was claimed
        for scope in session.outbox.scopes:
            self._by_scope.setdefault(scope, set()).add(session)
        self.metrics.sessions.set(len(self.by_host))
        log.info("session opened", host=session.name, revision=hello.revision, scopes=len(session.outbox.scopes))
        return session

    def _remove(self, session: Session, reason: str) -> None:
        synced = session.synced
        if self.by_host.get(session.host_uid) is session:
            del self.by_host[session.host_uid]
        self._leave(session, session.outbox.scopes)
        self._peers.pop(session, None)
        if timer := self._ends.pop(session, None):
            timer.cancel()
        self.metrics.sessions.set(len(self.by_host))
        log.info("session closed", host=session.name, reason=reason, synced=synced)
        self._spawn(session.report.close(synced))
        self.pulse()

    def _leave(self, session: Session, scopes: set[str]) -> None:
        for scope in scopes:
            if members := self._by_scope.get(scope):
                members.discard(session)
                if not members:
                    del self._by_scope[scope]

    async def _refuse(self, line: Line, refusal: Refusal) -> None:
        self.metrics.refused.labels(refusal.reason).inc()
        log.info("session refused", reason=refusal.reason, text=refusal.text)
        message = pb.Refused(reason=refusal.reason, text=refusal.text, retry_after_ms=refusal.retry_after_ms)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE):
                await line.write(pb.ToAgent(refused=message).SerializeToString())
                # The agent is to end the stream: if we did, while it is writing, gRPC would lose our words on its side.
                while await line.read() is not None:
                    pass

    def _spawn(self, work: Any) -> None:
        """Clean-up that must outlive the stream it belongs to."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End all sessions and give their keys up."""
        for session in list(self.by_host.values()):
            session.end("controller stops", Refusal("NotReady", "this replica stops", retry_after_ms=50))
        async with asyncio.timeout(_CLOSE):
            while self.by_host or self._closing:
                await self.progress()
                if self._closing:
                    await asyncio.wait(self._closing)
