"""What the agent says: Hello, Acks and Facts, from a real core on devices that are dicts."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from agent.checkpoint import Checkpoint
from agent.core import Condition
from agent.desired import LAYERS
from agent.drivers.base import Failure
from agent.reconcile import Applied
from agent.stream import SessionOver
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.digest import version
from tests.agent.core_rig import PORT, WELCOME, WORLD, Agent, dict_devices, running, until
from tests.fakes.controller import FakeController, endpoint, segment, uid
from tests.fakes.device import DictDevice


@pytest.fixture
def devices() -> dict[str, DictDevice]:
    return dict_devices()


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


async def test_nothing_is_acknowledged_before_the_first_unit_is_applied(
    tmp_path: Path, devices: dict[str, DictDevice]
) -> None:
    """What the agent wants by itself is older than any unit; an Ack of revision -1 has been said of that."""
    controller, gate, apply = FakeController(), asyncio.Event(), devices["flow"].apply

    async def late(*what: Any) -> Any:
        await gate.wait()
        return await apply(*what)

    devices["flow"].apply = late  # type: ignore[method-assign, assignment]
    async with running(tmp_path / "checkpoint", devices) as agent:
        await agent.core.greeted(WELCOME)
        await agent.take(controller.unit(WORLD))
        await until(lambda: agent.reconciler.layers["flow"].under_way)
        for _ in range(20):
            agent.core.progressed()
            await asyncio.sleep(0)
        assert not agent.said.acks
        gate.set()
        await until(lambda: agent.said.acks)
        assert {ack.revision for ack in agent.said.acks} == {controller.revision}


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
