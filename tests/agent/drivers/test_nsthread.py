"""The namespace thread: no forks, always back in its own namespace, and harmless to live gRPC streams."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agent.drivers.allow import PlacementRefused
from agent.drivers.base import DeviceUnavailable
from agent.drivers.kernel import Kernel, NetnsMissing
from agent.drivers.nsthread import LATEST, REST, NetnsThread

pytestmark = pytest.mark.isolated
Shell = Callable[[str], str]
Until = Callable[..., Awaitable[None]]


def _own(kernel: Kernel) -> str:
    return os.readlink("/proc/thread-self/ns/net")


def _children() -> list[str]:
    tasks = (f"/proc/self/task/{task}/children" for task in os.listdir("/proc/self/task"))
    return [child for path in tasks for child in Path(path).read_text().split()]


async def test_fifty_namespaces_beside_live_streams(stack: Any, sh: Shell, until: Until) -> None:
    async def ticks(request: bytes, context: object) -> AsyncIterator[bytes]:
        while True:
            yield b"tick"
            await asyncio.sleep(0.005)

    handler = grpc.method_handlers_generic_handler("t.T", {"Ticks": grpc.unary_stream_rpc_method_handler(ticks)})
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    heard = [0] * 20

    async def listen(channel: Any, number: int) -> None:
        async for _ in channel.unary_stream("/t.T/Ticks")(b""):
            heard[number] += 1

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        listeners = [asyncio.create_task(listen(channel, number)) for number in range(len(heard))]
        for number in range(1, 51):
            stack.want(stack.workload(number, addresses=(f"10.0.0.{100 + number}/24",), routes=()))
            if number % 10 == 0:
                await stack.settle()
        before = list(heard)
        await until(lambda: all(now > then for now, then in zip(heard, before, strict=True)), "life in every stream")
        for task in listeners:
            task.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)
    await server.stop(None)
    assert len(sh("ls /run/netns").split()) == 50
    stack.want_no(*(stack.workload(number) for number in range(1, 51)))
    await stack.settle()
    assert _children() == []


async def test_the_thread_is_always_back(stack: Any) -> None:
    thread: NetnsThread = stack.thread
    own = await thread.run(_own)
    assert own == os.readlink("/proc/self/ns/net")
    await thread.run(lambda kernel: kernel.create("acme.one"))
    assert await thread.run(_own) == own

    def fail_inside(kernel: Kernel) -> None:
        with kernel.enter(kernel.path("acme.one")):
            assert _own(kernel) != own
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await thread.run(fail_inside)
    assert await thread.run(_own) == own


async def test_what_is_no_namespace(stack: Any, sh: Shell) -> None:
    sh("mkdir -p /run/netns; touch /run/netns/file; mkfifo /run/netns/fifo")

    def enter(path: str) -> Callable[[Kernel], None]:
        def job(kernel: Kernel) -> None:
            with kernel.enter(path):
                pass

        return job

    for path in ("/run/netns/file", "/run/netns/fifo", "/run/netns/none", "/proc/self/ns/mnt", "/run/netns/file/x"):
        with pytest.raises(NetnsMissing):
            await stack.thread.run(enter(path))
    with pytest.raises(PlacementRefused):
        await stack.thread.run(enter("/proc/self/ns/net"))


async def test_cancelled_waiting_does_not_stop_a_job(stack: Any) -> None:
    started, release, done = threading.Event(), threading.Event(), threading.Event()

    def job(kernel: Kernel) -> None:
        started.set()
        release.wait(10)
        done.set()

    task = asyncio.create_task(stack.thread.run(job))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    assert await stack.thread.run(lambda kernel: done.is_set())


async def test_a_lost_thread_does_nothing_any_more(stack: Any) -> None:
    def lose(kernel: Kernel) -> None:
        kernel.lost = True

    await stack.thread.run(lose)
    for _ in range(2):
        with pytest.raises(DeviceUnavailable):
            await stack.thread.run(_own)


async def test_namespaces_go_and_leave_no_descriptors(stack: Any, sh: Shell) -> None:
    stack.want(stack.workload(1))
    await stack.settle()
    stack.want_no(stack.workload(1))
    await stack.settle()
    await asyncio.sleep(0)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        stack.want(stack.workload(1))
        await stack.settle()
        stack.want_no(stack.workload(1))
        await stack.settle()
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_names_are_seen_in_other_mount_namespaces(stack: Any, sh: Shell) -> None:
    """/run/netns is a shared mount, as `ip netns` leaves it."""
    await stack.thread.run(lambda kernel: kernel.create("acme.one"))
    assert " shared:" in sh("grep ' /run/netns ' /proc/self/mountinfo")
    assert "acme.one" in sh("ip netns list")
    sh("ip netns exec acme.one true; ip netns del acme.one")
    assert await stack.netns.read() == {}


async def test_looks_wait_for_work_to_rest(stack: Any) -> None:
    """… however it is spread, and all of them together; but not for ever."""
    thread, done = stack.thread, []
    await thread.run(lambda kernel: done.append("work"))
    looks = [asyncio.create_task(thread.look(lambda kernel: done.append("look"))) for _ in range(3)]
    for _ in range(4):
        await asyncio.sleep(REST / 4)
        await thread.run(lambda kernel: done.append("work"))
    assert "look" not in done
    await asyncio.gather(*looks)
    assert done == ["work"] * 5 + ["look"] * 3

    done.clear()
    late = asyncio.create_task(thread.look(lambda kernel: done.append("look")))
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not late.done():  # without a rest
        await thread.run(lambda kernel: done.append("work"))
        assert loop.time() < began + 2 * LATEST
    assert done[-1] == "look" or done[-2:] == ["look", "work"]
    assert loop.time() >= began + LATEST


async def test_a_look_is_at_once_where_there_is_no_work(stack: Any) -> None:
    await asyncio.sleep(REST)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await stack.thread.look(lambda kernel: None)
    assert loop.time() - began < REST


async def test_what_waits_at_the_end_is_done(stack: Any) -> None:
    done: list[str] = []
    await stack.thread.run(lambda kernel: None)
    look = asyncio.create_task(stack.thread.look(lambda kernel: done.append("look")))
    work = asyncio.create_task(stack.thread.run(lambda kernel: done.append("work")))
    await asyncio.sleep(0)
    await asyncio.to_thread(stack.thread.close)
    await asyncio.gather(look, work)
    assert sorted(done) == ["look", "work"]
