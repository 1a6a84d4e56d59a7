"""The four drivers on a kernel, each test in namespaces of its own (`apart`)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.drivers.address import AddressDriver
from agent.drivers.allow import Allowed
from agent.drivers.base import Driver, Failure
from agent.drivers.guard import GuardDriver
from agent.drivers.link import LinkDriver
from agent.drivers.netlinkevents import NetlinkEvents
from agent.drivers.netns import NetnsDriver
from agent.drivers.nsthread import NetnsThread
from agent.objects import Addressing, Guard, Link, Namespace, NetnsKind, NetnsRef, Route
from tealnet.core.delta import Delta
from tests.agent.drivers import apart

DEADLINE = 20.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "isolated: needs root; runs in its own network and mount namespaces")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run an isolated test in another process, and report what came of it."""
    if item.get_closest_marker("isolated") is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in apart.run_apart(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # Nothing was set up for this item, but what is left from the one before may not fit the next one.
    item.session._setupstate.teardown_exact(nextitem)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """In the helper: run what is asked for."""
    if apart.INSIDE not in os.environ:
        return None
    apart.serve(session)
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    apart.close(session)


def sh(command: str) -> str:
    return subprocess.run(["sh", "-ec", command], check=True, text=True, capture_output=True).stdout


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        met = condition()
        if met if isinstance(met, bool) else await met:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        await asyncio.sleep(0.01)


def mac(number: int) -> str:
    return f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"


@dataclass(frozen=True)
class Workload:
    """What is wanted for one port."""

    number: int
    netns: NetnsRef
    interface: str = "eth0"
    addresses: tuple[str, ...] = ()
    routes: tuple[Route, ...] = (Route("0.0.0.0/0", "10.0.0.1"), Route("::/0", "fe80::1"))
    tenant: str = "acme"

    @property
    def name(self) -> str:
        return self.netns.path.rpartition("/")[2]

    @property
    def device(self) -> str:
        return f"tn{self.number:012x}"

    @property
    def link(self) -> Link:
        uid = f"{self.number:032x}"
        return Link(self.device, self.netns, self.interface, mac(self.number), 1430, uid, self.tenant)

    @property
    def addressing(self) -> Addressing:
        found = self.addresses or (f"10.0.0.{10 + self.number}/24", f"fd00::{16 + self.number:x}/64")
        return Addressing(self.device, self.netns, self.interface, tuple(sorted(found)), self.routes)


@dataclass
class Stack:
    """The four drivers and, per layer, what is wanted and what is there."""

    thread: NetnsThread
    allowed: Allowed = field(default_factory=Allowed)
    foreign_ovs_ports: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.netns = NetnsDriver(self.thread)
        self.link = LinkDriver(
            self.thread,
            datapath_type="netdev",
            allowed=self.allowed,
            foreign_ovs_ports=lambda: self.foreign_ovs_ports,
        )
        self.guard = GuardDriver(self.thread)
        self.address = AddressDriver(self.thread)
        self.drivers: dict[str, Driver[Any, Any]] = {
            "netns": self.netns,
            "link": self.link,
            "guard": self.guard,
            "address": self.address,
        }
        self.deltas: dict[str, Delta[str, Any]] = {layer: Delta() for layer in self.drivers}
        self.reports: list[tuple[str, str | None]] = []
        self.events: NetlinkEvents | None = None

    def listen(self) -> NetlinkEvents:
        self.events = NetlinkEvents(
            self.thread,
            lambda layer, key: self.reports.append((layer, key)),
            netns=self.netns,
            link=self.link,
            guard=self.guard,
            address=self.address,
        )
        return self.events

    def workload(self, number: int, name: str = "", **more: Any) -> Workload:
        path = f"/run/netns/{name or f'acme.w{number}'}"
        return Workload(number, NetnsRef(NetnsKind.OURS, path), **more)

    def guard_of(self, workload: Workload) -> Guard:
        return Guard(workload.device)

    def want(self, *workloads: Workload) -> None:
        for w in workloads:
            if w.netns.kind is NetnsKind.OURS:
                self.deltas["netns"].want(w.name, Namespace(w.name))
            self.deltas["link"].want(w.device, w.link)
            self.deltas["guard"].want(w.device, Guard(w.device))
            self.deltas["address"].want(w.device, w.addressing)

    def want_no(self, *workloads: Workload) -> None:
        for w in workloads:
            self.deltas["netns"].want(w.name, None)
            for layer in ("link", "guard", "address"):
                self.deltas[layer].want(w.device, None)

    async def look(self) -> None:
        for layer, driver in self.drivers.items():
            self.deltas[layer].saw_all(await driver.read())

    def pending(self) -> set[tuple[str, str]]:
        return {(layer, key) for layer, delta in self.deltas.items() for key in delta.to_write | delta.to_delete}

    async def step(self) -> dict[str, Failure]:
        """Read back, write left to right, delete right to left; returns the failures."""
        await self.look()
        failures: dict[str, Failure] = {}
        for layer, driver in self.drivers.items():
            write = {key: self.deltas[layer].desired[key] for key in self.deltas[layer].to_write}
            failures |= {f"{layer}/{k}": f for k, f in (await driver.apply(write, ())).items()}
        for layer, driver in reversed(self.drivers.items()):
            delete = self.deltas[layer].to_delete
            failures |= {f"{layer}/{k}": f for k, f in (await driver.apply({}, delete)).items()}
        return failures

    async def settle(self) -> None:
        """One step brings everything to what is wanted."""
        assert await self.step() == {}
        await self.look()
        assert self.pending() == set(), {layer: delta.actual for layer, delta in self.deltas.items()}


@pytest.fixture
async def stack_factory() -> AsyncIterator[Callable[..., Stack]]:
    made: list[NetnsThread] = []

    def make(**options: Any) -> Stack:
        thread = NetnsThread()
        made.append(thread)
        stack = Stack(thread, **options)
        thread.start(stack.listen())
        return stack

    try:
        yield make
    finally:
        for thread in made:
            thread.close()


@pytest.fixture
async def stack(stack_factory: Callable[..., Stack]) -> Stack:
    return stack_factory()


@pytest.fixture(name="sh")
def sh_fixture() -> Callable[[str], str]:
    """Run a shell command in the test's own namespaces; returns what it prints."""
    return sh


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Awaitable[None]]:
    return until
