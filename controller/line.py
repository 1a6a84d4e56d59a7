"""The stream to one agent, on which reading and writing may be given up.

gRPC takes one read and one write of a call at a time, and what is cancelled here goes on in its core: a write begun
meanwhile is refused there (GRPC_CALL_ERROR_TOO_MANY_OPERATIONS), a read looks like the end of the stream. A session
that is over gives up both, and then the agent is still to be told why. So what was begun is never cancelled: the next
read takes it over, the next write waits until it is done.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from tealnet.agent.v1 import agent_pb2 as pb


class Line:
    """One call. `close` when nobody reads or writes any more."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context
        self._order = asyncio.Lock()
        self._reading: asyncio.Task[Any] | None = None
        self._writing: asyncio.Task[None] | None = None

    async def read(self) -> pb.FromAgent | None:
        """The next message; None: the agent has ended the stream. For one reader at a time."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._context.read())
        message = await asyncio.shield(self._reading)
        self._reading = None
        return message if isinstance(message, pb.FromAgent) else None  # grpc.aio.EOF

    async def write(self, message: bytes) -> None:
        """Send one encoded ToAgent after all others, also after one that was given up while the agent did not read."""
        async with self._order:
            if self._writing is not None:
                await asyncio.shield(self._writing)
            self._writing = asyncio.ensure_future(self._context.write(message))
            await asyncio.shield(self._writing)
            self._writing = None

    def close(self) -> None:
        """Let go what is still under way."""
        for task in (self._reading, self._writing):
            if task is not None:
                task.cancel()
