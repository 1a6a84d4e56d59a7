"""The controller, put together: etcd → store → derived tables → sessions and API → listeners.

Everything runs in one task group; what ends unexpectedly ends the process, and starting again is always safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from wsgiref.simple_server import WSGIServer

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from controller.admission import Admission
from controller.api import Api, Errors, interceptors
from controller.api import build as build_api
from controller.api.admin import AdminService, AdminStore
from controller.api.fair import STREAMS
from controller.api.health import Health
from controller.api.policy import Parts as PolicyParts
from controller.api.policy import PolicyService
from controller.api.system import Parts, System
from controller.audit import AuditLog
from controller.audit.query import AuditQuery, iso
from controller.check import Check
from controller.chores import Chores
from controller.commit import Committer
from controller.derive import declare
from controller.etcd import Etcd, StoreError, StoreUnavailable, Tls
from controller.etcd.embedded import Durability, EmbeddedEtcd, Options
from controller.etcd.limits import check_version, max_txn_ops
from controller.etcd.restore import MARK
from controller.events import Events
from controller.metrics import Metrics
from controller.policy_reports import PolicyReports
from controller.questions import Questions
from controller.replica import Replica
from controller.rollouts.leader import Tools
from controller.rollouts.observer import Observer
from controller.sessions import SERVICE, Sessions
from controller.settings import Settings
from controller.status import Status
from controller.store import Store, bootstrap, new_history
from controller.sync import Sync
from controller.tls import Certificates, host_of
from controller.watch import Watches
from tealnet.core.pki import Ca
from tealnet.core.revoked import RevocationList
from tealnet.v1 import admin_pb2_grpc, security_pb2_grpc, system_pb2, system_pb2_grpc

log = structlog.get_logger()

GRACE = 2.0  # seconds that calls under way get at the end
STORE_PATIENCE = 2.0  # seconds for a call to an etcd of several members
_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", STREAMS),
    # With it, streams that a client had a right to open are refused now and then (measured with 1.85: 13 to 80 %).
    ("grpc.http.overload_protection", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),  # clients find out that a replica is silent
    ("grpc.http2.max_ping_strikes", 0),  # a server that was held up meets many at once: no reason to hang up
    ("grpc.keepalive_permit_without_calls", 1),
]
_NAMES = (
    "Tenant", "Network", "Router", "Port", "Host", "TrafficSplit", "Rollout", "SecurityGroup", "PolicyTier", "Policy",
    "System", "Admin",
)  # fmt: skip
_SERVICES = [
    SERVICE,
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    *(f"tealnet.v1.{name}Service" for name in _NAMES),
    reflection.SERVICE_NAME,
]


def version() -> str:
    """Of this program."""
    try:
        return metadata.version("tealnet")
    except metadata.PackageNotFoundError:
        return "0"


@dataclass(slots=True)
class Controller:
    """The parts of a running controller."""

    settings: Settings
    etcd: Etcd
    store: Store
    replica: Replica
    sessions: Sessions
    status: Status
    questions: Questions
    sync: Sync
    chores: Chores
    observer: Observer
    events: Events
    metrics: Metrics
    certificates: Certificates
    watches: Watches
    api: Api
    revoked: RevocationList
    audit: AuditLog
    audits: AuditQuery
    check: Check
    ports: list[int] = field(default_factory=list)  # of the TCP listeners, when it serves


@contextlib.asynccontextmanager
async def store_of(settings: Settings) -> AsyncIterator[Etcd]:
    """The etcd that the settings name; an embedded one runs until the end of the block."""
    async with contextlib.AsyncExitStack() as stack:
        if settings.is_embedded:
            durability = Durability.DISK if settings.etcd_fsync == "on" else Durability.MEMORY
            embedded = EmbeddedEtcd(Options(settings.data_dir / "etcd", durability=durability))
            await stack.enter_async_context(embedded)
            etcd = await stack.enter_async_context(Etcd([embedded.endpoint]))
            if (mark := settings.data_dir / "etcd" / MARK).exists():
                await new_history(etcd, settings.cluster)
                mark.unlink()
                log.warning("the store was restored: hosts wait until they are accepted")
            yield etcd
            return
        # With others to ask, an answer of one member that takes longer is not worth waiting for.
        yield await stack.enter_async_context(Etcd(settings.etcd, etcd_tls(settings), timeout=STORE_PATIENCE))


def etcd_tls(settings: Settings) -> Tls | None:
    """How to speak to an external etcd."""
    if not settings.etcd_ca:
        return None
    cert = Path(settings.etcd_cert) if settings.etcd_cert else None
    key = Path(settings.etcd_key) if settings.etcd_key else None
    return Tls(Path(settings.etcd_ca), cert, key)


async def build(settings: Settings, etcd: Etcd) -> Controller:
    """All parts, with the tables read. Raises StoreTooOld for an etcd of former times."""
    await check_members(etcd, settings)
    keys = await bootstrap(etcd, settings.cluster)
    replica = Replica(etcd, keys, settings.replica or secrets.token_hex(8))
    store = Store(etcd, keys, replica=replica.id)
    replica.seen = store.committed
    metrics, events = Metrics(), Events(etcd, keys)
    revoked = RevocationList(Path(settings.crl) if settings.crl else None, settings.ca)
    resources = declare(store.world, default_mtu=settings.default_mtu)
    sessions = Sessions(
        store,
        resources,
        replica=replica,
        admission=Admission(store, replica, events),
        metrics=metrics,
        identify=lambda context: host_of(context, settings.trust_domain, revoked),
        version=version(),
    )

    def synced_of(host_uid: str) -> int:
        session = sessions.by_host.get(host_uid)
        return session.synced if session else 0

    status = Status(store.world, resources, synced_of, default_mtu=settings.default_mtu)
    questions = Questions(store, replica)
    sync = Sync(store, sessions, questions)
    observer, max_ops = Observer(store, sessions, replica), await max_txn_ops(etcd)
    audit = audit_log(settings)

    def unasked(what: str, names: list[str], revision: int) -> None:
        entry = dict(time=iso(datetime.now(UTC)), replica=replica.id, who="controller", method=what)
        audit.write({**entry, "name": names[0], "objects": names, "revision": revision, "result": "OK"})

    store.unasked = unasked
    committer = Committer(store, max_ops=max_ops, on_lease_gone=events.forget)
    tools = Tools(store, sync, status, events, committer, observer, settings.rollout_urls)
    chores = Chores(tools, replica=replica, settings=settings)
    watches = Watches(store)
    ca = Ca.load(Path(settings.ca_key).parent) if settings.ca_key else None
    api = build_api(store, settings, status=status, ca=ca, max_ops=max_ops)
    await store.load()
    return Controller(
        settings=settings,
        etcd=etcd,
        store=store,
        replica=replica,
        sessions=sessions,
        status=status,
        questions=questions,
        sync=sync,
        chores=chores,
        observer=observer,
        events=events,
        metrics=metrics,
        certificates=Certificates(settings),
        watches=watches,
        api=api,
        revoked=revoked,
        audit=audit,
        audits=AuditQuery(store, questions, audit),
        check=Check(store, sessions, questions),
    )


async def check_members(etcd: Etcd, settings: Settings) -> None:
    """Every member that answers is new enough; one that does not is asked when this process starts the next time.

    Raises StoreTooOld, and StoreUnavailable if nobody answers.
    """
    await check_version(etcd)
    for endpoint in () if settings.is_embedded or len(settings.etcd) < 2 else settings.etcd:
        async with Etcd([endpoint], etcd_tls(settings), timeout=1.0) as one:
            with contextlib.suppress(StoreUnavailable):
                await check_version(one)


def audit_log(settings: Settings) -> AuditLog:
    """Where calls that write are noted."""
    where = settings.audit_file
    path = Path(where) if where else settings.data_dir / "audit.jsonl"
    return AuditLog(None if where == "off" else path, most=settings.audit_mib << 20)


async def run(settings: Settings, stop: asyncio.Event, started: asyncio.Future[Controller] | None = None) -> None:
    """Serve until `stop` is set; `started` is told when it serves. Raises what makes going on impossible."""
    async with store_of(settings) as etcd:
        # What is read at the start stays for long: the collector need not look at it, now or ever.
        gc.disable()
        controller = await build(settings, etcd)
        gc.freeze()
        gc.enable()

        def revoke() -> None:
            controller.sessions.revoke(controller.revoked.keys)

        async with asyncio.TaskGroup() as group:
            jobs = [
                group.create_task(controller.store.run(), name="store"),
                group.create_task(controller.replica.run(), name="replica"),
                group.create_task(controller.questions.run(), name="questions"),
                group.create_task(controller.observer.run(), name="observer"),
                group.create_task(controller.revoked.run(revoke), name="revocations"),
            ]
            await controller.replica.ready.wait()
            jobs.append(group.create_task(controller.chores.run(), name="chores"))
            async with _serving(controller):
                if started is not None:
                    started.set_result(controller)
                await stop.wait()
                log.info("stopping")
                with contextlib.suppress(TimeoutError):
                    await controller.sessions.close()
            for job in jobs:
                job.cancel()


@contextlib.asynccontextmanager
async def _serving(controller: Controller) -> AsyncIterator[None]:
    """The listeners."""
    settings, health = controller.settings, Health()
    server = await _api_server(controller, health)
    for address in settings.listen:
        if address.startswith("unix:"):
            with contextlib.suppress(FileNotFoundError):  # left by one that was killed
                os.unlink(address.removeprefix("unix:"))
        port = server.add_secure_port(address, controller.certificates.mutual())
        if not address.startswith("unix:"):
            controller.ports.append(port)
    servers = [server]
    if controller.api.join and settings.join_listen:
        servers.append(_join_server(controller))
    metrics = _metrics_server(controller)
    for one in servers:
        await one.start()
    health.say(word="SERVING")
    cluster_uid = controller.store.keys.cluster_uid
    log.info("serving", listen=settings.listen, replica=controller.replica.id, cluster_uid=cluster_uid)
    try:
        yield
    finally:
        health.say(word="NOT_SERVING")
        await asyncio.gather(*(one.stop(GRACE) for one in servers))
        if metrics is not None:
            await asyncio.to_thread(metrics.shutdown)
            metrics.server_close()


async def _api_server(controller: Controller, health: Health) -> grpc.aio.Server:
    """Everything for those who have a certificate."""
    settings = controller.settings
    around = interceptors(controller.store, settings, controller.audit, controller.revoked)
    server = grpc.aio.server(options=_OPTIONS, interceptors=around)
    server.add_generic_rpc_handlers((controller.sessions.handler(),))
    for add, servicer in controller.api.servicers:
        add(servicer, server)
    system = System(
        Parts(
            store=controller.store,
            status=controller.status,
            sync=controller.sync,
            watches=controller.watches,
            events=controller.events,
            presenter=controller.api.presenter,
            planner=controller.api.planner,
            members=lambda: etcd_members(controller.etcd, settings),
            version=version(),
            cluster=settings.cluster,
        )
    )
    system_pb2_grpc.add_SystemServiceServicer_to_server(system, server)
    endpoints = [controller.etcd.endpoint] if settings.is_embedded else settings.etcd
    store = AdminStore(controller.etcd, endpoints, etcd_tls(settings))
    admin = AdminService(store, audits=controller.audits, check=controller.check)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
    security_pb2_grpc.add_PolicyServiceServicer_to_server(_policy(controller), server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection(_SERVICES, server)
    return server


def _policy(controller: Controller) -> PolicyService:
    sessions = controller.sessions
    reports = PolicyReports(controller.store, sessions, controller.questions)
    return PolicyService(PolicyParts(controller.store, sessions.resources.of_hosts, sessions.origins, reports))


def _join_server(controller: Controller) -> grpc.aio.Server:
    """For those who want a certificate."""
    errors = Errors(controller.audit, replica=controller.replica.id)
    server = grpc.aio.server(options=_OPTIONS, interceptors=[errors])
    for add, servicer in controller.api.join:
        add(servicer, server)
    server.add_secure_port(controller.settings.join_listen, controller.certificates.anonymous())
    return server


def _metrics_server(controller: Controller) -> WSGIServer | None:
    settings, metrics, store = controller.settings, controller.metrics, controller.store
    if not settings.metrics_listen:
        return None
    metrics.stale.set_function(lambda: time.time() - since if (since := store.stale_since) else 0.0)
    metrics.low_water.set_function(lambda: controller.sessions.low_water)
    metrics.broken.set_function(lambda: len(store.broken))
    metrics.errors.set_function(lambda: len(store.graph.errors()))
    metrics.audit_lost.set_function(lambda: controller.audit.lost)
    metrics.unaccounted.set_function(
        lambda: sum(len(row.unaccounted) for row in list(store.world.host_status.rows.values()))
    )
    host, _, number = settings.metrics_listen.rpartition(":")
    server, _ = start_http_server(int(number), addr=host.strip("[]"), registry=metrics.registry)
    return server


async def etcd_members(etcd: Etcd, settings: Settings) -> list[system_pb2.EtcdMember]:
    """Every endpoint that is configured, asked by itself."""
    if settings.is_embedded:
        return [await _member(etcd)]

    async def ask(endpoint: str) -> system_pb2.EtcdMember:
        async with Etcd([endpoint], etcd_tls(settings), timeout=1.0) as one:
            try:
                return await _member(one)
            except StoreError:
                return system_pb2.EtcdMember(endpoint=endpoint)

    return await asyncio.gather(*map(ask, settings.etcd))


async def _member(etcd: Etcd) -> system_pb2.EtcdMember:
    status = await etcd.status()
    return system_pb2.EtcdMember(
        endpoint=status.endpoint,
        healthy=bool(status.leader) and not status.errors,
        version=status.version,
        db_size_bytes=status.db_size,
        leader=status.leader == status.member_id,
    )
