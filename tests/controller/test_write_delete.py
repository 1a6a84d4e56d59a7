"""Deleting: protection, cascades, tombstones."""

from __future__ import annotations

from typing import Any

from controller.api.cascade import Cascade
from controller.errors import FailedPrecondition
from tealnet.store.v1 import store_pb2
from tealnet.v1 import host_pb2, network_pb2, router_pb2, tenant_pb2
from tests.controller.writing import Replicated, refusal, writing


async def delete_tenant(one: Replicated, name: str, *, force: bool = True) -> None:
    await one.tenants.DeleteTenant(tenant_pb2.DeleteTenantRequest(name=name, force=force), None)


async def test_what_is_referenced_stays_and_the_error_says_by_whom() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.host("h1", vtep="192.0.2.1")
        await one.router("acme/main")
        await one.network("acme/web", cidrs=["10.0.0.0/24"], router="tenants/acme/routers/main")
        for number in range(12):
            await one.port(f"acme/p{number}", host="hosts/h1")
        calls: list[tuple[Any, set[str]]] = [
            (one.tenants.DeleteTenant(tenant_pb2.DeleteTenantRequest(name="tenants/acme"), None), {"tenants/acme"}),
            (one.hosts.DeleteHost(host_pb2.DeleteHostRequest(name="hosts/h1"), None), {"tenants/acme/ports"}),
            (
                one.routers.DeleteRouter(router_pb2.DeleteRouterRequest(name="tenants/acme/routers/main"), None),
                {"tenants/acme/networks/web"},
            ),
            (one.delete_network("tenants/acme/networks/web"), {"tenants/acme/ports"}),
        ]
        for call, blockers in calls:
            error = await refusal(call)
            assert isinstance(error, FailedPrecondition), error
            assert error.reason == "IN_USE"
            assert all(any(b.subject.startswith(name) for name in blockers) for b in error.blockers)
        assert "and 2 more" in error.text


async def test_forced_delete_of_a_network_takes_its_ports() -> None:
    async with writing(max_ops=128) as site:
        one = site.one
        await one.tenant("acme")
        await one.host("h1", vtep="192.0.2.1")
        network = await one.network("acme/web", cidrs=["10.0.0.0/24"])
        await one.network("acme/db", cidrs=["10.0.0.0/24"])
        for number in range(80):
            await one.port(f"acme/p{number}", host="hosts/h1")
        await one.port("acme/other", "db")
        await one.delete_network(network.name, force=True)
        assert list(one.store.world.ports.rows) == ["tenants/acme/ports/other"]
        assert len(await site.keys("w/t/")) == 80


async def test_forced_delete_of_a_tenant_and_its_name_again() -> None:
    async with writing() as site:
        one = site.one
        first = await one.tenant("acme")
        await one.router("acme/main")
        await one.network("acme/web", cidrs=["10.0.0.0/24"], router="tenants/acme/routers/main")
        await one.port("acme/p")
        await delete_tenant(one, "tenants/acme")
        world = one.store.world
        assert not world.tenants.rows and not world.networks.rows and not world.ports.rows and not world.routers.rows
        second = await one.tenant("acme")
        assert second.uid != first.uid
        assert second.revoked_before.seconds >= first.revoked_before.seconds


async def test_a_tenant_that_is_being_deleted_takes_nothing_new() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await Cascade(one.api.planner.parts)._mark("tenants/acme", "")
        error = await refusal(one.network("acme/web", cidrs=["10.0.0.0/24"]))
        assert error.reason == "TENANT_DELETING"


async def test_tombstones_say_what_waits_for_them() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        host = await one.host("h1", vtep="192.0.2.1")
        network = await one.network("acme/web", cidrs=["10.0.0.0/24"], address_quarantine={"seconds": 7})
        port = await one.port("acme/p", host="hosts/h1")
        unbound = await one.port("acme/q")
        await one.delete_port(port.name)
        await one.delete_port(unbound.name)
        rows = {key: store_pb2.Tombstone.FromString(value) for key, value in (await site.keys("w/t/")).items()}
        row = rows.pop(f"w/t/{host.uid}/{port.uid}")
        assert (row.port_name, row.quarantine_seconds, row.acked) == (port.name, 7, False)
        assert row.network_uid == network.uid
        (held,) = [
            store_pb2.Holder.FromString((await site.etcd.range(k.encode())).kvs[0].value) for k in row.address_keys
        ]
        assert held.released
        assert held.tombstone.endswith(f"w/t/{host.uid}/{port.uid}")
        (free,) = rows.values()
        assert free.acked
        error = await refusal(one.port("acme/r", addresses=list(port.addresses)))
        assert error.reason == "ADDRESS_IN_USE"
        assert "quarantine" in error.text and "hosts/h1" in error.text


async def test_a_forced_delete_that_is_sent_again_leaves_what_has_the_name_now() -> None:
    async with writing() as site:
        one = site.one
        tenant = await one.tenant("acme")
        network = await one.network("acme/web", cidrs=["10.0.0.0/24"])
        gone = network_pb2.DeleteNetworkRequest(name=network.name, etag=network.etag, force=True, request_id="one")
        await one.networks.DeleteNetwork(gone, None)
        await one.networks.DeleteNetwork(gone, None)  # done already
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        port = await one.port("acme/p")
        await one.networks.DeleteNetwork(gone, None)
        assert port.name in one.store.world.ports.rows
        all_gone = tenant_pb2.DeleteTenantRequest(name=tenant.name, etag=tenant.etag, force=True, request_id="two")
        await one.tenants.DeleteTenant(all_gone, None)
        await one.tenant("acme")
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        await one.port("acme/p")
        await one.tenants.DeleteTenant(all_gone, None)
        assert port.name in one.store.world.ports.rows
