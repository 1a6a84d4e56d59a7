"""A real agent on a host without a kernel: everything of `agent.server.Agent` but drivers, files of TLS and sockets."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from agent.checkpoint import Checkpoint
from agent.closing import Closing
from agent.core import Core, Local
from agent.cut import Cutter
from agent.desired import Desired
from agent.devices import flow_place, link_place, link_stands, namespaces_in_use
from agent.epochs import Epochs
from agent.facts import Facts
from agent.features import FEATURES
from agent.inputs import Inputs
from agent.observe import Observer
from agent.pipeline import narrows
from agent.policy.cut import PolicyCutter
from agent.reconcile import Reconciler
from agent.resources import Resources
from agent.spares import Spares
from agent.stream import Stream
from agent.trust import Credentials
from tealnet.core.tables import Graph
from tests.chaos.host import SimHost
from tests.chaos.loop import Process, running
from tests.chaos.wire import Channel


class FullDisk(Checkpoint):
    """A checkpoint on a disk that may be full."""

    def __init__(self, path: Path, host: SimHost) -> None:
        super().__init__(path)
        self._host = host

    def _append(self, data: bytes) -> int:
        self._check(data)
        return super()._append(data)

    def _replace(self, data: bytes) -> None:
        self._check(data)
        super()._replace(data)

    def _check(self, data: bytes) -> None:
        if self._host.disk_full:
            if self._path.exists() and self._host.dice.random() < 0.5:  # half of it still fitted
                with self._path.open("ab") as file:
                    file.write(data[: len(data) // 2])
            raise OSError(28, "No space left on device")


class SimStream(Stream):
    """The stream over the simulated network."""

    def __init__(self, core: Core, servers: list[str], dial: Callable[[str], Channel]) -> None:
        nowhere = Path("/nonexistent")
        super().__init__(core, servers=servers, credentials=Credentials(nowhere, nowhere, nowhere))
        self._dial = dial

    async def _channel(self, server: str) -> Any:
        return self._dial(server)


class SimAgent:
    """One life of an agent."""

    def __init__(self, host: SimHost, servers: list[str], dial: Callable[[str], Channel], life: int) -> None:
        self.host = host
        self.process = Process(f"agent of {host.name} ({life})")
        graph = Graph()
        self.inputs = Inputs(graph)
        wants = [want for room in FEATURES for want in room.declare(graph, self.inputs)]
        self.desired = Desired(wants, places={"link": link_place, "flow": flow_place})
        self.spares = Spares(
            self.inputs,
            size=2,
            there=lambda layer: self.desired.deltas[layer].actual,
            has=lambda layer, key: self.reconciler.layers[layer].has(key),
            at_rest=lambda: self.reconciler.at_rest(),
            made=self._filled,
        )
        self.facts = Facts(self.inputs, ovs=host.view, flush=host.flush, revalidate=host.revalidate, spares=self.spares)
        self.reconciler = Reconciler(
            graph=graph,
            desired=self.desired,
            drivers=host.drivers,
            watcher=self.facts,
            ready=lambda: self.core.ready(),
            clock=running().time,
            in_use={"netns": namespaces_in_use},
            stands=link_stands,
            narrows=narrows,
        )
        self.core = Core(
            local=Local(
                instance_uid=f"instance of {host.name}",
                boot_id=host.boot,
                vtep=host.vtep,
                datapath="netdev",
                bridge="br-int",
                tunnel="vxlan0",
                tunnel_ofport=1,
                tunnel_port=4789,
            ),
            resources=Resources(),
            checkpoint=FullDisk(host.directory / "checkpoint", host),
            inputs=self.inputs,
            reconciler=self.reconciler,
            issue=self.facts.issue,
        )
        self.epochs = Epochs(self.inputs, self.desired, self.reconciler, late=self.core.resources.late)
        self.epochs.on_applied.append(lambda: self.core.uncached.applied(self.epochs.in_force))
        closing = Closing(self.inputs, host, host)
        self.cutter = Cutter(self.inputs, self.epochs, closing)
        self.policy_cutter = PolicyCutter(
            graph, self.inputs, closing, waiting=self.reconciler.waiting, revalidated=self.facts.revalidated
        )
        self.core.on_progress = self._progressed
        self.core.before_ack += self.cutter.settled, self.policy_cutter.settled
        self.core.more_failures = lambda: {**self.cutter.failures, **self.policy_cutter.failures}
        self.cutter.on_done = self.policy_cutter.on_done = self.core.progressed
        self.stream = SimStream(self.core, servers, dial)
        self.core.sender = self.stream
        self.observer = Observer(self.core, self.inputs, self.epochs, host, host, offset=self.stream.offset)
        self.core.on_observe, self.core.on_armed = self.observer.want, self.observer.kick
        self.failure: BaseException | None = None

    async def run(self) -> None:
        """Until it is killed; what ends it otherwise is a bug."""
        self.core.restore()
        jobs: list[Callable[[], Awaitable[Any]]] = [
            self.reconciler.run,
            self.facts.run,
            self.spares.run,
            self.core.acknowledge,
            self.core.switch,
            self.core.persist,
            partial(self.epochs.run, self.facts.revalidated),
            self.cutter.run,
            self.policy_cutter.run,
            self.observer.run,
            self._report,
            self.stream.run,
        ]
        try:
            async with asyncio.TaskGroup() as tasks:
                for job in jobs:
                    tasks.create_task(_named(job))
        except BaseException as error:
            self.failure = error

    def _filled(self) -> None:
        self.facts.issue()
        self.reconciler.settle()

    def _progressed(self) -> None:
        self.epochs.kick()
        self.spares.kick()
        self.policy_cutter.kick()

    async def _report(self) -> None:
        self.core.report(underlay_mtu=1500, ovs_version="3.1.0", conditions=[])

    def heard(self, layer: str) -> None:
        """An event of a device."""
        self.reconciler.reread(layer)

    def pending(self) -> float:
        """How much is left to do; 0: all is as it is wanted, as far as this agent knows."""
        layers = self.reconciler.layers.values()
        if not self.core.ready() or any(layer.unavailable or layer.must_look() for layer in layers):
            return math.inf
        return sum(len(layer.pending()) for layer in layers)

    def backlog(self) -> str:
        """What that is, for people."""
        found = []
        for name, layer in self.reconciler.layers.items():
            if layer.unavailable or layer.must_look():
                found.append(f"{name} is not known: {layer.unavailable}")
            found += [
                f"{name} {k}: {layer.delta.actual.get(k)} → {layer.delta.desired.get(k)}: {layer.troubles.get(k)}"
                for k in list(layer.pending())[:3]
            ]
        return "; ".join(found)


async def _named(job: Callable[[], Awaitable[Any]]) -> None:
    await job()
