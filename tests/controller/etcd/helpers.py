"""What the tests of the etcd client share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path


async def eventually(holds: Callable[[], Awaitable[bool]], *, seconds: float = 20) -> None:
    """Wait until a condition holds; fail if that takes too long."""
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 - there is nothing to wait for but the condition
            await asyncio.sleep(0.01)


class Relay:
    """A unix socket in front of etcd whose connections can be cut and whose answers can be held back."""

    def __init__(self, path: Path, upstream: str) -> None:
        self.endpoint = f"unix:{path}"
        self.answers = asyncio.Event()
        self.answers.set()
        self.connections = 0
        self._path = path
        self.upstream = upstream
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_unix_server(self._accept, self._path)

    async def close(self) -> None:
        """Refuse new connections and cut all that there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._path.unlink(missing_ok=True)
        await self.cut()

    async def cut(self) -> None:
        """Cut the connections there are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            to_reader, to_writer = await asyncio.open_unix_connection(self.upstream.removeprefix("unix:"))
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_copy(reader, to_writer, None))
                    both.create_task(_copy(to_reader, writer, self.answers))
            finally:
                to_writer.close()
        except* (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event | None) -> None:
    while chunk := await reader.read(65536):
        if gate is not None:
            await gate.wait()
        writer.write(chunk)
        await writer.drain()
    raise EOFError
