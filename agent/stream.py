"""The stream to a controller: one session at a time, to one of several servers.

`Conversation` is a session without I/O: messages in, what to do out. `Stream` connects, keeps both directions going
and starts over when a session ends, however it ends; the data plane never notices.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Never, Protocol

import grpc
import structlog

from agent.clock import Clock, Offset
from agent.trust import Credentials, Distrusted, Trust
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.agent.v1 import agent_pb2_grpc

log = structlog.get_logger()

PING_EVERY = 0.5  # seconds
SILENCE = 1.5  # seconds without a word = the other side is dead
CONNECT_TIMEOUT = 1.5
WELCOME_TIMEOUT = 8.0  # a replica may have to wait for its own tables first
FIRST_BACKOFF, LAST_BACKOFF = 0.2, 2.0  # seconds, with full jitter; the very first retry is at once
STEADY = 1.0  # a session that lived this long was a good one
MAX_MESSAGE = 16 << 20
KEEPALIVE = (
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 1000),  # the one before is not kept without (grpcio 1.85.1)
    ("grpc.http2.max_pings_without_data", 0),
)
"""Until a session is accepted nobody has to say anything for WELCOME_TIMEOUT, but the transport answers pings: who is
stopped then, or cut off, is left within two seconds."""


class SessionOver(Exception):
    """This session can't go on. `reason` is a stable word."""

    def __init__(self, reason: str, text: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason, self.text, self.retry_after = reason, text, retry_after


@dataclass(frozen=True, slots=True)
class Unit:
    """A whole unit has arrived."""

    number: int
    parts: Sequence[pb.Update]


class Conversation:
    """What the other side has said in this session so far."""

    def __init__(self, *, now: Callable[[], int] = time.time_ns) -> None:
        self.welcome: pb.Welcome | None = None
        self.clock = Clock()
        self._now = now  # Unix time in ns
        self._staged: list[pb.Update] = []

    def receive(
        self, message: pb.ToAgent
    ) -> pb.Welcome | Unit | pb.WantVersions | pb.Observe | pb.WantRuleReport | None:
        """Take one message; returns what there is to do, if anything. Raises SessionOver."""
        kind = message.WhichOneof("message")
        if kind == "refused":
            refused = message.refused
            raise SessionOver(refused.reason, refused.text, refused.retry_after_ms / 1000)
        if kind == "welcome":
            # Of another cluster or history than ours only after an admin has accepted that (see agent.proto).
            self.welcome = message.welcome
            return self.welcome
        if kind == "ping":
            self._hear(message.ping)
        if kind == "ping" or kind is None:  # None: a message of a later version
            return None
        if self.welcome is None:
            raise SessionOver("ProtocolError", f"{kind} before welcome")
        if kind == "observe":
            return message.observe
        if kind == "want_rule_report":
            return message.want_rule_report
        return self._stage(message.update) if kind == "update" else message.want_versions

    def _hear(self, ping: pb.Ping) -> None:
        if ping.echo_sent_at and ping.echo_received_at and ping.sent_at:
            self.clock.heard(
                sent=ping.echo_sent_at, received=ping.echo_received_at, answered=ping.sent_at, now=self._now()
            )

    def _stage(self, update: pb.Update) -> Unit | None:
        follows = self._staged[-1] if self._staged else None
        expected = (follows.unit, follows.part + 1) if follows else (update.unit, 0)
        if (update.unit, update.part) != expected:
            raise SessionOver("ProtocolError", f"part {update.part} of unit {update.unit} out of turn")
        self._staged.append(update)
        if not update.last:
            return None
        staged, self._staged = self._staged, []
        return Unit(update.unit, staged)


class Core(Protocol):
    """Who knows and decides (`agent.core`)."""

    def hello(self) -> pb.Hello:
        """First message of a session."""
        ...

    async def greeted(self, welcome: pb.Welcome) -> None:
        """The session is accepted."""
        ...

    async def take(self, unit: Unit) -> pb.Taken:
        """Merge a unit. Never interrupted half-way."""
        ...

    def versions(self, scope: str) -> pb.Versions:
        """What is held of a scope."""
        ...

    def want_rule_report(self, wanted: pb.WantRuleReport) -> None:
        """Tell of rules, for a while."""
        ...

    def observe(self, wanted: pb.Observe) -> None:
        """What the controller wants to hear from now on in this session."""
        ...

    def latest(self) -> dict[str, pb.FromAgent]:
        """What every new session is to be told at once: the last Ack and Facts, by name."""
        ...

    def session_changed(self, *, server: str, problem: SessionOver | None) -> None:
        """Connected to `server`, or "" = no session, because of `problem`."""
        ...


class Outbox:
    """What is to be sent, by name: a newer message replaces one that still waits, so it can't grow."""

    def __init__(self) -> None:
        self._waiting: dict[str, pb.FromAgent] = {}
        self._event = asyncio.Event()

    def put(self, name: str, message: pb.FromAgent) -> None:
        """Send this when its turn comes."""
        before = self._waiting.pop(name, None)
        if before is not None and before.HasField("ack"):  # what is told once must not be lost
            devices = [*before.ack.devices, *message.ack.devices]
            del message.ack.devices[:]
            message.ack.devices.extend(devices)
            message.ack.devices_whole |= before.ack.devices_whole
        self._waiting[name] = message
        self._event.set()

    async def get(self) -> pb.FromAgent:
        """The next message."""
        while not self._waiting:
            self._event.clear()
            await self._event.wait()
        return self._waiting.pop(next(iter(self._waiting)))


class Stream:
    """Stays in session with one of `servers` ("host:port") for ever."""

    def __init__(self, core: Core, *, servers: Sequence[str], credentials: Credentials) -> None:
        self._core = core
        self._servers = list(servers)
        self._credentials = credentials
        self._trust = Trust(credentials)
        self._outbox: Outbox | None = None  # of the running session, once it is accepted
        self._accepted = 0.0  # when the last session was, monotonic
        self._clock = Clock()

    def send(self, name: str, message: pb.FromAgent) -> None:
        """Tell the controller, if there is one; a new session starts with `core.latest()` anyway."""
        if self._outbox is not None:
            self._outbox.put(name, message)

    def offset(self) -> Offset:
        """How far our clock is ahead of that of the replica that we are in session with."""
        return self._clock.offset()

    async def run(self) -> None:
        """Connect, talk, start over; cancel to stop."""
        turn = random.randrange(len(self._servers))
        failures, short = 0, 0
        while True:
            server = self._servers[turn % len(self._servers)]
            self._accepted = 0.0
            problem = await self._try(server)
            self._core.session_changed(server="", problem=problem)
            if self._accepted:  # only servers that accept and drop us again and again are met with patience
                short = 0 if time.monotonic() - self._accepted > STEADY else short + 1
                failures = short
            else:
                failures += 1
            turn += 1
            await asyncio.sleep(max(problem.retry_after, self._backoff(failures)))

    def _backoff(self, failures: int) -> float:
        rounds = max(failures - 1, 0) // len(self._servers)  # every server gets its turn before we get slower
        return random.uniform(0, min(LAST_BACKOFF, FIRST_BACKOFF * 2 ** min(rounds, 10)) if rounds > 0 else 0.05)

    async def _try(self, server: str) -> SessionOver:
        """One session from beginning to end; returns why it ended."""
        helpers: list[asyncio.Task[None]] = []
        try:
            async with await self._channel(server) as channel:
                await self._session(channel, helpers, server=server)
        except SessionOver as over:
            return over
        except Distrusted as error:
            return SessionOver("Distrusted", str(error))
        except grpc.aio.AioRpcError as error:
            return SessionOver("Unreachable", f"{server}: {error.code().name}: {error.details()}")
        except TimeoutError:
            return SessionOver("Silent", f"{server} does not answer in time")
        except ConnectionError as error:
            return SessionOver("Unreachable", str(error))
        except OSError as error:
            return SessionOver("Credentials", str(error))
        finally:
            self._outbox = None
            for task in helpers:
                task.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    async def _session(self, channel: grpc.aio.Channel, helpers: list[asyncio.Task[None]], *, server: str) -> Never:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await _connect(channel, server)
        call = agent_pb2_grpc.AgentServiceStub(channel).Connect()
        conversation = Conversation()
        self._clock = conversation.clock
        outbox = Outbox()
        outbox.put("hello", pb.FromAgent(hello=self._core.hello()))
        helpers += [asyncio.create_task(_write(call, outbox)), asyncio.create_task(_ping(outbox))]
        while True:
            async with asyncio.timeout(SILENCE if conversation.welcome else WELCOME_TIMEOUT):
                message = await call.read()
            if not isinstance(message, pb.ToAgent):  # grpc.aio.EOF
                raise SessionOver("Closed", f"{server} closed the session")
            if self._trust.is_gone():
                raise SessionOver("Distrusted", f"the certificate of {server} is on the revocation list")
            await self._handle(conversation.receive(message), outbox, server=server)

    async def _handle(
        self,
        item: pb.Welcome | Unit | pb.WantVersions | pb.Observe | pb.WantRuleReport | None,
        outbox: Outbox,
        *,
        server: str,
    ) -> None:
        if isinstance(item, pb.Welcome):
            await self._core.greeted(item)
            self._accepted = time.monotonic()
            self._outbox = outbox
            for name, message in self._core.latest().items():
                outbox.put(name, message)
            self._core.session_changed(server=server, problem=None)
        elif isinstance(item, Unit):
            # Nothing cancels this but the end of the process: a unit is not merged by half when its session ends.
            outbox.put("taken", pb.FromAgent(taken=await self._core.take(item)))
        elif isinstance(item, pb.Observe):
            self._core.observe(item)
        elif isinstance(item, pb.WantRuleReport):
            self._core.want_rule_report(item)
        elif item is not None:
            outbox.put(f"versions {item.scope}", pb.FromAgent(versions=self._core.versions(item.scope)))

    async def _channel(self, server: str) -> grpc.aio.Channel:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            roots = await self._trust.roots(server)
        files = self._credentials
        credentials = grpc.ssl_channel_credentials(roots, files.key.read_bytes(), files.cert.read_bytes())
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            # A connection of its own for each try: the shared pool would impose its own pauses.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            *KEEPALIVE,
        ]
        if files.server_name:
            options.append(("grpc.ssl_target_name_override", files.server_name))
        return grpc.aio.secure_channel(server, credentials, options)


async def _connect(channel: grpc.aio.Channel, server: str) -> None:
    """Wait for the connection; gRPC would go on trying, but there are other servers."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
            raise SessionOver("Unreachable", f"{server}: no connection, or no trust in one another's certificate")
        await channel.wait_for_state_change(state)
        state = channel.get_state()


async def _write(call: grpc.aio.StreamStreamCall[pb.FromAgent, pb.ToAgent], outbox: Outbox) -> None:
    while True:
        await call.write(await outbox.get())


async def _ping(outbox: Outbox) -> None:
    number = 0
    while True:
        await asyncio.sleep(PING_EVERY)
        number += 1
        outbox.put("ping", pb.FromAgent(ping=pb.Ping(number=number, sent_at=time.time_ns())))
