"""The controller, put together: etcd → store → derived tables → sessions and API → listeners.

Everything runs in one task group; what ends unexpectedly ends the process, and starting again is always safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from controller.admission import Admission
from controller.chores import Chores
from controller.derive import declare
from controller.etcd import Etcd, Tls
from controller.etcd.embedded import Durability, EmbeddedEtcd, Options
from controller.events import Events
from controller.metrics import Metrics
from controller.replica import Replica
from controller.sessions import SERVICE, Sessions
from controller.settings import Settings
from controller.status import Status
from controller.store import Store, bootstrap
from controller.sync import Sync
from controller.tls import Certificates, host_of

log = structlog.get_logger()

GRACE = 2.0  # seconds that calls under way get at the end
_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.so_reuseport", 0),
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
    sync: Sync
    chores: Chores
    events: Events
    metrics: Metrics
    certificates: Certificates
    ports: list[int] = field(default_factory=list)  # of the TCP listeners, when it serves


@contextlib.asynccontextmanager
async def _etcd(settings: Settings) -> AsyncIterator[Etcd]:
    async with contextlib.AsyncExitStack() as stack:
        if settings.is_embedded:
            durability = Durability.DISK if settings.etcd_fsync == "on" else Durability.MEMORY
            embedded = EmbeddedEtcd(Options(settings.data_dir / "etcd", durability=durability))
            await stack.enter_async_context(embedded)
            yield await stack.enter_async_context(Etcd([embedded.endpoint]))
            return
        tls = None
        if settings.etcd_ca:
            cert = Path(settings.etcd_cert) if settings.etcd_cert else None
            key = Path(settings.etcd_key) if settings.etcd_key else None
            tls = Tls(Path(settings.etcd_ca), cert, key)
        yield await stack.enter_async_context(Etcd(settings.etcd, tls))


async def build(settings: Settings, etcd: Etcd) -> Controller:
    """All parts, with the tables read."""
    keys = await bootstrap(etcd, settings.cluster)
    replica = Replica(etcd, keys, settings.replica or secrets.token_hex(8))
    store = Store(etcd, keys, replica=replica.id)
    metrics, events = Metrics(), Events(etcd, keys)
    resources = declare(store.world, default_mtu=settings.default_mtu)
    sessions = Sessions(
        store,
        resources,
        replica=replica,
        admission=Admission(store, replica, events),
        metrics=metrics,
        identify=lambda context: host_of(context, settings.trust_domain),
        version=version(),
    )

    def synced_of(host_uid: str) -> int:
        session = sessions.by_host.get(host_uid)
        return session.synced if session else 0

    status = Status(store.world, resources, synced_of)
    sync = Sync(store, sessions, replica)
    chores = Chores(store, sync, replica=replica, events=events, settings=settings)
    await store.load()
    return Controller(
        settings=settings,
        etcd=etcd,
        store=store,
        replica=replica,
        sessions=sessions,
        status=status,
        sync=sync,
        chores=chores,
        events=events,
        metrics=metrics,
        certificates=Certificates(settings),
    )


async def run(settings: Settings, stop: asyncio.Event, started: asyncio.Future[Controller] | None = None) -> None:
    """Serve until `stop` is set; `started` is told when it serves. Raises what makes going on impossible."""
    async with _etcd(settings) as etcd:
        controller = await build(settings, etcd)
        # What was read at the start stays for long: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        async with asyncio.TaskGroup() as group:
            jobs = [
                group.create_task(controller.store.run(), name="store"),
                group.create_task(controller.replica.run(), name="replica"),
                group.create_task(controller.sync.run(), name="sync"),
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
    settings = controller.settings
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((controller.sessions.handler(),))
    names = [SERVICE]
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection([*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name], server)
    credentials = controller.certificates.mutual()
    for address in settings.listen:
        if address.startswith("unix:"):
            with contextlib.suppress(FileNotFoundError):  # left by one that was killed
                os.unlink(address.removeprefix("unix:"))
        port = server.add_secure_port(address, credentials)
        if not address.startswith("unix:"):
            controller.ports.append(port)
    metrics = None
    if settings.metrics_listen:
        host, _, number = settings.metrics_listen.rpartition(":")
        metrics, _ = start_http_server(int(number), addr=host, registry=controller.metrics.registry)
    await server.start()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    log.info(
        "serving", listen=settings.listen, replica=controller.replica.id, cluster=controller.store.keys.cluster_uid
    )
    try:
        yield
    finally:
        await health.enter_graceful_shutdown()
        await server.stop(GRACE)
        if metrics is not None:
            metrics.shutdown()
            metrics.server_close()
