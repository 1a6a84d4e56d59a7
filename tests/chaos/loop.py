"""Virtual time, and processes in it that stand still or end between any two of their steps.

Nothing waits here: when nobody has anything to do the clock goes on to the next timer, so a minute takes as long as
what happens in it. Every step (a callback of the event loop) belongs to the process in whose context it was made: one
that is stopped is not stepped until it goes on, one that was killed never again, and no `finally` of it runs.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import os
import random
import time
from asyncio import base_events
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

EPOCH = 1_750_000_000.0  # Unix time at which histories begin
Handle = asyncio.Handle


@dataclass(eq=False)
class Process:
    """Something that can be killed (-9), stopped and continued. `offset`: of its wall clock, in seconds."""

    name: str
    is_dead: bool = False
    is_stopped: bool = False
    offset: float = 0.0
    held: list[Handle] = field(default_factory=list)
    lag: float = 0.0  # seconds that each step takes: a slow machine
    ended: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<{self.name}>"


_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Deadlock(Exception):
    """Nobody has anything to do, now or later."""


class SimLoop(base_events.BaseEventLoop):
    """An event loop on virtual time. One per history."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.steps = 0
        self.bugs: list[str] = []  # what no task was there to take
        self._kept: list[Any] = []  # of dead processes: never to be collected, for that would run their `finally`
        self.set_exception_handler(self._note)

    def time(self) -> float:
        return self.now

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.bugs.append(f"{context.get('message')}: {error!r}")

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        timers: Any = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            if not timers:
                raise Deadlock
            self.now = max(self.now, timers[0]._when)
        while timers and timers[0]._when <= self.now:
            handle = heapq.heappop(timers)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(_process) if handle._context is not None else None
            if process is not None:
                if process.is_dead:
                    self._kept.append(handle)
                    continue
                if process.is_stopped:
                    process.held.append(handle)
                    continue
                self.now += process.lag
            self.steps += 1
            handle._run()

    def _write_to_self(self) -> None:
        pass

    def _process_events(self, event_list: Any) -> None:
        pass

    async def _in_place(self, func: Callable[..., Any], args: Any) -> Any:
        await asyncio.sleep(0.0005)
        return func(*args)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """There are no threads: done at once, known half a millisecond later."""
        return self.create_task(self._in_place(func, args))

    # -- processes

    def spawn(self, process: Process, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of a process."""
        context = contextvars.copy_context()
        context.run(_process.set, process)
        task = self.create_task(work, context=context)
        self._kept.append(task)
        return task

    def outside(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of nobody's, whoever makes it."""
        context = contextvars.copy_context()
        context.run(_process.set, None)
        return self.create_task(work, context=context)

    def later(self, delay: float, call: Callable[..., Any], *args: Any, process: Process | None = None) -> Any:
        """Call in a process (None: nobody's) after a while."""
        context = contextvars.copy_context()
        context.run(_process.set, process)
        return self.call_later(delay, call, *args, context=context)

    def kill(self, process: Process) -> None:
        """It does nothing any more, and knows nothing of it."""
        process.is_dead = True
        self._kept += process.held
        process.held = []

    def stop_process(self, process: Process) -> None:
        """SIGSTOP."""
        process.is_stopped = True

    def cont(self, process: Process) -> None:
        """SIGCONT: what has happened meanwhile is seen now."""
        process.is_stopped = False
        held, process.held = process.held, []
        self._ready.extend(held)  # type: ignore[attr-defined]


def current() -> Process | None:
    """The process that is being stepped."""
    return _process.get()


def running() -> SimLoop:
    """The loop of this history."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    return loop


def install(loop: SimLoop, seed: int) -> random.Random:
    """Clocks and chance of this operating-system process are those of the history from now on; returns the dice."""

    def wall() -> float:
        process = _process.get()
        return EPOCH + loop.now + (process.offset if process else 0.0)

    chance = random.Random(f"urandom {seed}")

    def urandom(size: int) -> bytes:
        return chance.randbytes(size)

    time.monotonic = lambda: loop.now
    time.perf_counter = lambda: loop.now
    time.time = wall
    time.time_ns = lambda: int(wall() * 1e9)
    os.urandom = urandom
    random._urandom = urandom  # type: ignore[attr-defined]
    random.seed(seed)
    return random.Random(f"dice {seed}")
