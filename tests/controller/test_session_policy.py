"""Rules on the stream: what a host says about them reaches the ports that they guard, and Sync."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from controller.etcd.types import delete
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.v1 import network_pb2, port_pb2, security_pb2
from tests.controller.making import uid_of
from tests.controller.running import FakeAgent, Site, site, until
from tests.controller.test_session import Writer

NET, OPEN = "tenants/acme/networks/web", "tenants/acme/networks/open"
WEB = "tenants/acme/securityGroups/web"
P1, P2, P3 = (f"tenants/acme/ports/p{n}" for n in (1, 2, 3))
H1 = uid_of("hosts/h1")


@pytest.fixture
async def place() -> AsyncIterator[Site]:
    async with site() as running:
        yield running


@pytest.fixture
async def write(place: Site) -> Writer:
    writer = Writer(place)
    make = writer.make
    await writer(
        make.tenant("acme"),
        make.host("h1", 1, vtep="192.0.2.1"),
        make.network(NET, 1, policy=network_pb2.Network.POLICY_ENFORCE),
        make.network(OPEN, 2, ["10.9.0.0/24"]),
        make.group(WEB, ingress=[security_pb2.SecurityRule(protocol="tcp", ports=["80"])]),
        make.identity(301, "tenants/acme", WEB),
        make.identity(302, "tenants/acme"),
        make.port(P1, NET, ["10.0.0.5"], host="h1", identity=301),
        make.port(P2, NET, ["10.0.0.6"], host="h1", identity=302),
        make.port(P3, OPEN, ["10.9.0.5"], host="h1", identity=301),
    )
    return writer


async def test_rules_that_fail_are_conditions_of_their_ports(place: Site, write: Writer) -> None:
    status, sync = place.controller.status, place.controller.sync
    agent = FakeAgent("h1", "192.0.2.1")
    agent.failures = [pb.KeyFailure(key="rules/301", reason="BadResource", text="web/ingress[0]: port 0")]

    def conditions() -> list[list[str]]:
        return [[c.text for c in status.port(name).conditions] for name in (P1, P2, P3)]

    async with agent.connected(place):
        await until(lambda: status.port(P1).conditions, "the condition")
        assert conditions() == [["BadResource: web/ingress[0]: port 0"], [], []]
        assert {key for key in agent.scopes["host"] if key.startswith("rules/")} == {"rules/301", "rules/302"}
        assert status.port(P1).state == port_pb2.PortStatus.STATE_ACTIVE
        assert status.port(P1).conditions[0].type == "PolicyFailed"
        outcome = await sync.ask(revision=0, domains=frozenset({1001}), timeout=2)
        assert [f.key for f in outcome.failed] == ["rules/301"] and outcome.synced == {H1}
        assert not (await sync.ask(revision=0, domains=frozenset({1009}), timeout=2)).failed
        # Other groups are other rules: the port is not concerned any more when its host has taken that in.
        await write(write.make.port(P1, NET, ["10.0.0.5"], host="h1", identity=302))
        await until(lambda: not any(conditions()), "no condition")
        await write(write.make.port(P1, NET, ["10.0.0.5"], host="h1", identity=301))
        await until(lambda: status.port(P1).conditions, "the condition")
        agent.failures = []
        await agent.ack()
        await until(lambda: not any(conditions()), "no condition")


async def test_rules_come_and_go_with_guarded_ports(place: Site, write: Writer) -> None:
    agent = FakeAgent("h1", "192.0.2.1")

    def rules() -> set[str]:
        return {key for key in agent.scopes.get("host", ()) if key.startswith("rules/")}

    async with agent.connected(place):
        await until(lambda: rules() == {"rules/301", "rules/302"})
        await write(write.make.network(NET, 1))
        await until(lambda: not rules(), "no rules in networks that trust")
        await write(write.make.network(OPEN, 2, ["10.9.0.0/24"], policy=network_pb2.Network.POLICY_ENFORCE))
        await until(lambda: rules() == {"rules/301"})
        await write(delete(write.make.keys.intent(P3)), write.make.tombstone("h1", P3))
        await until(lambda: not rules())
