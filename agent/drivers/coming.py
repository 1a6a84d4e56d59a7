"""Wait for a socket that a restarting daemon makes anew.

Waits between attempts that grow cost a restart up to their length, short ones cost a processor for as long as the
daemon is down. So the directory tells (inotify), and the waits are for what it does not tell: a name is there a moment
before somebody listens.
"""

from __future__ import annotations

import asyncio
import os
from types import TracebackType

from agent.drivers.inotify import Directory

WAITS = (0.02, 0.05, 0.1, 0.2, 0.5)  # seconds after that many attempts in a row; the last one repeats


class Coming:
    """Use as `with` around an attempt: what came while it was made counts.

    `path` is that of the socket, or how it begins. Without the directory there is nothing to be told: only waits.
    """

    def __init__(self, path: str) -> None:
        self._directory, self._prefix = os.path.split(path)
        self._watch: Directory | None = None

    def __enter__(self) -> Coming:
        try:
            self._watch = Directory(self._directory)
        except OSError:
            self._watch = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.close()

    async def wait(self, attempt: int) -> bool:
        """Until the name comes or goes; whether it did before the wait after this many failed attempts was over."""
        try:
            async with asyncio.timeout(WAITS[min(attempt, len(WAITS) - 1)]):
                await self._told()
        except TimeoutError:
            return False
        return True

    async def _told(self) -> None:
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        if self._watch is None:
            await event.wait()
            return
        loop.add_reader(self._watch.fd, event.set)
        try:
            while not self._has_come():
                event.clear()
                await event.wait()
        finally:
            loop.remove_reader(self._watch.fd)

    def _has_come(self) -> bool:
        assert self._watch is not None
        names = self._watch.read()
        return names is None or any(name.startswith(self._prefix) for name in names)
