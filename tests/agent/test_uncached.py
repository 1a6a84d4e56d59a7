"""Networks that change color in one step: no cached flow serves two new connections while they do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from agent import uncached
from agent.openflow.flow import Flow, Group
from agent.openflow.text import flow_text
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.colors import weights_key
from tests.agent.core_rig import WELCOME, Agent, dict_devices, running, until
from tests.fakes.controller import FakeController, endpoint, localport, uid
from tests.fakes.device import DictDevice

WEB, DB = 5, 6  # network numbers
BLUE, GREEN = 1, 2


@pytest.fixture
def devices() -> dict[str, DictDevice]:
    return dict_devices()


def segment(network: int, color: int) -> tuple[str, bytes]:
    message = pb.Segment(domain=700, network_number=network, mtu=1430, color=color)
    prefix = ip_network(f"10.{network}.0.0/24")
    message.subnets.add(prefix=pb.Prefix(address=prefix.network_address.packed, length=24))
    message.subnets[0].gateway = ip_address(f"10.{network}.0.1").packed
    return f"segment/{10 * network + color}", message.SerializeToString()


def weights(network: int, color: int, *, epoch: int, apply_at: int = 0) -> tuple[str, bytes]:
    colors = [pb.ColorWeight(color=each, weight=int(each == color)) for each in (BLUE, GREEN)]
    body = pb.Weights(domain=700, network_number=network, colors=colors, epoch=epoch, apply_at=apply_at)
    return f"weights/{uid(network)}", body.SerializeToString()


class Sent(FakeController):
    """Two networks with two colors each, and their weights."""

    def weights(self, *rows: tuple[str, bytes]) -> list[pb.Update]:
        """The unit that brings these."""
        segments = [segment(network, color) for network in (WEB, DB) for color in (BLUE, GREEN)]
        domain = dict([*segments, endpoint(1, vni=51), *rows])
        return self.unit({"host": dict([localport(1, vni=51)]), "domain/700": domain})


def blue(*, epoch: int = 1) -> Iterable[tuple[str, bytes]]:
    return weights(WEB, BLUE, epoch=epoch), weights(DB, BLUE, epoch=epoch)


def green(*, epoch: int = 2, apply_at: int = 0) -> Iterable[tuple[str, bytes]]:
    return (weights(network, GREEN, epoch=epoch, apply_at=apply_at) for network in (WEB, DB))


def alone(devices: dict[str, DictDevice]) -> int:
    """For how many prefixes each new connection asks the tables."""
    flows = [value for value in devices["flow"].content.values() if isinstance(value, Flow)]
    return sum("symmetric_l3l4+udp" in flow_text(flow) for flow in flows)


def groups(devices: dict[str, DictDevice]) -> dict[object, Group]:
    """Which colors new connections get."""
    return {key: value for key, value in devices["flow"].content.items() if isinstance(value, Group)}


async def begin(agent: Agent, sent: Sent) -> None:
    await agent.core.greeted(WELCOME)
    await agent.take(sent.weights(*blue()))
    await until(lambda: agent.epochs.in_force.keys() == {uid(WEB), uid(DB)})


async def test_two_networks_change_when_nobody_shares_a_cached_flow(
    tmp_path: Path, devices: dict[str, DictDevice]
) -> None:
    sent = Sent()
    async with running(tmp_path / "checkpoint", devices) as agent:
        await begin(agent, sent)
        before = groups(devices)
        assert len(before) == 2 and alone(devices) == 0
        agent.gate.clear()  # cached flows of before are left
        taking = asyncio.create_task(agent.take(sent.weights(*green())))
        await until(lambda: alone(devices) == 2)
        for _ in range(50):
            await asyncio.sleep(0)
        assert not taking.done() and groups(devices) == before
        seen = []
        devices["flow"].before = lambda verb, key: seen.append(alone(devices))
        agent.gate.set()
        await taking
        await until(lambda: groups(devices) != before)
        assert seen[0] == 2, "the first thing that changed were not the colors"
        await until(lambda: alone(devices) == 0)
        assert agent.inputs.uncached.rows == {} and {e.weights.epoch for e in agent.epochs.in_force.values()} == {2}
        await until(lambda: agent.said.acks[-1].revision == sent.revision and not agent.said.acks[-1].failures)


async def test_one_network_changes_at_once(tmp_path: Path, devices: dict[str, DictDevice]) -> None:
    sent = Sent()
    async with running(tmp_path / "checkpoint", devices) as agent:
        await begin(agent, sent)
        agent.gate.clear()
        web = weights(WEB, GREEN, epoch=2)
        async with asyncio.timeout(uncached.LIMIT / 2):
            await agent.take(sent.weights(web, weights(DB, BLUE, epoch=1)))
        assert agent.inputs.uncached.rows == {}


async def test_what_is_sent_again_is_no_change(tmp_path: Path, devices: dict[str, DictDevice]) -> None:
    sent = Sent()
    async with running(tmp_path / "checkpoint", devices) as agent:
        await begin(agent, sent)
        agent.gate.clear()
        async with asyncio.timeout(uncached.LIMIT / 2):
            await agent.take(sent.unit(sent.sent, whole=sent.sent))
        assert agent.inputs.uncached.rows == {}


async def test_a_switch_that_is_away_holds_nothing_up(
    tmp_path: Path, devices: dict[str, DictDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uncached, "LIMIT", 0.05)
    sent = Sent()
    async with running(tmp_path / "checkpoint", devices) as agent:
        await begin(agent, sent)
        before = groups(devices)
        devices["flow"].unavailable = True
        await agent.take(sent.weights(*green()))
        devices["flow"].unavailable = False
        agent.reconciler.reread("flow")
        await until(lambda: groups(devices) != before and alone(devices) == 0)
        await until(lambda: agent.said.acks[-1].revision == sent.revision and not agent.said.acks[-1].failures)


async def test_what_is_held_is_prepared_shortly_before_its_instant(
    tmp_path: Path, devices: dict[str, DictDevice]
) -> None:
    sent = Sent()
    async with running(tmp_path / "checkpoint", devices) as agent:
        await begin(agent, sent)
        before, switching = groups(devices), asyncio.create_task(agent.core.switch())
        far = time.time_ns() + 3600 * 10**9
        await agent.take(sent.weights(*green(apply_at=far)))
        await until(lambda: agent.said.acks[-1].revision == sent.revision)
        assert alone(devices) == 0 and groups(devices) == before
        await agent.take(sent.weights(*blue(epoch=3)))  # taken back
        soon = time.time_ns() + 400_000_000
        await agent.take(sent.weights(*green(epoch=4, apply_at=soon)))
        await until(lambda: alone(devices) == 2)
        assert groups(devices) == before and time.time_ns() < soon
        await until(lambda: groups(devices) != before)
        assert alone(devices) == 2 and time.time_ns() >= soon
        await until(lambda: alone(devices) == 0)
        switching.cancel()
        await asyncio.gather(switching, return_exceptions=True)


async def test_what_is_taken_back_leaves_nothing(tmp_path: Path, devices: dict[str, DictDevice]) -> None:
    sent = Sent()
    async with running(tmp_path / "checkpoint", devices) as agent:
        await begin(agent, sent)
        far = time.time_ns() + 3600 * 10**9
        await agent.take(sent.weights(*green(apply_at=far)))
        await agent.core.uncached.prepare([weights_key(uid(WEB)), weights_key(uid(DB))])
        assert agent.inputs.uncached.rows.keys() == {uid(WEB), uid(DB)}
        await agent.take(sent.weights(weights(WEB, GREEN, epoch=2, apply_at=far)))  # db has gone
        assert agent.inputs.uncached.rows.keys() == {uid(WEB)}
        await agent.take(sent.weights(weights(WEB, BLUE, epoch=3)))
        await until(lambda: alone(devices) == 0)
        assert not agent.inputs.uncached.rows
