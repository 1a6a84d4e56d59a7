"""The agent's parts, put together, started and stopped.

Stopping leaves the data plane as it is: nothing is undone, the next process reads back what is there.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import structlog

from agent.checkpoint import Checkpoint
from agent.closing import Closing
from agent.core import Core, Local
from agent.cut import Cutter
from agent.desired import Desired
from agent.devices import Devices, find_datapath, link_stands
from agent.epochs import Epochs
from agent.facts import Facts
from agent.features import FEATURES
from agent.inputs import Inputs
from agent.metrics import Status, StatusServer
from agent.observe import Observer
from agent.pipeline import Feature, domain_of, narrows
from agent.policy.counters import Counters
from agent.policy.cut import PolicyCutter
from agent.probe import Prober
from agent.reconcile import Reconciler
from agent.report import Reporter
from agent.resources import Resources
from agent.settings import Settings, SettingsError
from agent.spares import Spares
from agent.stream import Stream
from agent.tally import Tally
from agent.tell import RuleTeller
from agent.trust import Credentials
from tealnet.core.tables import Graph

log = structlog.get_logger()

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Agent:
    """One agent. `run` works until it is cancelled."""

    def __init__(self, settings: Settings) -> None:
        if not settings.servers:
            raise SettingsError("servers: none given; where is the controller?")
        self.settings = settings
        self._lock = _lock(settings.state_dir)
        graph = Graph()
        self.inputs = Inputs(graph)
        wants = [want for room in FEATURES for want in room.declare(graph, self.inputs)]
        datapath = find_datapath(settings.datapath)
        self.devices = Devices(settings, datapath=datapath, issued=self.inputs.issued.rows.values)
        self.desired = Desired(wants, places=self.devices.places)
        self.spares = Spares(
            self.inputs,
            size=settings.spares,
            there=lambda layer: self.desired.deltas[layer].actual,
            has=lambda layer, key: self.reconciler.layers[layer].has(key),
            at_rest=lambda: self.reconciler.at_rest(),
            made=self._filled,
        )
        self.facts = Facts(
            self.inputs,
            ovs=self.devices.ovsdb.facts,
            flush=self.devices.flush_zones,
            revalidate=self.devices.revalidated,
            release=self.devices.release,
            made=self.devices.made,
            spares=self.spares,
        )
        self.reconciler = Reconciler(
            graph=graph,
            desired=self.desired,
            drivers=self.devices.drivers,
            watcher=self.facts,
            ready=lambda: self.core.ready(),
            clock=asyncio.get_running_loop().time,
            in_use=self.devices.in_use,
            stands=link_stands,
            narrows=narrows,
            home=domain_of,
        )
        self.core = Core(
            local=_local(settings, datapath=datapath),
            resources=Resources(),
            checkpoint=Checkpoint(settings.state_dir / "checkpoint"),
            inputs=self.inputs,
            reconciler=self.reconciler,
            issue=self.facts.issue,
        )
        self.epochs = Epochs(self.inputs, self.desired, self.reconciler, late=self.core.resources.late)
        self.epochs.on_applied.append(lambda: self.core.uncached.applied(self.epochs.in_force))
        closing = Closing(self.inputs, self.devices, self.devices)
        self.cutter = Cutter(self.inputs, self.epochs, closing)
        self.policy_cutter = PolicyCutter(
            graph, self.inputs, closing, waiting=self.reconciler.waiting, revalidated=self.facts.revalidated
        )
        self.core.on_progress = self._progressed
        self.core.before_ack += self.cutter.settled, self.policy_cutter.settled
        self.core.more_failures = lambda: {**self.cutter.failures, **self.policy_cutter.failures}
        self.cutter.on_done = self.policy_cutter.on_done = self.core.progressed
        self.tally = Tally(
            self.inputs, packets=lambda: self.devices.flow.counts(Feature.BASE), usage=self.devices.usage
        )
        self.reporter = Reporter(self.core, self.reconciler, self.devices, self.inputs, self.tally)
        revoked = Path(settings.crl) if settings.crl else None
        credentials = Credentials(settings.ca, settings.cert, settings.key, settings.server_name, revoked)
        self.stream = Stream(self.core, servers=settings.servers, credentials=credentials)
        self.core.sender = self.stream
        self.devices.flow.on_port = self._plugged
        self.observer = Observer(
            self.core,
            self.inputs,
            self.epochs,
            self.devices,
            Prober(self.inputs, self.devices),
            offset=self.stream.offset,
        )
        counters = Counters(settings.state_dir / "rule-counters")
        self.rules = RuleTeller(
            self.inputs,
            counters,
            stats=lambda: self.devices.flow.counts(Feature.SECURITY),
            send=self.stream.send,
            heard=lambda: bool(self.core.server),
        )
        self.core.on_want_rules, self.devices.flow.on_packet = self.rules.want, self.rules.shown
        self.core.on_observe, self.core.on_armed = self.observer.want, self.observer.kick

    async def run(self) -> None:
        """Serve what was wanted last, then follow the controller."""
        local = self.core.local
        log.info("agent starts", host=self.settings.host, instance=local.instance_uid, datapath=local.datapath)
        self.core.restore()
        status = StatusServer(
            Status(self.core, self.reconciler, self.tally, self.spares, conditions=self.reporter.conditions),
            self.settings.socket_path,
        )
        jobs: Mapping[str, Callable[[], Awaitable[Any]]] = {
            "devices": self.devices.run,
            "follow": lambda: self.devices.follow(self.reconciler),
            "reconcile": self.reconciler.run,
            "facts": self.facts.run,
            "spares": self.spares.run,
            "acknowledge": self.core.acknowledge,
            "switch": self.core.switch,
            "persist": self.core.persist,
            "epochs": lambda: self.epochs.run(self.facts.revalidated),
            "cut": self.cutter.run,
            "policy-cut": self.policy_cutter.run,
            "observe": self.observer.run,
            "rules": self.rules.run,
            "report": self.reporter.run,
            "stream": self._talk,
            "status": status.run,
        }
        self.devices.start(self.reconciler)
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, job in jobs.items():
                    tasks.create_task(_named(job), name=name)
        finally:
            self.devices.close()
            log.info("agent stops")
            os.close(self._lock)

    def _plugged(self, device: str, number: int) -> None:
        if self.facts.plugged(device, number):
            self.reconciler.learned("ovsdb", ("port", device))

    def _filled(self) -> None:
        self.facts.issue()
        self.reconciler.settle()

    def _progressed(self) -> None:
        """Something may have come into force."""
        self.epochs.kick()
        self.spares.kick()
        self.policy_cutter.kick()

    async def _talk(self) -> None:
        while not self.core.local.vtep:
            vtep = await asyncio.to_thread(_discover_vtep, self.settings.servers)
            if vtep:
                self.core.local = replace(self.core.local, vtep=vtep)
                log.info("tunnel address discovered", vtep=vtep)
            else:
                await asyncio.sleep(1)
        await self.stream.run()


async def _named(job: Callable[[], Awaitable[Any]]) -> None:
    await job()


def _discover_vtep(servers: Collection[str]) -> str:
    """The address that packets to a controller come from; "" while there is no route. Sends nothing."""
    for server in servers:
        host, _, port = server.rpartition(":")
        try:
            found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
            for family, kind, protocol, _, address in found:
                with socket.socket(family, kind, protocol) as probe:
                    probe.connect(address)
                    return str(probe.getsockname()[0])
        except (OSError, ValueError):
            continue
    return ""


def _local(settings: Settings, *, datapath: str) -> Local:
    return Local(
        instance_uid=_instance(settings.state_dir / "instance"),
        boot_id=BOOT_ID.read_text().strip(),
        vtep=settings.vtep,
        datapath=datapath,
        bridge=settings.bridge,
        tunnel=settings.tunnel,
        tunnel_ofport=settings.tunnel_ofport,
        tunnel_port=settings.tunnel_port,
        zone_limit=settings.ct_zone_limit,
    )


def _instance(path: Path) -> str:
    """The uid of this installation, made once."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        pass
    temporary = path.with_suffix(".new")
    with temporary.open("w") as file:
        file.write(uuid4().hex + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path.read_text().strip()


def _lock(state_dir: Path) -> int:
    """Only one agent works with a state directory; the lock goes with the process."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SettingsError(f"another agent works with {state_dir}") from None
    return descriptor


async def serve(settings: Settings) -> None:
    """Run an agent until SIGTERM or SIGINT."""
    gc.set_threshold(50_000, 20, 50)  # many rows that live long: with the default a big unit takes half as long again
    agent = Agent(settings)
    task = asyncio.create_task(agent.run(), name="agent")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.info("agent stopped; the data plane stays")
