"""A real core on devices that are dicts, without a stream: units go in, Acks and Facts come out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from agent.checkpoint import Checkpoint
from agent.core import Core, Local
from agent.desired import LAYERS, Desired
from agent.devices import flow_place
from agent.epochs import Epochs
from agent.facts import Facts
from agent.features import FEATURES
from agent.inputs import Inputs
from agent.reconcile import Reconciler
from agent.resources import Resources
from agent.stream import Unit
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.agent.v1 import checkpoint_pb2 as pbc
from tealnet.core.tables import Graph
from tests.fakes.controller import HOST_UID, endpoint, hostpeer, localport, segment
from tests.fakes.device import DictDevice

LOCAL = Local(
    instance_uid="i" * 32,
    boot_id="boot",
    vtep="192.0.2.1",
    datapath="netdev",
    bridge="br-int",
    tunnel="vxlan0",
    tunnel_ofport=1,
    tunnel_port=4789,
)
WELCOME = pb.Welcome(
    cluster_uid="c" * 32,
    lineage=pb.Lineage(number=1, id="first"),
    host_uid=HOST_UID,
    host_number=1,
    vtep="192.0.2.1",
)

PORT = localport(1)
WORLD = {"host": dict([PORT, hostpeer(2)]), "domain/700": dict([segment(), endpoint(1)])}


class Ovs:
    ofports: dict[str, int] = {}  # noqa: RUF012 (a view, never changed)
    used_ofports: frozenset[int] = frozenset()


@dataclass
class Said:
    """The sender: what was told to the controller, last first word wins by name."""

    messages: list[tuple[str, pb.FromAgent]] = field(default_factory=list)

    def send(self, name: str, message: pb.FromAgent) -> None:
        self.messages.append((name, message))

    @property
    def acks(self) -> list[pb.Ack]:
        return [message.ack for name, message in self.messages if name == "ack"]


class SlowDisk(Checkpoint):
    """Written is not on the disk before `gate` is set."""

    def __init__(self, path: Path, gate: asyncio.Event) -> None:
        super().__init__(path)
        self.gate = gate

    async def write(self, record: pbc.Checkpoint, *, snapshot: Callable[[], pbc.Checkpoint]) -> None:
        await super().write(record, snapshot=snapshot)
        self._syncing = asyncio.create_task(self._late(self._syncing))

    async def _late(self, syncing: asyncio.Task[None] | None) -> None:
        await self.gate.wait()
        if syncing is not None:
            await syncing


class Agent:
    """Everything but the stream and the drivers."""

    def __init__(self, path: Path, devices: dict[str, DictDevice]) -> None:
        self.disk = asyncio.Event()
        self.disk.set()
        graph = Graph()
        self.inputs = Inputs(graph)
        self.devices, self.said, self.gate = devices, Said(), asyncio.Event()
        self.gate.set()
        facts = Facts(self.inputs, ovs=Ovs, flush=self._nothing, revalidate=self._revalidate)
        wants = [want for room in FEATURES for want in room.declare(graph, self.inputs)]
        desired = Desired(wants, {"flow": flow_place})
        self.reconciler = Reconciler(
            graph=graph,
            desired=desired,
            drivers=devices,
            watcher=facts,
            ready=lambda: self.core.ready(),
            clock=asyncio.get_running_loop().time,
        )
        self.core = Core(
            local=LOCAL,
            resources=Resources(),
            checkpoint=SlowDisk(path, self.disk),
            inputs=self.inputs,
            reconciler=self.reconciler,
            issue=facts.issue,
        )
        self.epochs = Epochs(self.inputs, desired, self.reconciler, late=self.core.resources.late)
        self.epochs.on_applied.append(lambda: self.core.uncached.applied(self.epochs.in_force))
        self.core.on_progress = self.epochs.kick
        self.core.sender = self.said
        self.core.restore()

    async def _nothing(self, zones: Collection[int]) -> None:
        pass

    async def _revalidate(self) -> None:
        await self.gate.wait()

    async def take(self, parts: list[pb.Update]) -> pb.Taken:
        return await self.core.take(Unit(parts[0].unit, parts))


def dict_devices() -> dict[str, DictDevice]:
    """One for each layer."""
    return {layer: DictDevice(layer) for layer in LAYERS}


@asynccontextmanager
async def running(path: Path, devices: dict[str, DictDevice]) -> AsyncIterator[Agent]:
    """An agent at work with the checkpoint at this path."""
    agent = Agent(path, devices)
    jobs = agent.reconciler.run(), agent.core.acknowledge(), agent.epochs.run(agent.reconciler.revalidated)
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        yield agent
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)
