"""A real controller without listeners: `controller.server.build` on the store in memory, called directly."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from controller import server
from controller.api.interceptors import typed
from controller.caller import Caller, set_caller
from controller.etcd import StoreError
from controller.server import Controller
from controller.sessions import Peer
from controller.settings import Settings
from tealnet.core import crl
from tealnet.core.identity import Identity, Kind
from tests.chaos.etcd import Link, Server
from tests.chaos.loop import Process, running
from tests.chaos.wire import Connection, ServerContext

_SERVICES = ("tenant", "network", "router", "port", "host", "split", "rollout", "group", "tier")
PATIENCE = 10.0  # seconds of a call


class Gone(Exception):
    """The replica ended before it answered."""


def _peer(context: Any) -> Peer:
    """Nobody checks certificates here."""
    return Peer(context.host, 3.9e9, 4e9, crl.NONE)


class SimReplica:
    """One life of a controller."""

    def __init__(self, name: str, store: Server, dice: random.Random, life: int) -> None:
        self.name = name
        self.process = Process(f"{name} ({life})")
        self.link = Link(store, dice)
        self.settings = Settings(
            replica=name, etcd=("http://memory:1",), metrics_listen="", lost_after=5, quarantine=0, join_listen=""
        )
        self.controller: Controller | None = None
        self.services: dict[str, Any] = {}
        self.failure: BaseException | None = None
        self.on_exit: Callable[[], None] = lambda: None  # it ended by itself, and is to be started again
        self.calls: set[asyncio.Future[Any]] = set()
        self.connections: set[Connection] = set()

    async def run(self) -> None:
        """As `controller.server.run`, until it is killed. That the store does not answer at the start is no bug."""
        try:
            controller = await server.build(self.settings, self.link)  # type: ignore[arg-type]
            controller.sessions.identify = _peer
            self.services = dict(zip(_SERVICES, (service for _, service in controller.api.servicers), strict=True))
            async with asyncio.TaskGroup() as group:
                for job in (controller.store, controller.replica, controller.questions, controller.observer):
                    group.create_task(job.run())
                await controller.replica.ready.wait()
                group.create_task(controller.chores.run())
                self.controller = controller
        except StoreError:
            self.kill()
            self.on_exit()
        except BaseException as error:
            self.failure = error

    @property
    def serves(self) -> bool:
        """It has listeners now."""
        return self.controller is not None and not self.process.is_dead

    # -- API

    async def call(self, service: str, method: str, request: Any) -> Any:
        """One call as an admin. Raises ApiError, Gone; TimeoutError if there is no answer."""
        loop = running()
        answer: asyncio.Future[Any] = loop.create_future()
        self.calls.add(answer)

        async def handle() -> None:
            now = loop.time()
            set_caller(Caller(Identity(Kind.ADMIN, ""), 3.9e9, 4e9, now + PATIENCE))
            try:
                result = await getattr(self.services[service], method)(request, None)
            except Exception as error:
                told = typed(error, method)
                if told is not error:
                    told.__cause__ = error
                if not answer.done():
                    answer.set_exception(told)
            else:
                if not answer.done():
                    answer.set_result(result)

        loop.spawn(self.process, handle())
        try:
            async with asyncio.timeout(PATIENCE + 5):
                return await answer
        finally:
            self.calls.discard(answer)

    # -- agents

    def connect(self, connection: Connection, host: str) -> None:
        """Serve a stream."""
        assert self.controller is not None
        connection.server = self.process
        self.connections.add(connection)
        context = ServerContext(connection, host)

        async def handle() -> None:
            assert self.controller is not None
            try:
                await self.controller.sessions._connect(None, context)  # type: ignore[arg-type]
            finally:
                self.connections.discard(connection)
                connection.down.put(None)

        connection.handler = running().spawn(self.process, handle())

    def kill(self) -> None:
        """-9: its connections are reset, its callers told."""
        running().kill(self.process)
        for connection in self.connections:
            running().later(0.001, connection.down.reset)
        for answer in self.calls:
            if not answer.done():
                answer.set_exception(Gone(self.name))
