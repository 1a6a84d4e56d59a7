"""When connections are counted and what is told at once: a real Observer beside devices that take their time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from agent import observe
from agent.clock import Offset
from agent.connections import Connection
from agent.core import Core
from agent.epochs import Epochs
from agent.inputs import Inputs
from agent.observe import Observer
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.colors import Affinity, ColorWeight, Weights
from tealnet.core.tables import Graph
from tests.agent.core_rig import until
from tests.fakes.controller import uid

WEB = uid(5)
WANTED = pb.Observe(number=1, interval_ms=1, networks=[bytes.fromhex(WEB)])


@dataclass
class Told:
    """The core, as far as it is asked, and the sender."""

    left: float = math.inf
    armed: int = 0
    messages: list[pb.Observed] = field(default_factory=list)
    sender: Any = None

    def __post_init__(self) -> None:
        self.sender = self

    def until_instant(self) -> float:
        return self.left

    def armed_epoch(self, key: str) -> int:
        return self.armed

    def send(self, name: str, message: pb.FromAgent) -> None:
        self.messages.append(message.observed)


@dataclass
class Slow:
    """Conntrack that is asked for its connections, and answers when it may; probes that nobody wants."""

    asked: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def connections(self, zones: Collection[int] | None = None) -> list[Connection]:
        self.asked += 1
        await self.gate.wait()
        return []

    def want(self, probes: object) -> None: ...

    def observed(self) -> list[pb.ProbeObserved]:
        return []


@dataclass
class Rig:
    core: Told
    conntrack: Slow
    observer: Observer


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    core, slow, inputs = Told(), Slow(), Inputs(Graph())
    shares = ColorWeight(1, 1), ColorWeight(2, 0)
    inputs.weights.put(WEB, Weights(WEB, 700, 5, shares, 1, Affinity.CONNECTION, (), 0))
    epochs = cast(Epochs, type("NoEpochs", (), {"in_force": {}, "on_applied": []})())
    observer = Observer(cast(Core, core), inputs, epochs, cast(Any, slow), slow, offset=lambda: Offset(0, 1))
    task = asyncio.create_task(observer.run())
    yield Rig(core, slow, observer)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_that_something_is_held_is_told_while_connections_are_counted(rig: Rig) -> None:
    rig.observer.want(WANTED)
    await turns()
    assert rig.conntrack.asked == 1 and not rig.core.messages
    rig.core.armed = 7
    rig.observer.kick()
    assert [message.networks[0].armed_epoch for message in rig.core.messages] == [7]
    rig.conntrack.gate.set()
    await turns()
    assert len(rig.core.messages) == 2 and rig.core.messages[-1].at


async def test_nobody_counts_shortly_before_an_instant(rig: Rig) -> None:
    rig.conntrack.gate.set()
    rig.core.left = observe.ASIDE / 2
    rig.observer.want(WANTED)
    await turns()
    assert rig.conntrack.asked == 0
    assert len(rig.core.messages) == 1, "what is known is told"
    rig.core.left = math.inf  # it has come
    rig.observer.kick()
    await turns()
    assert rig.conntrack.asked == 0, "others are still at it"
    await until(lambda: rig.conntrack.asked)


async def test_nothing_is_told_when_nobody_listens(rig: Rig) -> None:
    rig.observer.kick()
    await turns()
    assert not rig.core.messages and not rig.conntrack.asked
