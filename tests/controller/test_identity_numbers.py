"""Numbers of identities while a host sleeps: none comes to mean something else before the host has heard of it.

A group is deleted and another one made, again and again, on a real controller and etcd with so few numbers that each
has to be used anew. The host that is away knows the numbers of before; what it makes of them when it is back must be
right. (In `make test-long` 10,000 times.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import pytest

from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.v1 import host_pb2, network_pb2, port_pb2, security_pb2, tenant_pb2
from tests.controller.running import FakeAgent, Site, site
from tests.controller.test_policy_api import Client, group
from tests.samples import samples

TIMES = samples(60, many=10_000)

pytestmark = pytest.mark.long
FIRST = 1000
FRIEND, GUARDS = group("acme/friend"), group("acme/guards")


class Churn:
    """acme: `door` on h1 lets friends in; p0 to p2 on h2 are friends or not."""

    def __init__(self, place: Site) -> None:
        self.place, self.client = place, Client(place, "admin")
        self.agents = [FakeAgent(f"h{n}", f"192.0.2.{n}", features=("colors", "security")) for n in (1, 2)]
        self.groups: dict[str, str] = {}  # group by port

    async def begin(self) -> None:
        await self.client.tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id="acme"))
        for agent in self.agents:
            host = host_pb2.Host(vtep=agent.vtep)
            await self.client.hosts.CreateHost(host_pb2.CreateHostRequest(host_id=agent.name, host=host))
        await self.client.network("acme/web", "10.0.0.0/24", policy=network_pb2.Network.POLICY_ENFORCE)
        for name in ("friend", "stranger"):
            await self.client.group(f"acme/{name}")
        await self.client.group("acme/guards", ingress=[security_pb2.SecurityRule(remote_group=FRIEND)])
        await self.client.port("acme/door", "web", "guards", host="h1")
        for number, name in enumerate(("friend", "friend", "stranger")):
            await self.client.port(f"acme/p{number}", "web", name, host="h2")
            self.groups[f"p{number}"] = group(f"acme/{name}")

    async def move(self, port: str, name: str) -> None:
        """Into another group."""
        body = port_pb2.Port(name=f"tenants/acme/ports/{port}", security_groups=[group(f"acme/{name}")])
        request = port_pb2.UpdatePortRequest(port=body, update_mask={"paths": ["security_groups"]})
        await self.client.ports.UpdatePort(request)
        self.groups[port] = group(f"acme/{name}")

    async def again(self, number: int) -> None:
        """A new group, p2 goes there, the one before is no more; p0 comes and goes as a friend."""
        await self.client.group(f"acme/g{number}")
        await self.move("p2", f"g{number}")
        if number:
            request = security_pb2.DeleteSecurityGroupRequest(name=group(f"acme/g{number - 1}"))
            await self.client.groups.DeleteSecurityGroup(request)
        if number % 10 == 0:
            await self.move("p0", "friend" if number % 20 else "stranger")

    async def free(self) -> int:
        """Give back what nobody can know any more; how many identities there are then."""
        release = self.place.controller.chores.release
        assert release is not None
        for _ in range(2):
            await release.numbers()
        await self.place.controller.store.barrier()
        return len(self.place.controller.store.world.identities.rows)

    def meanings(self) -> dict[int, tuple[str, ...]]:
        """What each number means now: uids of tenant and groups."""
        return {number: row.members for number, row in self.place.controller.store.world.identities.rows.items()}

    def known(self, agent: FakeAgent) -> set[int]:
        """The numbers in what a host was sent."""
        bodies = {key: body for scope in agent.scopes.values() for key, body in scope.items()}
        found = {pb.Endpoint.FromString(b).identity for key, b in bodies.items() if key.startswith("endpoint/")}
        for rules in (pb.Rules.FromString(b) for key, b in bodies.items() if key.startswith("rules/")):
            found |= {n for tier in rules.tiers for rule in tier.rules for n in rule.remote.identities}
        return found

    def let_in(self, agent: FakeAgent) -> Mapping[str, bool]:
        """Whom the door lets in, by what this host knows: their identity is one of those in the only rule."""
        bodies = {key: body for scope in agent.scopes.values() for key, body in scope.items()}
        world = self.place.controller.store.world
        door = pb.LocalPort.FromString(bodies[f"localport/{world.ports.rows['tenants/acme/ports/door'].uid}"])
        (rule,) = (r for tier in pb.Rules.FromString(bodies[f"rules/{door.identity}"]).tiers for r in tier.rules)
        ends = {name: bodies[f"endpoint/{world.ports.rows[f'tenants/acme/ports/{name}'].uid}"] for name in self.groups}
        allowed = set(rule.remote.identities)
        return {name: pb.Endpoint.FromString(body).identity in allowed for name, body in ends.items()}

    async def synced(self) -> None:
        """Every host has what is committed."""
        outcome = await self.place.controller.sync.ask(revision=0, domains=None, timeout=30)
        assert not outcome.failed and outcome.synced == {uid_of_host(self.place, agent) for agent in self.agents}

    async def freed(self) -> None:
        """All numbers but those in use are free again."""
        async with asyncio.timeout(60):
            while await self.free() > 10:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


def uid_of_host(place: Site, agent: FakeAgent) -> str:
    return place.controller.store.world.hosts.rows[f"hosts/{agent.name}"].uid


async def test_no_number_means_another_thing_to_a_host_that_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.intents.identity.FIRST_NUMBER", FIRST)
    monkeypatch.setattr("controller.intents.identity.LAST_NUMBER", FIRST + TIMES + 9)
    used: list[set[int]] = []
    async with site() as place:
        churn = Churn(place)
        await churn.begin()
        sleeper, awake = churn.agents
        async with awake.connected(place):
            async with sleeper.connected(place):
                await churn.synced()
            for start in (0, TIMES):
                used.append(await sleep(churn, sleeper, range(start, start + TIMES)))
                async with sleeper.connected(place):
                    await churn.synced()
                    assert churn.let_in(sleeper) == {name: at == FRIEND for name, at in churn.groups.items()}
                    assert churn.known(sleeper) <= churn.meanings().keys()
                    await churn.freed()  # now that it knows of them all
    assert used[0] & used[1], "no number was used again: the test shows nothing"


async def sleep(churn: Churn, sleeper: FakeAgent, numbers: Iterable[int]) -> set[int]:
    """Groups come and go while it is away; the numbers that were used."""
    knew, meant, seen = churn.known(sleeper), churn.meanings(), set[int]()
    for number in numbers:
        await churn.again(number)
        if number % 25 == 0:
            await churn.free()
        now = churn.meanings()
        seen |= now.keys()
        other = {n: (meant[n], now[n]) for n in knew & now.keys() if now[n] != meant[n]}
        assert not other, f"the host that is away knows them otherwise: {other}"
    assert await churn.free() >= TIMES, "given back although a host may know them"
    return seen
