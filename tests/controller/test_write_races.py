"""What several replicas do at the same time: etcd decides, nobody is left half-way."""

from __future__ import annotations

import asyncio
from typing import Any

from controller.errors import ApiError, FailedPrecondition, NotFound
from tests.controller.consistent import inconsistencies
from tests.controller.test_write_delete import delete_tenant
from tests.controller.writing import Writing, outcome, writing


async def orphans(site: Writing) -> list[str]:
    """Ports whose network is gone."""
    await site.one.store.barrier()
    world = site.one.store.world
    return [p.name for p in world.ports.rows.values() if p.spec.network not in world.networks.rows]


async def test_network_delete_against_port_create() -> None:
    """A5: without compares 578 of 600 such races left a port without its network."""
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await one.tenant("acme")
        both_refused = created = 0
        for number in range(100):
            network = await one.network(f"acme/n{number}", cidrs=["10.0.0.0/24"])
            await two.store.passed(network.revision)
            port, deleted = await asyncio.gather(
                outcome(two.port(f"acme/p{number}", f"n{number}")), outcome(one.delete_network(network.name))
            )
            if isinstance(port, ApiError):
                assert isinstance(port, NotFound), port
                both_refused += deleted is not None
            else:
                assert isinstance(deleted, FailedPrecondition), deleted
                created += 1
        assert await orphans(site) == []
        assert await inconsistencies(one.store) == []
        assert both_refused == 0
        assert len(one.store.world.ports.rows) == created


async def test_allocation_by_two_replicas() -> None:
    """300 creates at once on two replicas: every number, address and slot once, and nobody refused."""
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await one.tenant("acme", quota={"ports": 310})
        network = await one.network("acme/web", cidrs=["10.0.0.0/23", "fd00::/64"])
        await two.store.passed(network.revision)
        limit = asyncio.Semaphore(48)

        async def create(number: int) -> Any:
            async with limit:
                return await site.replicas[number % 2].port(f"acme/p{number}")

        ports = await asyncio.gather(*(create(number) for number in range(300)))
        addresses = [address for port in ports for address in port.addresses]
        assert len(set(addresses)) == 600
        assert len({port.mac for port in ports}) == 300
        await one.store.barrier()
        rows = one.store.world.ports.rows.values()
        assert len({row.slot for row in rows}) == 300
        assert len({row.spec.identity for row in rows}) == 1
        assert all(row.slot < 310 for row in rows)
        assert await inconsistencies(two.store) == []


async def test_overlap_in_a_router_through_the_guard() -> None:
    """Two networks with the same addresses attach to one router at the same time on two replicas: one gets in."""
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await one.tenant("acme")
        for number in range(30):
            router = await one.router(f"acme/r{number}")
            await two.store.passed(router.revision)
            results = await asyncio.gather(
                outcome(one.network(f"acme/a{number}", cidrs=["10.0.0.0/24"], router=router.name)),
                outcome(two.network(f"acme/b{number}", cidrs=["10.0.0.128/25"], router=router.name)),
            )
            refused = [result for result in results if isinstance(result, ApiError)]
            assert len(refused) == 1, results
            assert isinstance(refused[0], FailedPrecondition)
            assert refused[0].reason == "CIDR_OVERLAP"


async def test_tenant_delete_against_creates() -> None:
    """A tenant that goes takes all with it, also what others create meanwhile; nothing stays behind."""
    async with writing(replicas=2) as site:
        one, two = site.replicas
        for number in range(5):
            tenant = await one.tenant(f"t{number}")
            await one.network(f"t{number}/web", cidrs=["10.0.0.0/24"], router="")
            await two.store.passed(tenant.revision)
            creates = [outcome(two.port(f"t{number}/p{i}")) for i in range(20)]
            results = await asyncio.gather(*creates[:10], outcome(delete_tenant(one, tenant.name)), *creates[10:])
            assert results[10] is None, results[10]
            await one.store.barrier()
            await two.store.barrier()
            assert not one.store.world.ports.rows
            assert not await site.keys("k/r/segment")
            assert not await site.keys("k/q")


async def test_one_name_is_created_once() -> None:
    async with writing(replicas=2) as site:
        one, two = site.replicas
        tenant = await one.tenant("acme")
        await two.store.passed(tenant.revision)
        calls = [site.replicas[i % 2].network("acme/web", cidrs=["10.0.0.0/24"]) for i in range(20)]
        results = await asyncio.gather(*(outcome(call) for call in calls))
        assert sum(not isinstance(result, ApiError) for result in results) == 1
        assert {r.reason for r in results if isinstance(r, ApiError)} == {"ALREADY_EXISTS"}
        assert len(await site.keys("k/u/vni")) == 1
        assert len(await site.keys("k/q")) == 1


async def test_refusals_see_what_others_have_just_done() -> None:
    """A replica that lags does not refuse because of it: what a check saw is compared also when it refuses."""
    async with writing(replicas=2) as site:
        one, two = site.replicas
        for number in range(30):
            await one.tenant(f"t{number}")
            made = await two.network(f"t{number}/web", cidrs=["10.0.0.0/24"])
            await one.port(f"t{number}/p")
            assert made.revision
