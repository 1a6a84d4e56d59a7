"""Streams between agents and replicas: gRPC as far as both can tell, over a network that can be cut.

What is sent while a way is cut is not lost but late, in order, as with TCP; either side gives up by its own silence.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from tealnet.agent.v1 import agent_pb2 as pb
from tests.chaos.loop import Process, running

EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]
DELAY = 0.0006  # seconds one way, on average


@dataclass
class Way:
    """One direction between a host and a replica."""

    is_cut: bool = False
    slow: float = 0.0


def broken() -> grpc.aio.AioRpcError:
    """What a call says whose connection is gone."""
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "connection reset", None)


class Pipe:
    """Messages one way, as bytes, in order. `change`: what becomes of each; `extra`: what now and then follows one."""

    def __init__(
        self, way: Way, dice: random.Random, *, change: Callable[[bytes], bytes] = bytes, extra: bytes = b""
    ) -> None:
        self._way, self._dice, self._change, self._extra = way, dice, change, extra
        self._sent: deque[bytes | None] = deque()
        self._came: deque[bytes | None] = deque()
        self._event = asyncio.Event()
        self._moving = False
        self.is_over = False

    def put(self, data: bytes | None) -> None:
        """Send; None is the end."""
        if self.is_over:
            return
        self._sent.append(data if data is None else self._change(data))
        if self._extra and data is not None and self._dice.random() < 0.1:
            self._sent.append(self._extra)
        if not self._moving:
            self._moving = True
            running().outside(self._move())

    async def _move(self) -> None:
        while self._sent:
            await asyncio.sleep(self._dice.expovariate(1 / DELAY) + self._way.slow * self._dice.random())
            while self._way.is_cut:
                await asyncio.sleep(0.05)
            self._came.append(self._sent.popleft())
            self._event.set()
        self._moving = False

    def reset(self) -> None:
        """The connection is known to be gone at the far end; what has not come never will."""
        self.is_over = True
        self._came.append(None)
        self._event.set()

    async def get(self) -> bytes | None:
        """The next one; None: the end, now and for ever."""
        while not self._came:
            self._event.clear()
            await self._event.wait()
        if self._came[0] is None:
            return None
        return self._came.popleft()


class Connection:
    """One stream. `up` is from the agent, `down` to it."""

    def __init__(self, up: Pipe, down: Pipe) -> None:
        self.up, self.down = up, down
        self.handler: asyncio.Task[Any] | None = None
        self.server: Process | None = None
        self.client: Process | None = None

    def lose(self) -> None:
        """Both ends notice that the other one is gone."""
        self.up.reset()
        self.down.reset()
        if self.handler is not None:
            self.handler.cancel()


class ServerContext:
    """What the service sees of a stream."""

    def __init__(self, connection: Connection, host: str) -> None:
        self._connection, self.host = connection, host

    async def read(self) -> Any:
        data = await self._connection.up.get()
        return EOF if data is None else pb.FromAgent.FromString(data)

    async def write(self, message: bytes) -> None:
        await asyncio.sleep(0)
        self._connection.down.put(bytes(message))


class ClientCall:
    """What the agent sees of it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def read(self) -> Any:
        data = await self._connection.down.get()
        if data is None:
            if self._connection.down.is_over:
                raise broken()
            return EOF
        return pb.ToAgent.FromString(data)

    async def write(self, message: pb.FromAgent) -> None:
        await asyncio.sleep(0)
        if self._connection.up.is_over:
            raise asyncio.InvalidStateError("the call is over")
        self._connection.up.put(message.SerializeToString())


class Channel:
    """As much of a `grpc.aio.Channel` as `agent.stream` uses. `dial` gives a connection, or None: refused."""

    def __init__(self, dial: Callable[[], Connection | None], is_reachable: Callable[[], bool]) -> None:
        self._dial, self._is_reachable = dial, is_reachable
        self._connection: Connection | None = None
        self._state = grpc.ChannelConnectivity.CONNECTING

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *_: object) -> None:
        connection = self._connection
        if connection is not None:
            connection.up.put(None)
            if connection.handler is not None and connection.server is not None:
                running().later(DELAY, connection.handler.cancel)
            connection.down.is_over = True

    def get_state(self, *, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._state

    async def wait_for_state_change(self, state: grpc.ChannelConnectivity) -> None:
        await asyncio.sleep(0.003)
        while not self._is_reachable():
            await asyncio.sleep(0.05)
        self._connection = self._dial()
        ready, failed = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE
        self._state = ready if self._connection else failed

    def stream_stream(self, *_: Any, **__: Any) -> Callable[[], ClientCall]:
        def call() -> ClientCall:
            assert self._connection is not None
            return ClientCall(self._connection)

        return call
