"""Is ovs-vswitchd there, and is it still the same process?

OVSDB does not tell: after a restart vswitchd writes the same values again, which is no change. So who listens on its
control socket (ovs-appctl(8)) is watched as a process (pidfd_open(2), unix(7) SO_PEERCRED). From another pid namespace
that can't be: then a connection to the socket is held open without a word, which ends with the process. That works
everywhere, but vswitchd asks such a connection ten times in each round of its main loop, and so in the userspace
datapath with each packet: measured, 15 to 25 % of a ping's round trip. The pid file and the socket's name
(`ovs-vswitchd.<pid>.ctl`) are vswitchd's own.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import structlog

from agent.drivers.base import DeviceUnavailable
from agent.drivers.coming import Coming
from agent.drivers.unixctl import UnixctlError, unixctl

log = structlog.get_logger()

OLDEST = (3, 1)
"""The oldest version that this agent works with: the one that all of it is tested on."""


def control_socket(run_dir: str) -> str:
    """The path of vswitchd's control socket. Raises OSError or ValueError while there is no pid file."""
    return f"{run_dir}/ovs-vswitchd.{int(Path(run_dir, 'ovs-vswitchd.pid').read_text())}.ctl"


class VswitchdWatch:
    """Follows the process. `up` is whether it answers connects now, `starts` counts the processes seen.

    The pid is no identity: in a container it may be the same after each restart. `on_change` is called after any
    attribute changed. One that is older than `oldest` counts as down, and `too_old` is its version.
    """

    def __init__(self, run_dir: str, *, on_change: Callable[[], None], oldest: tuple[int, int] = OLDEST) -> None:
        self.up = False
        self.starts = 0
        self.too_old = ""
        self._run_dir = run_dir
        self._on_change = on_change
        self._oldest = oldest
        self._known = False  # a version that is good enough was seen: the next process most likely has it, too

    async def run(self) -> None:
        """Watch for ever; cancel to stop."""
        attempt = 0
        while True:
            with Coming(f"{self._run_dir}/ovs-vswitchd.") as coming:  # its pid file, its socket
                try:
                    reader, writer = await asyncio.open_unix_connection(control_socket(self._run_dir))
                except (OSError, ValueError):
                    attempt = 0 if await coming.wait(attempt) else attempt + 1
                    continue
            attempt = 0
            process = _process(writer)
            try:
                if self._known:  # at a restart nobody waits for the answer
                    self._set(up=True)
                self.too_old = await self._old_version()
                self._known = not self.too_old
                if self._known != self.up:
                    self._set(up=self._known)
                if self.too_old:
                    log.error("Open vSwitch is too old, nothing of it is touched", version=self.too_old)
                    self._on_change()
                if process is None:
                    await reader.read()  # nothing is asked, so nothing is said: ends with the process
                else:
                    writer.transport.abort()
                    await _end(process)
            except OSError:
                pass
            finally:
                writer.transport.abort()
                if process is not None:
                    os.close(process)
                self.too_old = ""
                self._set(up=False)

    async def _old_version(self) -> str:
        """The version if it is too old; "" if it is not, or is not told."""
        try:
            told = await unixctl(control_socket(self._run_dir), "version")  # ovs-vswitchd (Open vSwitch) 3.1.0
        except (DeviceUnavailable, UnixctlError, OSError, ValueError):
            return ""
        found = re.search(r"(\d+)\.(\d+)\S*", told)
        return found[0] if found and (int(found[1]), int(found[2])) < self._oldest else ""

    def _set(self, *, up: bool) -> None:
        self.up = up
        self.starts += up
        log.info("vswitchd is up" if up else "vswitchd is down", starts=self.starts)
        self._on_change()


def _process(writer: asyncio.StreamWriter) -> int | None:
    """A pidfd of the process at the other end, which the caller closes; None if it has no number here, or has ended."""
    peer = writer.get_extra_info("socket")
    pid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    try:
        process = os.pidfd_open(pid) if pid else None
    except OSError:
        return None
    if process is not None and select.select([peer], [], [], 0)[0]:  # it ended: the number may be another's by now
        os.close(process)
        return None
    return process


async def _end(process: int) -> None:
    """Wait until a process has ended, by its pidfd."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process)
