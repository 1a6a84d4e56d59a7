"""When the datapath counts as checked, against a model of vswitchd's main loop where all is as late as can be."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent.drivers.openflow import FlowDriver


class MainLoop:
    """ovs-vswitchd 3.1: what a turn does, in its order (`bridge_run`, then `unixctl_server_run`)."""

    def __init__(self, run_dir: Path) -> None:
        (run_dir / "ovs-vswitchd.pid").write_text("1\n")
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(run_dir / "ovs-vswitchd.1.ctl"))
        self._server.listen(16)
        self._server.setblocking(False)
        self._clients: list[socket.socket] = []
        self._heard: dict[socket.socket, str] = {}  # what has come from each, and nobody has looked at yet
        self._waiting: list[socket.socket] = []
        self._ended = self._seen = 0  # rounds of the revalidators
        self.must_tell = False  # a bundle has been committed
        self.told = False

    def round_ends(self) -> None:
        self._ended += 1

    def bridges(self) -> None:
        """Who waits for the end of a round is answered before the revalidators are told what has changed."""
        if self._waiting and self._ended != self._seen:
            for client in self._waiting:
                client.sendall(b'{"id":0,"result":"","error":null}')
            self._waiting.clear()
        self.told = self.told or self.must_tell

    def commands(self) -> None:
        """Take new connections, then hear each."""
        try:
            while True:
                client, _ = self._server.accept()
                client.setblocking(False)
                self._clients.append(client)
        except BlockingIOError:
            pass
        for client in self._clients:
            with suppress(BlockingIOError):
                self._heard[client] = self._heard.get(client, "") + client.recv(1000).decode()
            while self._heard.get(client) and client not in self._waiting:
                request, end = json.JSONDecoder().raw_decode(self._heard[client])
                self._heard[client] = self._heard[client][end:]
                if request["method"] == "revalidator/wait":
                    self._seen = self._ended
                    self._waiting.append(client)
                else:
                    client.sendall(b'{"id":0,"result":"3.1","error":null}')

    def close(self) -> None:
        for each in (self._server, *self._clients):
            each.close()


@pytest.fixture
def vswitchd(tmp_path: Path) -> Iterator[MainLoop]:
    loop = MainLoop(tmp_path)
    yield loop
    loop.close()


async def _others() -> None:
    """The driver does what it can do now."""
    for _ in range(30):
        await asyncio.sleep(0)


async def test_a_round_that_began_before_the_revalidators_were_told_proves_nothing(
    vswitchd: MainLoop, tmp_path: Path
) -> None:
    """The switch has answered a bundle and is held up in the same turn; meanwhile one round ends, the next begins."""
    vswitchd.must_tell = True
    waiting = asyncio.create_task(FlowDriver("none", run_dir=str(tmp_path)).revalidated())
    await _others()
    vswitchd.commands()
    vswitchd.round_ends()  # … and another one begins: what is cached is as it should be, as far as it knows
    await _others()
    vswitchd.bridges()
    assert vswitchd.told
    await _others()
    vswitchd.commands()
    await _others()
    vswitchd.round_ends()  # the one that did not know; the next one does
    for _ in range(3):
        vswitchd.bridges()
        await _others()
        vswitchd.commands()
        await _others()
        assert not waiting.done()
    vswitchd.round_ends()
    vswitchd.bridges()
    await waiting
