"""200 agents come back at once after their controller has died: soon, and nobody is sent what it has."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from pathlib import Path

from controller.etcd.types import Op
from tests.controller.making import Maker
from tests.controller.running import FakeAgent, Site, prepare, running, until

AGENTS = 200
GOAL = 4.0  # seconds, of a machine that does nothing else
DEADLINE = 40.0
NET = "tenants/acme/networks/web"


async def _connect(stack: contextlib.AsyncExitStack, place: Site, agents: list[FakeAgent]) -> float:
    """All at once; seconds until every one is synced."""
    leaves = [place.ca.issue(f"host/{agent.name}") for agent in agents]
    began = time.monotonic()
    await asyncio.gather(
        *(stack.enter_async_context(agent.connected(place, leaf)) for agent, leaf in zip(agents, leaves, strict=True))
    )
    assert not [agent.refused for agent in agents if agent.refused]
    sessions, store = place.controller.sessions, place.controller.store
    await until(
        lambda: len(sessions.by_host) == AGENTS and sessions.low_water >= store.revision - AGENTS,
        "all are synced",
        DEADLINE,
    )
    return time.monotonic() - began


async def test_two_hundred_agents_come_back_at_once() -> None:
    with tempfile.TemporaryDirectory(prefix="tn") as name:
        ca, settings = prepare(Path(name))
        agents = [
            FakeAgent(f"h{n}", f"192.0.{n // 250}.{n % 250 + 1}", instance=f"instance-{n}") for n in range(AGENTS)
        ]
        async with running(settings) as controller:
            make = Maker(controller.store.keys)
            ops: list[Op] = [make.tenant("acme"), make.network(NET, 1, cidrs=["10.0.0.0/16"])]
            for n, agent in enumerate(agents):
                ops.append(make.host(agent.name, n + 1, vtep=agent.vtep))
                ops.append(
                    make.port(f"tenants/acme/ports/p{n}", NET, [f"10.0.{n // 250}.{n % 250 + 2}"], host=agent.name)
                )
            await controller.store.passed((await controller.etcd.txn((), ops)).revision)
            async with contextlib.AsyncExitStack() as stack:
                first = await _connect(stack, Site(Path(name), ca, settings, controller), agents)
        held = [dict(agent.scopes["domain/1001"]) for agent in agents]
        async with running(settings) as controller, contextlib.AsyncExitStack() as stack:
            again = await _connect(stack, Site(Path(name), ca, settings, controller), agents)
            assert not [agent.name for agent in agents if agent.asked], "a digest differed"
            sent = sum(len(delta.upserts) for a in agents for unit in a.units for part in unit for delta in part.scopes)
            assert sent == 0, f"{sent} resources were sent again"
            assert held == [agent.scopes["domain/1001"] for agent in agents]
    print(f"{AGENTS} agents: {first:.2f} s when all was new, {again:.2f} s when they came back (goal {GOAL:g})")
