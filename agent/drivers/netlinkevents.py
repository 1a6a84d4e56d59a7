"""Hears of what others do to our devices: netlink in the host's and in each workload namespace, nf_tables, inotify.

An event only says that something may have changed; our own changes raise it, too. So the drivers look at just the
keys that it may concern, and only what is really not as they last knew it is passed on. A namespace that does not come
to rest is looked at ever more rarely, so that no workload can keep the agent busy.
"""

from __future__ import annotations

import asyncio
import errno
import os.path
import socket
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import ExitStack
from itertools import islice

import structlog

from agent.drivers import nftables
from agent.drivers.address import AddressDriver
from agent.drivers.base import DeviceUnavailable
from agent.drivers.guard import TABLE, GuardDriver
from agent.drivers.inotify import Directory
from agent.drivers.kernel import Kernel
from agent.drivers.link import LinkDriver
from agent.drivers.netlink import NETFILTER, ROUTE, listen, split
from agent.drivers.netns import NetnsDriver
from agent.drivers.nsthread import NetnsThread
from agent.drivers.rtnetlink import DELLINK, NEWLINK, parse_link
from agent.objects import Marks

log = structlog.get_logger()

Report = Callable[[str, str | None], None]
Names = frozenset[str] | set[str] | None  # None: any, events were lost
_HOST_GROUPS = (1, 12)  # RTNLGRP_LINK, RTNLGRP_IPV6_IFINFO (a device that speaks IPv6 again)
_GATHER = 0.005  # seconds: what comes together is looked at together
_FIRST_PAUSE = 0.02  # seconds between two looks at one source; doubled while it does not rest
# What is tampered with is to be mended within a second, also when it is tampered with all the time.
_LAST_PAUSE_HOST, _LAST_PAUSE_WORKLOAD = 0.3, 0.8
_AT_A_TIME = 8  # devices in one look
_REST = 4  # pauses without an event, after which a source counts as at rest


class Source:
    """Where events come from: names that may have changed, handed on in batches with pauses between them.

    While the last batch is still being looked at (`handle` may return a task) the next one waits and grows.
    """

    def __init__(self, handle: Callable[[Names], asyncio.Task[None] | None], *, last_pause: float) -> None:
        self._handle, self._last_pause = handle, last_pause
        self._looking: asyncio.Task[None] | None = None
        self._names: set[str] = set()
        self._any = False
        self._pause, self._last = _FIRST_PAUSE, float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def note(self, names: Names) -> None:
        """These may have changed."""
        if names is None:
            self._any = True
        else:
            self._names |= names
        if self._timer is not None or self._looking is not None or not (self._any or self._names):
            return
        loop = asyncio.get_running_loop()
        since = loop.time() - self._last
        rested = since > _REST * self._pause
        self._pause = _FIRST_PAUSE if rested else min(2 * self._pause, self._last_pause)
        self._timer = loop.call_later(max(_GATHER, self._pause - since), self._fire)

    def close(self) -> None:
        """Hand on nothing more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _fire(self) -> None:
        self._timer = None
        self._last = asyncio.get_running_loop().time()
        names = None if self._any else self._names
        self._names, self._any = set(), False
        self._looking = self._handle(names)
        if self._looking is not None:
            self._looking.add_done_callback(self._looked)

    def _looked(self, _: asyncio.Task[None]) -> None:
        self._looking = None
        if not self._closed:
            self.note(set())


class NetlinkEvents:
    """Make it on the event loop, give it to `NetnsThread.start()`, then `run()` it.

    `report(layer, key)`, called on the loop: this key of the layer is not as its driver last knew it; key None: there
    is no telling which. Layer "underlay" with a device: a device of the host that is not ours has changed.
    """

    def __init__(
        self,
        thread: NetnsThread,
        report: Report,
        *,
        netns: NetnsDriver,
        link: LinkDriver,
        guard: GuardDriver,
        address: AddressDriver,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread, self._report = thread, report
        self._netns, self._link, self._guard, self._address = netns, link, guard, address
        self._workloads: dict[str, tuple[socket.socket, Source]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Listen for ever; cancel to stop, and then make a new one. Raises OSError if it cannot."""
        host = Source(self._look(self._at_devices), last_pause=_LAST_PAUSE_HOST)
        guards = Source(self._look(self._at_guards), last_pause=_LAST_PAUSE_HOST)
        spaces = Source(self._look(self._at_names), last_pause=_LAST_PAUSE_HOST)
        with ExitStack() as stack:
            stack.callback(self._close)
            for source in (host, guards, spaces):
                stack.callback(source.close)
            links = stack.enter_context(listen(ROUTE, _HOST_GROUPS))
            chains = stack.enter_context(listen(NETFILTER, [nftables.GROUP]))
            names = Directory(await self._thread.run(_directory))
            stack.callback(names.close)
            self._reader(stack, links.fileno(), lambda: host.note(_devices(links)))
            self._reader(stack, chains.fileno(), lambda: guards.note(_guards(chains)))
            self._reader(stack, names.fd, lambda: spaces.note(names.read()))
            await self._loop.create_future()

    def _reader(self, stack: ExitStack, fd: int, call: Callable[[], None]) -> None:
        self._loop.add_reader(fd, call)
        stack.callback(self._loop.remove_reader, fd)

    def _close(self) -> None:
        for path in list(self._workloads):
            self._unfollow(path)
        for task in self._tasks:
            task.cancel()

    # -- ears (agent.drivers.kernel.Ears): called on the namespace thread

    def opened(self, path: str, changes: socket.socket) -> None:
        """Listen to a workload namespace from now on."""
        self._soon(self._follow, path, changes)

    def gone(self, path: str) -> None:
        """Listen to it no more: as long as a socket is open in a namespace it does not end."""
        self._soon(self._unfollow, path)

    def _soon(self, call: Callable[..., None], path: str, *changes: socket.socket) -> None:
        try:
            self._loop.call_soon_threadsafe(call, path, *changes)
        except RuntimeError:  # the loop is closed
            for sock in changes:
                sock.close()

    def _follow(self, path: str, changes: socket.socket) -> None:
        self._unfollow(path)
        look = self._look(self._inside)
        source = Source(lambda _: look({path}), last_pause=_LAST_PAUSE_WORKLOAD)
        self._workloads[path] = changes, source

        def readable() -> None:
            _drain(changes)
            source.note({path})

        self._loop.add_reader(changes.fileno(), readable)

    def _unfollow(self, path: str) -> None:
        if path in self._workloads:
            changes, source = self._workloads.pop(path)
            self._loop.remove_reader(changes.fileno())
            source.close()
            changes.close()

    # -- looking

    def _look(self, at: Callable[[Names], Coroutine[None, None, None]]) -> Callable[[Names], asyncio.Task[None]]:
        """A function that starts looking at names."""

        async def look(names: Names) -> None:
            try:
                await at(names)
            except (DeviceUnavailable, OSError) as error:
                log.warning("could not look after an event", error=repr(error))

        def start(names: Names) -> asyncio.Task[None]:
            task = self._loop.create_task(look(names))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return task

        return start

    async def _at_devices(self, names: Names) -> None:
        if names is None:
            return self._anything("link", "guard", "address")
        for some in _few(names):
            self._tell("link", await self._link.changed(some))
            self._tell("guard", await self._guard.changed(some))
            self._tell("address", await self._address.changed(some))
        self._tell("underlay", {name for name in names if not name.startswith(Marks.DEVICE_PREFIX)})

    async def _at_guards(self, names: Names) -> None:
        self._tell("guard", await self._guard.changed(names))

    async def _at_names(self, names: Names) -> None:
        """Names in the directory of namespaces came or went."""
        if names is None:
            return self._anything("netns", "link", "address")
        directory = await self._thread.look(_directory)
        await self._inside({f"{directory}/{name}" for name in names})

    async def _inside(self, names: Names) -> None:
        """Something happened in the namespaces at these paths."""
        paths = names or set()

        def devices_there(kernel: Kernel) -> set[str]:
            return {device for device, ref in kernel.placed.items() if ref.path in paths}

        self._tell("netns", await self._netns.changed({os.path.basename(path) for path in paths}))
        devices = await self._thread.look(devices_there)
        if devices:
            self._tell("link", await self._link.changed(devices))
            self._tell("address", await self._address.changed(devices))

    def _tell(self, layer: str, keys: Collection[str]) -> None:
        for key in keys:
            self._report(layer, key)

    def _anything(self, *layers: str) -> None:
        for layer in layers:
            self._report(layer, None)


def _few(names: Collection[str]) -> Iterator[set[str]]:
    """A few at a time, so that no look holds work up for long."""
    rest = iter(names)
    while some := set(islice(rest, _AT_A_TIME)):
        yield some


def _directory(kernel: Kernel) -> str:
    kernel.prepare_directory()
    return kernel.directory


def _drain(sock: socket.socket) -> list[bytes]:
    """All that is waiting; an empty one stands for events that were lost."""
    found: list[bytes] = []
    while True:
        try:
            found.append(sock.recv(1 << 16))
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            found.append(b"")


def _devices(sock: socket.socket) -> Names:
    found: set[str] = set()
    for data in _drain(sock):
        if not data:
            return None
        found |= {parse_link(body).name for kind, _, _, body in split(data) if kind in (NEWLINK, DELLINK)}
    return found


def _guards(sock: socket.socket) -> Names:
    found: set[str] = set()
    for data in _drain(sock):
        names = nftables.chains_of_event(data, TABLE) if data else None
        if names is None:
            return None
        found |= names
    return found
