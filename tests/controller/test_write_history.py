"""Random histories of right requests by two replicas at once: whatever the order, the store is whole afterwards."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from controller.errors import ApiError
from tealnet.v1 import host_pb2, router_pb2
from tests.controller.consistent import inconsistencies
from tests.controller.test_write_delete import delete_tenant
from tests.controller.writing import Replicated, outcome, writing
from tests.samples import samples

TENANTS, NETWORKS, PORTS = ("acme", "globex"), ("web", "db"), [f"p{n}" for n in range(8)]
HOSTS = ["", "hosts/h1", "hosts/h2"]
COLORS = [[], ["blue"], ["blue", "green"], ["green", "blue"], ["red", "green"], ["green"]]


def step(one: Replicated, rng: random.Random) -> Any:
    """One request that may well be possible, as an awaitable."""
    tenant, network, port = rng.choice(TENANTS), rng.choice(NETWORKS), rng.choice(PORTS)
    net, own = f"tenants/{tenant}/networks/{network}", f"tenants/{tenant}/ports/{port}"
    host, router = rng.choice(HOSTS), rng.choice(["", f"tenants/{tenant}/routers/main"])
    address = f"10.0.0.{rng.randrange(2, 12)}"
    cidrs = rng.choice([["10.0.0.0/24"], ["10.0.0.0/24", "fd00::/64"], ["10.0.0.0/28"]])
    if network == "db" and rng.random() < 0.7:  # so that both fit into one router
        cidrs = ["10.0.1.0/24"]
    colors, color = rng.choice(COLORS), rng.choice(["", "blue", "green", "red"])
    match rng.randrange(28):
        case 0:
            return one.tenant(tenant)
        case 1:
            return one.router(f"{tenant}/main")
        case 2 | 3:
            return one.network(f"{tenant}/{network}", cidrs=cidrs, router=router, colors=colors)
        case 4:
            return one.update_network(net, "router", router=router)
        case 5:
            return one.update_network(net, "cidrs", cidrs=cidrs)
        case 6:
            return one.delete_network(net)
        case 7:
            return one.delete_network(net, force=True)
        case 8:
            return one.host(rng.choice(["h1", "h2"]), vtep=f"192.0.2.{rng.randrange(1, 4)}")
        case 9:
            return one.hosts.DeleteHost(host_pb2.DeleteHostRequest(name=host), None)
        case 10:
            return one.routers.DeleteRouter(router_pb2.DeleteRouterRequest(name=f"tenants/{tenant}/routers/main"), None)
        case 11 if rng.random() < 0.1:
            return delete_tenant(one, f"tenants/{tenant}")
        case 12 | 13:
            return one.delete_port(own)
        case 14 | 15:
            return one.update_port(own, "host", host=host)
        case 16:
            return one.update_port(own, "addresses", addresses=[address])
        case 17:
            return one.port(f"{tenant}/{port}", network, host=host, addresses=[address], color=color)
        case 18 | 19 | 20:
            return one.colors(f"{tenant}/{network}", *colors)
        case 21:
            return one.update_network(net, "colors", "router", colors=colors, router=router)
        case 22 | 23:
            weights = f"blue={rng.randrange(3)} green={rng.randrange(3)}"
            on_open = rng.choice(["ON_OPEN_KEEP", "ON_OPEN_CUT"])
            return one.weights(f"{tenant}/web {weights}", f"{tenant}/db {weights}", force=True, on_open=on_open)
        case 24:
            return one.weights(f"{tenant}/{network} {color or 'blue'}=1", force=True)
        case _:
            return one.port(f"{tenant}/{port}", network, host=host, color=color)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(samples(4, many=200)))
async def test_a_random_history(seed: int) -> None:
    rng, limit = random.Random(seed), asyncio.Semaphore(12)
    async with writing(replicas=2, max_ops=(128, 4096)[seed % 2]) as site:

        async def one_step() -> Any:
            async with limit:
                return await outcome(step(rng.choice(site.replicas), rng))

        for tenant in TENANTS:
            await site.one.tenant(tenant)
            await site.one.router(f"{tenant}/main")
            for network in NETWORKS:
                await site.one.network(f"{tenant}/{network}", cidrs=["10.0.0.0/24"])
        for host in ("h1", "h2"):
            await site.one.host(host)
        results = await asyncio.gather(*(one_step() for _ in range(400)))
        refusals = [result for result in results if isinstance(result, ApiError)]
        assert len(refusals) < 360, "hardly anything was possible"
        assert [error for error in refusals if error.reason in ("INTERNAL", "ABORTED")] == []
        for replica in site.replicas:
            assert await inconsistencies(replica.store) == []
