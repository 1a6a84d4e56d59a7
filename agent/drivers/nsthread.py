"""The one thread that changes its network namespace, and so the only one that may.

All blocking work on namespaces and netlink is done here, in order, without fork: a forked child of a process with live
gRPC crashes (measured), which rules out pyroute2's NetNS() and netns.create(). More threads would not help: the
kernel takes one lock for all changes of links. Looks after events give way to work for a while: most events are the
echo of our own work, and each look costs as much as what it looks after.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from agent.drivers.base import DeviceUnavailable
from agent.drivers.kernel import Ears, Kernel
from agent.names import NETNS_DIRECTORY

T = TypeVar("T")
Job = tuple[Callable[[Kernel], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]

_LOOK_PATIENCE = 0.3  # seconds that a look lets work go before it


class NetnsThread:
    """Runs jobs one after the other. Make it, `start()` it, `close()` it when nothing is under way any more."""

    def __init__(self, directory: str = NETNS_DIRECTORY) -> None:
        self._directory = directory
        self._jobs: queue.PriorityQueue[tuple[float, int, Job | None]] = queue.PriorityQueue()
        self._numbers = itertools.count()  # jobs of one time in the order in which they came
        self._thread = threading.Thread(target=self._work, name="netns", daemon=True)
        self._ears: Ears | None = None
        self._error: BaseException | None = None

    def start(self, ears: Ears | None = None) -> None:
        """Start the thread; `ears` hear of the workload namespaces that drivers use."""
        self._ears = ears
        self._thread.start()

    def close(self) -> None:
        """End the thread after the jobs that wait; returns when it has ended."""
        self._jobs.put((math.inf, next(self._numbers), None))
        if self._thread.is_alive():
            self._thread.join()

    async def run(self, job: Callable[[Kernel], T]) -> T:
        """What the job returns or raises. A job runs to its end, also when nobody waits for it any more.

        Raises DeviceUnavailable when the thread could not start or could not return to its own namespace.
        """
        return await self._enqueue(job, due=time.monotonic())

    async def look(self, job: Callable[[Kernel], T]) -> T:
        """The same for a job that only reads and can wait: work that comes shortly after it goes first."""
        return await self._enqueue(job, due=time.monotonic() + _LOOK_PATIENCE)

    async def _enqueue(self, job: Callable[[Kernel], T], *, due: float) -> T:
        if self._error is not None:
            raise DeviceUnavailable(f"the namespace thread has ended: {self._error}")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((due, next(self._numbers), (job, future, loop)))
        return await future

    def _work(self) -> None:
        try:
            kernel = Kernel(self._directory)
        except OSError as error:
            self._give_up(error)
            return
        kernel.ears = self._ears
        try:
            while (waiting := self._jobs.get()[2]) is not None:
                job, future, loop = waiting
                kernel.begin()
                try:
                    _tell(loop, future, job(kernel), None)
                except Exception as error:  # whatever a job raises is its caller's
                    _tell(loop, future, None, error)
                if kernel.lost:
                    self._give_up(RuntimeError("it cannot return to its namespace"))
                    return
        finally:
            kernel.close()

    def _give_up(self, error: BaseException) -> None:
        """Refuse what waits and what will come."""
        self._error = error
        while (waiting := self._jobs.get()[2]) is not None:
            _, future, loop = waiting
            _tell(loop, future, None, DeviceUnavailable(f"the namespace thread has ended: {error}"))


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
