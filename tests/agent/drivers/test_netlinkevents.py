"""Events: our own changes are silent, others' are heard, and restless namespaces are heard of less often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent.drivers.netlinkevents import Names, Source

Shell = Callable[[str], str]
Until = Callable[..., Awaitable[None]]
isolated = pytest.mark.isolated


@asynccontextmanager
async def listening(stack: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(stack.events.run())
    await stack.thread.run(lambda kernel: None)
    await asyncio.sleep(0.05)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _at_rest(stack: Any) -> None:
    """Wait until everything that was heard has been looked at."""
    for _ in range(100):
        await asyncio.sleep(0.02)
        if not stack.events._tasks:
            return


@isolated
async def test_own_changes_are_silent(stack: Any) -> None:
    async with listening(stack):
        for number in range(1, 6):
            stack.want(stack.workload(number))
            await stack.settle()
        stack.want_no(stack.workload(1))
        await stack.settle()
        await _at_rest(stack)
        ours = [report for report in stack.reports if report[0] != "underlay"]
        assert ours == []


@isolated
async def test_each_layer_is_told_apart(stack: Any, sh: Shell, until: Until) -> None:
    w = stack.workload(1)
    async with listening(stack):
        stack.want(w)
        await stack.settle()
        await _at_rest(stack)
        for command, report in (
            ("ip -n acme.w1 link set lo down", ("netns", "acme.w1")),
            ("ip -n acme.w1 link set eth0 mtu 1300", ("link", w.device)),
            (f"nft add rule netdev tealnet {w.device} accept", ("guard", w.device)),
            ("ip -n acme.w1 addr flush dev eth0 scope global", ("address", w.device)),
            ("ip link add other0 type bridge", ("underlay", "other0")),
        ):
            stack.reports.clear()
            sh(command)
            await until(lambda report=report: report in stack.reports, str(report))


@isolated
async def test_a_namespace_that_was_deleted_and_made_by_others(stack: Any, sh: Shell, until: Until) -> None:
    w = stack.workload(1)
    async with listening(stack):
        stack.want(w)
        await stack.settle()
        await _at_rest(stack)
        sh("ip netns del acme.w1")
        await until(lambda: {("netns", "acme.w1"), ("link", w.device)} <= set(stack.reports), "reports")
        # It ends, although we had listened in it: the device went with it.
        await until(lambda: w.device not in sh("ip link"), "the end of the namespace")


@isolated
async def test_flushed_rules_are_heard(stack: Any, sh: Shell, until: Until) -> None:
    async with listening(stack):
        stack.want(stack.workload(1), stack.workload(2))
        await stack.settle()
        sh("nft flush ruleset")
        await until(lambda: ("guard", stack.workload(2).device) in stack.reports, "a report")


async def test_a_restless_source_is_asked_less_and_less() -> None:
    fired: list[float] = []
    loop = asyncio.get_running_loop()
    source = Source(lambda names: fired.append(loop.time()), last_pause=0.2)
    start = loop.time()
    while loop.time() < start + 1.0:
        source.note({"x"})
        await asyncio.sleep(0.001)
    source.close()
    assert 3 <= len(fired) <= 12
    assert fired[-1] - fired[-2] >= 0.19


async def test_lost_events_stand_for_any() -> None:
    got: asyncio.Queue[Names] = asyncio.Queue()
    source = Source(got.put_nowait, last_pause=0.2)
    source.note({"x"})
    source.note(None)
    assert await got.get() is None
    source.note(set())
    source.note({"y"})
    assert await got.get() == {"y"}


async def test_while_a_batch_is_looked_at_the_next_one_grows() -> None:
    batches: list[Names] = []
    free = asyncio.Event()

    async def look() -> None:
        await free.wait()

    def handle(names: Names) -> asyncio.Task[None]:
        batches.append(names)
        return asyncio.create_task(look())

    source = Source(handle, last_pause=0.05)
    source.note({"a"})
    for name in "bcd":
        await asyncio.sleep(0.1)
        source.note({name})
    assert batches == [{"a"}]
    free.set()
    async with asyncio.timeout(5):
        while len(batches) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert batches == [{"a"}, {"b", "c", "d"}]
    source.close()
