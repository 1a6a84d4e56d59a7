"""A controller's end of the stream over real gRPC with mutual TLS, which sends what a test tells it to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.agent.v1 import agent_pb2_grpc
from tealnet.core.pki import Ca
from tests.fakes.controller import FakeController

CLUSTER = "c" * 32
SERVER_NAME = "controller"
PING_EVERY = 0.3


@dataclass
class Guest:
    """One host as the server knows it."""

    uid: str
    number: int
    vtep: str
    world: dict[str, dict[str, bytes]] = field(default_factory=dict)
    proofs: set[str] = field(default_factory=set)
    hellos: list[pb.Hello] = field(default_factory=list)
    ack: pb.Ack | None = None
    facts: pb.Facts | None = None
    taken: list[pb.Taken] = field(default_factory=list)
    observed: pb.Observed | None = None
    heard: tuple[int, int] = (0, 0)  # when the last ping was sent and came
    outbox: asyncio.Queue[pb.ToAgent | None] | None = None
    controller: FakeController = field(default_factory=FakeController)


class FakeServer(agent_pb2_grpc.AgentServiceServicer):
    """Use as `async with`. `guests` by host name; `publish` sends each what its world says now."""

    def __init__(self, ca: Ca, target: str) -> None:
        self.guests: dict[str, Guest] = {}
        self.silent = False
        self.refuse: pb.Refused | None = None
        self.revision = 1000
        self._ca, self._target = ca, target
        self.leaf = ca.issue("controller", dns=(SERVER_NAME,))
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> FakeServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        leaf = self.leaf
        credentials = grpc.ssl_server_credentials(
            [(leaf.key_pem, leaf.cert_pem)], root_certificates=self._ca.cert_pem, require_client_auth=True
        )
        self._server = grpc.aio.server()
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server)
        self._server.add_secure_port(self._target, credentials)
        await self._server.start()

    async def stop(self) -> None:
        for guest in self.guests.values():
            if guest.outbox is not None:
                guest.outbox.put_nowait(None)
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    def publish(self, *names: str, proofs: Iterable[str] = ()) -> int:
        """Send each (or these) its world; returns the revision."""
        self.revision += 1
        for name in names or self.guests:
            guest = self.guests[name]
            guest.proofs |= set(proofs)
            if guest.outbox is not None:
                self._send(guest)
        return self.revision

    def _send(self, guest: Guest, *, whole: bool = False) -> None:
        guest.controller.revision = self.revision - 1
        gone = {key for key in guest.proofs if key not in guest.world.get("host", {})}
        scopes = guest.world.keys() if whole else ()
        assert guest.outbox is not None
        for part in guest.controller.unit(guest.world, proofs=gone, whole=scopes):
            guest.outbox.put_nowait(pb.ToAgent(update=part))

    async def until(self, condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
        """Wait until something that agents have said makes it true."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not within {seconds:g} s: {what}") from None

    async def applied(self, revision: int, *names: str, seconds: float = 20.0) -> dict[str, Mapping[str, str]]:
        """Wait for the Acks of a revision; returns failures by host: key → reason."""
        for name in names or self.guests:
            guest = self.guests[name]
            await self.until(
                lambda guest=guest: guest.ack is not None and guest.ack.revision >= revision,  # type: ignore[misc]
                f"{name} has applied {revision}, it is at {guest.ack}",
                seconds,
            )
        return {
            name: {failure.key: failure.reason for failure in guest.ack.failures} if guest.ack else {}
            for name, guest in self.guests.items()
        }

    async def Connect(self, requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        names = context.auth_context()["x509_subject_alternative_name"]
        name = next(n.decode().rpartition("/")[2] for n in names if b"/host/" in n)
        guest = self.guests[name]
        if self.refuse is not None:
            await context.write(pb.ToAgent(refused=self.refuse))
            return
        outbox: asyncio.Queue[pb.ToAgent | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(guest, requests, outbox))
        pinger = asyncio.create_task(self._ping(guest, outbox))
        try:
            while (message := await outbox.get()) is not None:
                if not self.silent:
                    await context.write(message)
        finally:
            guest.outbox = None if guest.outbox is outbox else guest.outbox
            reader.cancel()
            pinger.cancel()

    async def _ping(self, guest: Guest, outbox: asyncio.Queue[pb.ToAgent | None]) -> None:
        while True:
            await asyncio.sleep(PING_EVERY)
            sent, came = guest.heard
            ping = pb.Ping(number=1, sent_at=time.time_ns(), echo_sent_at=sent, echo_received_at=came)
            outbox.put_nowait(pb.ToAgent(ping=ping))

    def observe(self, name: str, wanted: pb.Observe) -> None:
        """Say what this host is to report."""
        guest = self.guests[name]
        assert guest.outbox is not None
        guest.observed = None
        guest.outbox.put_nowait(pb.ToAgent(observe=wanted))

    async def _read(self, guest: Guest, requests: Any, outbox: asyncio.Queue[pb.ToAgent | None]) -> None:
        try:
            async for message in requests:
                if message.HasField("hello"):
                    self._greet(guest, message.hello, outbox)
                elif message.HasField("ack"):
                    guest.ack = message.ack
                elif message.HasField("taken"):
                    guest.taken.append(message.taken)
                elif message.HasField("observed"):
                    guest.observed = message.observed
                elif message.HasField("ping"):
                    guest.heard = message.ping.sent_at, time.time_ns()
                elif message.HasField("facts"):
                    guest.facts = message.facts
                self._changed.set()
        finally:
            outbox.put_nowait(None)

    def _greet(self, guest: Guest, hello: pb.Hello, outbox: asyncio.Queue[pb.ToAgent | None]) -> None:
        guest.hellos.append(hello)
        guest.outbox = outbox
        welcome = pb.Welcome(
            cluster_uid=CLUSTER,
            lineage=guest.controller.lineage,
            host_uid=guest.uid,
            host_number=guest.number,
            vtep=guest.vtep,
        )
        outbox.put_nowait(pb.ToAgent(welcome=welcome))
        guest.controller.sent = {scope.scope: {} for scope in hello.scopes}
        self._send(guest, whole=True)


def save_host(ca: Ca, name: str, directory: Path) -> None:
    """A host's certificate, key and CA as files host.crt, host.key, ca.crt."""
    directory.mkdir(parents=True, exist_ok=True)
    ca.issue(f"host/{name}").save(directory, "host")
    (directory / "ca.crt").write_bytes(ca.cert_pem)
