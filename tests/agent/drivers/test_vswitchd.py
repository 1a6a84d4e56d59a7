"""Which vswitchd is one to work with: played by a socket that says a version, as ovs-appctl(8) would be told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.drivers import vswitchd
from agent.drivers.vswitchd import VswitchdWatch

LISTENS = """
import os, pathlib, socket, sys, threading

def serve(peer):
    if peer.recv(100):
        peer.sendall(b'{"id": 0, "result": "ovs-vswitchd (Open vSwitch) 3.1.0"}')
        peer.recv(100)
    os.write(1, b"closed\\n")  # one line, whatever the other thread does

run = pathlib.Path(sys.argv[1])
held = socket.socket(socket.AF_UNIX)
held.bind(f"{run}/ovs-vswitchd.{os.getpid()}.ctl")
held.listen()
(run / "ovs-vswitchd.pid").write_text(f"{os.getpid()}")
while True:
    threading.Thread(target=serve, args=held.accept()[:1], daemon=True).start()
"""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is played here has no number, as if it were in another pid namespace: a connection is held."""
    monkeypatch.setattr(vswitchd, "_process", lambda _: None)


class Played:
    """A vswitchd; `answers` holds its word back until it is set."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.version = run_dir, ""
        self.answers = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self, version: str) -> None:
        self.version = version
        (self.run_dir / "ovs-vswitchd.pid").write_text(f"{os.getpid()}\n")
        self._server = await asyncio.start_unix_server(self._serve, self.run_dir / f"ovs-vswitchd.{os.getpid()}.ctl")

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(OSError):
            if not await reader.read(100):
                return
            await self.answers.wait()
            writer.write(json.dumps({"id": 0, "result": f"ovs-vswitchd (Open vSwitch) {self.version}\n"}).encode())
            await reader.read()


@contextlib.asynccontextmanager
async def watched(played: Played) -> AsyncIterator[tuple[VswitchdWatch, asyncio.Event]]:
    changed = asyncio.Event()
    watch = VswitchdWatch(str(played.run_dir), on_change=changed.set)
    task = asyncio.create_task(watch.run())
    try:
        yield watch, changed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await played.stop()


async def next_change(changed: asyncio.Event) -> None:
    async with asyncio.timeout(10):
        await changed.wait()
    changed.clear()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("version", "old"),
    [("3.1.0", ""), ("3.2.90", ""), ("10.0.1", ""), ("unknown", ""), ("2.17.9", "2.17.9"), ("3.0.7-x", "3.0.7-x")],
)
async def test_one_that_is_too_old_counts_as_down(tmp_path: Path, version: str, old: str) -> None:
    played = Played(tmp_path)
    played.answers.set()
    await played.start(version)
    async with watched(played) as (watch, changed):
        if not old:
            await next_change(changed)
            assert (watch.up, watch.starts, watch.too_old) == (True, 1, "")
            return
        await next_change(changed)
        assert (watch.up, watch.starts, watch.too_old) == (False, 0, old)
        await played.stop()  # it is upgraded
        await played.start("3.1.0")
        while not watch.up:
            await next_change(changed)
        assert (watch.starts, watch.too_old) == (1, "")


@pytest.mark.usefixtures("elsewhere")
async def test_a_restart_is_not_held_up_by_the_question(tmp_path: Path) -> None:
    played = Played(tmp_path)
    played.answers.set()
    await played.start("3.1.0")
    async with watched(played) as (watch, changed):
        await next_change(changed)
        played.answers.clear()
        await played.stop()
        await next_change(changed)
        assert not watch.up
        await played.start("3.1.0")
        await next_change(changed)
        assert (watch.up, watch.starts) == (True, 2)
        played.answers.set()


async def test_the_end_of_a_process_is_seen_without_a_connection(tmp_path: Path) -> None:
    changed = asyncio.Event()
    watch = VswitchdWatch(str(tmp_path), on_change=changed.set)
    task = asyncio.create_task(watch.run())
    try:
        for starts in (1, 2):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", LISTENS, str(tmp_path), stdout=asyncio.subprocess.PIPE
            )
            try:
                await next_change(changed)
                assert (watch.up, watch.starts) == (True, starts)
                assert process.stdout is not None
                async with asyncio.timeout(10):  # the watch's connection, and that of the question
                    assert [await process.stdout.readline() for _ in range(2)] == [b"closed\n"] * 2
                assert watch.up
            finally:
                process.kill()
                await process.wait()
            await next_change(changed)
            assert not watch.up
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
