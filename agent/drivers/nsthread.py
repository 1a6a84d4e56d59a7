"""The one thread that changes its network namespace, and so the only one that may.

All blocking work on namespaces and netlink is done here, in order, without fork: a forked child of a process with live
gRPC crashes (measured), which rules out pyroute2's NetNS() and netns.create(). More threads would not help: the
kernel takes one lock for all changes of links. Looks after events wait until work has rested for a moment: most events
are the echo of our own work, each look costs as much as what it looks after, and while it looks the rest of the agent
has less of the processor.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Any, TypeVar

from agent.drivers.base import DeviceUnavailable
from agent.drivers.kernel import Ears, Kernel
from agent.names import NETNS_DIRECTORY

T = TypeVar("T")
Job = tuple[Callable[[Kernel], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class _Sign(Enum):
    """What is put among the jobs and is none."""

    LOOK = "look"  # there is a new one
    END = "end"


REST = 0.2  # seconds since the last work after which there is time for looks
LATEST = 0.6  # seconds that a look waits at most


class NetnsThread:
    """Runs jobs one after the other. Make it, `start()` it, `close()` it when nothing is under way any more."""

    def __init__(self, directory: str = NETNS_DIRECTORY) -> None:
        self._directory = directory
        self._jobs: queue.SimpleQueue[Job | _Sign] = queue.SimpleQueue()
        self._looks: deque[tuple[float, Job]] = deque()  # with the time at which they were asked for
        self._worked = -math.inf  # when the last work ended
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="netns", daemon=True)
        self._ears: Ears | None = None
        self._error: BaseException | None = None

    def start(self, ears: Ears | None = None) -> None:
        """Start the thread; `ears` hear of the workload namespaces that drivers use."""
        self._ears = ears
        self._thread.start()

    def close(self) -> None:
        """End the thread after the jobs that wait; returns when it has ended."""
        self._jobs.put(_Sign.END)
        if self._thread.is_alive():
            self._thread.join()

    async def run(self, job: Callable[[Kernel], T]) -> T:
        """What the job returns or raises. A job runs to its end, also when nobody waits for it any more.

        Raises DeviceUnavailable when the thread could not start or could not return to its own namespace.
        """
        return await self._wait(job, self._jobs.put)

    async def look(self, job: Callable[[Kernel], T]) -> T:
        """The same for a job that only reads and can wait until there is no work, but for no longer than LATEST."""

        def later(job: Job) -> None:
            self._looks.append((time.monotonic(), job))
            self._jobs.put(_Sign.LOOK)

        return await self._wait(job, later)

    async def _wait(self, job: Callable[[Kernel], T], put: Callable[[Job], None]) -> T:
        if self._error is not None:
            raise DeviceUnavailable(f"the namespace thread has ended: {self._error}")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        put((job, future, loop))
        return await future

    def _work(self) -> None:
        try:
            kernel = Kernel(self._directory)
        except OSError as error:
            self._give_up(error)
            return
        kernel.ears = self._ears
        try:
            while (waiting := self._next()) is not None:
                (job, future, loop), is_work = waiting
                kernel.begin()
                try:
                    _tell(loop, future, job(kernel), None)
                except Exception as error:  # whatever a job raises is its caller's
                    _tell(loop, future, None, error)
                if is_work:
                    self._worked = time.monotonic()
                if kernel.lost:
                    self._give_up(RuntimeError("it cannot return to its namespace"))
                    return
        finally:
            kernel.close()

    def _next(self) -> tuple[Job, bool] | None:
        """The next job, and whether it is work: else it is a look whose time has come. None at the end."""
        while True:
            wait = self._until_look()
            if wait < 0:  # however much work there is
                return self._looks.popleft()[1], False
            try:
                found = None if self._ending else self._jobs.get(timeout=None if wait == math.inf else wait)
            except queue.Empty:
                found = None
            if isinstance(found, tuple):
                return found, True
            if found is _Sign.END:
                self._ending = True
            elif found is None:
                return (self._looks.popleft()[1], False) if self._looks else None

    def _until_look(self) -> float:
        """Seconds until a look may go before what is not there yet; below 0: it may not wait any longer."""
        if not self._looks:
            return math.inf
        asked, now = self._looks[0][0], time.monotonic()
        if now >= asked + LATEST:
            return -1.0
        return max(0.0, min(self._worked + REST, asked + LATEST) - now)

    def _give_up(self, error: BaseException) -> None:
        """Refuse what waits and what will come."""
        self._error = error
        while not self._ending:
            while self._looks:
                self._refuse(self._looks.popleft()[1])
            found = self._jobs.get()
            if isinstance(found, tuple):
                self._refuse(found)
            self._ending = found is _Sign.END

    def _refuse(self, waiting: Job) -> None:
        _, future, loop = waiting
        _tell(loop, future, None, DeviceUnavailable(f"the namespace thread has ended: {self._error}"))


def _tell(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], result: Any, error: BaseException | None
) -> None:
    def tell() -> None:
        if future.done():  # cancelled: nobody waits
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    with suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(tell)
