"""Weights on the stream: whole, in one unit with what they need, before all else, and Sync about them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from controller.etcd.types import Put
from controller.store import Change
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.colors import parse_weights
from tealnet.v1 import system_pb2, system_pb2_grpc
from tests.controller.making import Maker, uid_of
from tests.controller.running import FakeAgent, Site, site, until
from tests.controller.test_session import Writer, synced

WEB, DB = "tenants/acme/networks/web", "tenants/acme/networks/db"
ROUTER = "tenants/acme/routers/main"
KEYS = {name: f"weights/{uid_of(name)}" for name in (WEB, DB)}
COLORS = (("blue", 4), ("green", 1))
DOMAIN = "domain/77"


@pytest.fixture
async def place() -> AsyncIterator[Site]:
    async with site() as running:
        yield running


@pytest.fixture
async def write(place: Site) -> Writer:
    """web and db in two colors on one router, a port of web on h1 and of db on h2."""
    writer = Writer(place)
    make = writer.make
    await writer(
        make.tenant("acme"),
        make.router(ROUTER, 77),
        make.host("h1", 1, vtep="192.0.2.1"),
        make.host("h2", 2, vtep="192.0.2.2"),
        make.network(WEB, 1, ["10.1.0.0/24"], ROUTER, COLORS),
        make.network(DB, 2, ["10.2.0.0/24"], ROUTER, COLORS),
        *splits(make, {"blue": 100}),
        make.port("tenants/acme/ports/web-1", WEB, ["10.1.0.5"], host="h1"),
        make.port("tenants/acme/ports/db-1", DB, ["10.2.0.5"], host="h2", segment="green"),
    )
    return writer


def splits(make: Maker, weights: dict[str, int]) -> list[Put]:
    return [make.split(name, weights) for name in (WEB, DB)]


def agents() -> tuple[FakeAgent, FakeAgent]:
    return FakeAgent("h1", "192.0.2.1"), FakeAgent("h2", "192.0.2.2", instance="instance-2")


def weights_of(agent: FakeAgent, name: str) -> tuple[dict[int, int], int]:
    """By color number, and the epoch."""
    found = parse_weights(uid_of(name), agent.scopes[DOMAIN][KEYS[name]])
    return {c.color: c.weight for c in found.colors}, found.epoch


async def test_several_networks_switch_in_one_unit(place: Site, write: Writer) -> None:
    one, two = agents()
    async with one.connected(place), two.connected(place):
        for agent in (one, two):
            await synced(place, agent, place.controller.store.revision)
            assert weights_of(agent, WEB)[0] == weights_of(agent, DB)[0] == {4: 100, 1: 0}
        before = {agent.name: len(agent.units) for agent in (one, two)}
        revision = await write(*splits(write.make, {"blue": 95, "green": 5}))
        for agent in (one, two):
            await synced(place, agent, revision)
            (unit,) = agent.units[before[agent.name] :]
            sent = {r.key for part in unit for delta in part.scopes for r in delta.upserts}
            assert sent == set(KEYS.values())
            assert weights_of(agent, WEB) == weights_of(agent, DB) == ({4: 95, 1: 5}, revision)


async def test_a_failure_of_weights_is_the_splits(place: Site, write: Writer) -> None:
    one, two = agents()
    async with one.connected(place), two.connected(place), place.channel(place.ca.issue("admin")) as channel:
        await synced(place, one, place.controller.store.revision)
        one.failures = [pb.KeyFailure(key=KEYS[WEB], version=b"v", reason="NotClosed", text="why")]
        await one.ack()
        stub = system_pb2_grpc.SystemServiceStub(channel)

        async def failed(parent: str) -> list[tuple[str, str]]:
            answer = await stub.Sync(system_pb2.SyncRequest(parent=parent))
            return [(failure.object, failure.reason) for failure in answer.failed]

        for parent in (WEB, f"{WEB}/trafficSplit", ROUTER, "tenants/acme", ""):
            assert await failed(parent) == [(f"{WEB}/trafficSplit", "NotClosed")], parent
        await write(write.make.network("tenants/acme/networks/other", 5))
        assert await failed("tenants/acme/networks/other") == []


async def test_pings_tell_both_clocks(place: Site, write: Writer) -> None:
    one, _ = agents()
    began = time.time_ns()
    async with one.connected(place):
        await until(lambda: one.pinged.echo_sent_at, "an echo")
        ping = one.pinged
        assert began <= ping.echo_sent_at <= ping.echo_received_at <= ping.sent_at <= time.time_ns()


async def test_a_flip_overtakes_what_others_are_owed(place: Site, write: Writer) -> None:
    """While thousands wait for their turns, the units with weights are cut within a few rounds of the loop."""
    one, two = agents()
    async with one.connected(place), two.connected(place):
        for agent in (one, two):
            await synced(place, agent, place.controller.store.revision)
        sessions, owed = place.controller.sessions, list[int]()

        async def wait_for_ever(number: int) -> None:
            while True:
                await sessions._turns.take(number)

        async def look() -> None:
            for _ in range(5):
                await asyncio.sleep(0)
            owed.extend(session.outbox.since for session in sessions.by_host.values())

        def follow(_: int, changes: list[Change]) -> None:
            if any(change.table == "splits" for change in changes):
                looks.append(asyncio.create_task(look()))

        looks: list[asyncio.Task[None]] = []
        crowd = [asyncio.create_task(wait_for_ever(number)) for number in range(2000)]
        place.controller.store.subscribe(follow)
        try:
            await write(*splits(write.make, {"green": 1}))
            await asyncio.gather(*looks)
        finally:
            for task in crowd:
                task.cancel()
        assert owed == [0, 0]
