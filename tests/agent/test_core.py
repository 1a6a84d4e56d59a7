"""What the agent says: Hello, Acks and Facts, from a real core on devices that are dicts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.checkpoint import Checkpoint
from agent.core import Condition, Core, Local
from agent.desired import LAYERS, Desired
from agent.devices import flow_place
from agent.drivers.base import Failure
from agent.facts import Facts
from agent.features import FEATURES
from agent.inputs import Inputs
from agent.reconcile import Applied, Reconciler
from agent.resources import Resources
from agent.stream import SessionOver, Unit
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.agent.v1 import checkpoint_pb2 as pbc
from tealnet.core.digest import version
from tealnet.core.tables import Graph
from tests.fakes.controller import HOST_UID, FakeController, endpoint, hostpeer, localport, segment, uid
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
        self.reconciler = Reconciler(
            graph=graph,
            desired=Desired(wants, {"flow": flow_place}),
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
        self.core.sender = self.said
        self.core.restore()

    async def _nothing(self, zones: Collection[int]) -> None:
        pass

    async def _revalidate(self) -> None:
        await self.gate.wait()

    async def take(self, parts: list[pb.Update]) -> pb.Taken:
        return await self.core.take(Unit(parts[0].unit, parts))


@pytest.fixture
def devices() -> dict[str, DictDevice]:
    return {layer: DictDevice(layer) for layer in LAYERS}


@asynccontextmanager
async def running(path: Path, devices: dict[str, DictDevice]) -> AsyncIterator[Agent]:
    agent = Agent(path, devices)
    tasks = [asyncio.create_task(agent.reconciler.run()), asyncio.create_task(agent.core.acknowledge())]
    try:
        yield agent
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)


async def test_from_welcome_to_ack_and_over_a_restart(tmp_path: Path, devices: dict[str, DictDevice]) -> None:
    controller = FakeController()
    async with running(tmp_path / "checkpoint", devices) as agent:
        assert agent.core.hello().cluster_uid == "" and agent.core.hello().revision == 0
        assert not agent.core.ready()
        await agent.core.greeted(WELCOME)
        taken = await agent.take(controller.unit(WORLD))
        assert list(taken.mismatched) == []
        await until(lambda: agent.said.acks)
        assert agent.said.acks[-1].revision == controller.revision
        assert agent.said.acks[-1].applied_at and not agent.said.acks[-1].failures
        assert {layer for layer in LAYERS if not devices[layer].content} == {"zone"}  # nobody is tracked without colors
    before = {layer: dict(device.content) for layer, device in devices.items()}
    async with running(tmp_path / "checkpoint", devices) as agent:  # no controller: it serves what it knows
        hello = agent.core.hello()
        assert (hello.cluster_uid, hello.lineage.id, hello.revision) == ("c" * 32, "first", controller.revision)
        assert {scope.scope for scope in hello.scopes} == set(WORLD)
        await until(lambda: agent.said.acks)
        assert {layer: dict(device.content) for layer, device in devices.items()} == before


async def test_an_ack_waits_for_the_disk_and_devices_do_not(tmp_path: Path, devices: dict[str, DictDevice]) -> None:
    async with running(tmp_path / "checkpoint", devices) as agent:
        await agent.core.greeted(WELCOME)
        agent.disk.clear()
        controller = FakeController()
        await agent.take(controller.unit(WORLD))
        await until(lambda: all(devices[layer].content for layer in LAYERS if layer != "zone"))
        await until(lambda: agent.reconciler.applied() == Applied(controller.revision, {}))
        assert not agent.said.acks
        agent.disk.set()
        await until(lambda: agent.said.acks)


async def test_without_a_disk_units_are_applied_and_acknowledged(
    tmp_path: Path, devices: dict[str, DictDevice]
) -> None:
    """What is new is on the devices, only a restart without a controller would not know it: a condition says so."""
    controller, path = FakeController(), tmp_path / "checkpoint"
    async with running(path, devices) as agent:
        await agent.core.greeted(WELCOME)
        path.with_suffix(".new").symlink_to("/dev/full")  # where the next whole file is written first
        path.unlink()
        await agent.take(controller.unit(WORLD))
        await until(lambda: agent.said.acks and agent.said.acks[-1].revision == controller.revision)
        assert not agent.said.acks[-1].failures and devices["flow"].content
        assert "could not be written" in agent.core.checkpoint.failure
        path.with_suffix(".new").unlink()
        await agent.take(controller.unit({**WORLD, "host": {}}))
        assert not agent.core.checkpoint.failure
    assert Checkpoint(path).load()[-1].revision == controller.revision


async def test_without_a_checkpoint_nothing_is_ever_deleted(tmp_path: Path, devices: dict[str, DictDevice]) -> None:
    async with running(tmp_path / "checkpoint", devices) as agent:
        await agent.core.greeted(WELCOME)
        await agent.take(FakeController().unit(WORLD))
        await until(lambda: agent.said.acks)
    (tmp_path / "checkpoint").write_bytes(b"garbage")
    before = {layer: dict(device.content) for layer, device in devices.items()}
    async with running(tmp_path / "checkpoint", devices) as agent:
        assert agent.core.checkpoint.failure
        await agent.core.greeted(WELCOME)
        agent.reconciler.resync()
        for _ in range(20):
            await asyncio.sleep(0)
        assert {layer: dict(device.content) for layer, device in devices.items()} == before
        await agent.take(FakeController().unit({"host": {}}))  # in sync: now it goes
        await until(lambda: not devices["link"].content)


async def test_a_unit_that_concerns_no_device_is_acknowledged(tmp_path: Path, devices: dict[str, DictDevice]) -> None:
    controller = FakeController()
    async with running(tmp_path / "checkpoint", devices) as agent:
        await agent.core.greeted(WELCOME)
        for _ in range(3):
            await agent.take(controller.unit(WORLD))
            await until(lambda: agent.said.acks and agent.said.acks[-1].revision == controller.revision)


async def test_a_unit_of_the_same_revision_is_acknowledged_again(
    tmp_path: Path, devices: dict[str, DictDevice]
) -> None:
    controller = FakeController()
    async with running(tmp_path / "checkpoint", devices) as agent:
        await agent.core.greeted(WELCOME)
        await agent.take(controller.unit(WORLD))
        await until(lambda: agent.said.acks)
        count = len(agent.said.acks)
        controller.revision -= 1
        await agent.take(controller.unit(WORLD, whole=WORLD))
        await until(lambda: len(agent.said.acks) > count)
        assert agent.said.acks[-1].revision == controller.revision


async def test_an_ack_of_a_removal_waits_for_the_revalidators(tmp_path: Path, devices: dict[str, DictDevice]) -> None:
    controller = FakeController()
    async with running(tmp_path / "checkpoint", devices) as agent:
        await agent.core.greeted(WELCOME)
        await agent.take(controller.unit(WORLD))
        await until(lambda: agent.said.acks)
        agent.gate.clear()
        await agent.take(controller.unit({"host": {}}, proofs=[PORT[0]]))
        await until(lambda: not devices["netns"].content)
        assert agent.said.acks[-1].revision < controller.revision
        agent.gate.set()
        await until(lambda: agent.said.acks[-1].revision == controller.revision)


async def test_failures_are_said_whole_and_taken_back_only_when_it_is_so(
    tmp_path: Path, devices: dict[str, DictDevice]
) -> None:
    devices["link"].errors = {}
    controller = FakeController()
    async with running(tmp_path / "checkpoint", devices) as agent:
        await agent.core.greeted(WELCOME)
        devices["netns"].plan_error("acme.space-1", Failure("NetnsForeign", "somebody's"))
        bad = {**WORLD, "domain/700": {**WORLD["domain/700"], endpoint(2)[0]: b"\xff"}}
        await agent.take(controller.unit(bad))
        await until(lambda: agent.said.acks)
        failures = {failure.key: failure for failure in agent.said.acks[-1].failures}
        assert {key: failure.reason for key, failure in failures.items()} == {
            PORT[0]: "NetnsForeign",
            endpoint(2)[0]: "BadResource",
        }
        assert failures[PORT[0]].version == version(PORT[1]) and failures[PORT[0]].retriable
        devices["netns"].plan_error("acme.space-1", None)
        await until(lambda: {failure.key for failure in agent.said.acks[-1].failures} == {endpoint(2)[0]})
        assert devices["address"].content  # the port is done, to the last layer
        assert agent.said.acks[-1].revision == controller.revision


async def test_kept_ports_are_said_to_be_unaccounted(tmp_path: Path, devices: dict[str, DictDevice]) -> None:
    controller = FakeController()
    async with running(tmp_path / "checkpoint", devices) as agent:
        await agent.core.greeted(WELCOME)
        await agent.take(controller.unit(WORLD))
        await agent.take(controller.unit({"host": {}}))
        await until(lambda: agent.said.acks and list(agent.said.acks[-1].unaccounted) == [PORT[0]])
        assert devices["link"].content
        assert [v.key for v in agent.core.versions("host").versions] == [PORT[0]]


async def test_a_digest_that_does_not_match_asks_for_the_scope(tmp_path: Path, devices: dict[str, DictDevice]) -> None:
    controller = FakeController()
    async with running(tmp_path / "checkpoint", devices) as agent:
        await agent.core.greeted(WELCOME)
        parts = controller.unit(WORLD)
        del parts[0].scopes[0].upserts[0]
        taken = await agent.take(parts)
        assert list(taken.mismatched) == ["domain/700"]
        assert agent.core.mismatches == 1


async def test_an_accepted_host_follows_another_store(tmp_path: Path, devices: dict[str, DictDevice]) -> None:
    controller = FakeController()
    async with running(tmp_path / "checkpoint", devices) as agent:
        await agent.core.greeted(WELCOME)
        await agent.take(controller.unit(WORLD))
        await until(lambda: agent.said.acks)
        other = pb.Welcome()
        other.CopyFrom(WELCOME)
        other.cluster_uid = "d" * 32
        await agent.core.greeted(other)
        assert agent.core.hello().revision == 0
        restored = FakeController()
        restored.revision = 5
        await agent.take(restored.unit(WORLD, whole=WORLD))
        await until(lambda: agent.said.acks[-1].revision == restored.revision)


async def test_a_welcome_without_an_address_ends_the_session(tmp_path: Path, devices: dict[str, DictDevice]) -> None:
    async with running(tmp_path / "checkpoint", devices) as agent:
        with pytest.raises(SessionOver, match="ProtocolError"):
            await agent.core.greeted(pb.Welcome(cluster_uid="c", vtep="nonsense"))


async def test_facts_are_sent_when_they_change(tmp_path: Path, devices: dict[str, DictDevice]) -> None:
    async with running(tmp_path / "checkpoint", devices) as agent:
        for _ in range(2):
            agent.core.report(underlay_mtu=1500, ovs_version="3.1.0", conditions=[Condition("VswitchdDown", "…")])
        agent.core.report(underlay_mtu=1500, ovs_version="3.1.0", conditions=[])
        facts = [message.facts for name, message in agent.said.messages if name == "facts"]
        assert [len(fact.conditions) for fact in facts] == [1, 0]
        assert agent.core.latest()["facts"].facts == facts[-1]


# -- an instant at which to switch


def split(weight: int, *, apply_at: int = 0, epoch: int = 1) -> tuple[str, bytes]:
    """Weights of a network of domain 700 with the colors 1 and 2: so many of 100 for color 2."""
    colors = [pb.ColorWeight(color=1, weight=100 - weight), pb.ColorWeight(color=2, weight=weight)]
    body = pb.Weights(domain=700, network_number=5, colors=colors, epoch=epoch, apply_at=apply_at)
    return f"weights/{uid(5)}", body.SerializeToString()


def in_force(agent: Agent) -> int:
    return agent.inputs.weights.rows[uid(5)].colors[1].weight


async def test_weights_are_held_until_their_instant_and_said_to_be_armed(
    tmp_path: Path, devices: dict[str, DictDevice]
) -> None:
    controller, key = FakeController(), f"weights/{uid(5)}"

    def unit(weight: int, *, apply_at: int = 0) -> list[pb.Update]:
        domain = dict([segment(), endpoint(1), split(weight, apply_at=apply_at)])
        return controller.unit({**WORLD, "domain/700": domain})

    async with running(tmp_path / "checkpoint", devices) as agent:
        await agent.core.greeted(WELCOME)
        far = time.time_ns() + 3600 * 10**9
        await agent.take(unit(10, apply_at=far))
        assert in_force(agent) == 10, "nothing was in force before"
        await agent.take(unit(20, apply_at=far))
        await until(lambda: agent.said.acks and agent.said.acks[-1].revision == controller.revision)
        assert [(failure.key, failure.reason) for failure in agent.said.acks[-1].failures] == [(key, "Armed")]
        assert in_force(agent) == 10
    async with running(tmp_path / "checkpoint", devices) as agent:  # held over a restart
        assert in_force(agent) == 10 and key in agent.core.resources.armed
        switching = asyncio.create_task(agent.core.switch())
        soon = time.time_ns() + 200_000_000
        await agent.take(unit(30, apply_at=soon))
        assert in_force(agent) == 10
        await until(lambda: in_force(agent) == 30)
        assert 0 <= time.time_ns() - soon < 50_000_000
        await until(lambda: agent.said.acks[-1].revision == controller.revision and not agent.said.acks[-1].failures)
        assert agent.core.resources.late == set()
        await agent.take(unit(40, apply_at=soon))
        assert in_force(agent) == 40 and agent.core.resources.late == {key}
        await agent.take(unit(50, apply_at=far))
        await agent.take(unit(60))  # taken back
        assert in_force(agent) == 60 and not agent.core.resources.armed and not agent.core.resources.late
        switching.cancel()
        await asyncio.gather(switching, return_exceptions=True)
