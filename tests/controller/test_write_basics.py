"""Each kind through its life, on a real etcd."""

from __future__ import annotations

from google.rpc import code_pb2

from controller.errors import FailedPrecondition, NotFound
from controller.events import Events
from tealnet.v1 import network_pb2, port_pb2, router_pb2, tenant_pb2
from tests.controller.writing import refusal, writing


async def test_create_and_delete_everything() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme", labels={"team": "shop"})
        host = await one.host("h1", vtep="192.0.2.1")
        assert host.revision and host.uid
        router = await one.router("acme/main")
        network = await one.network("acme/web", cidrs=["10.0.0.0/24", "FD00::/64"], router="tenants/acme/routers/main")
        assert list(network.gateways) == ["10.0.0.1", "fd00::1"]
        assert network.segments[0].vni >= 4096
        port = await one.port("acme/web-1", host="hosts/h1")
        assert len(port.addresses) == 2
        assert port.mac.startswith(("02", "06", "0a", "0e")) or int(port.mac[:2], 16) & 2
        assert port.attachment.namespace == "web-1"
        again = await one.ports.GetPort(port_pb2.GetPortRequest(name=port.name), None)
        assert again.etag == port.etag
        assert again.revision == port.revision

        blocked = await refusal(one.delete_network(network.name))
        assert isinstance(blocked, FailedPrecondition)
        assert blocked.blockers[0].subject == port.name
        await one.delete_port(port.name)
        await one.delete_network(network.name)
        await one.routers.DeleteRouter(router_pb2.DeleteRouterRequest(name=router.name), None)
        await one.tenants.DeleteTenant(tenant_pb2.DeleteTenantRequest(name="tenants/acme"), None)
        left = await site.keys("k/")
        kept = {"k/u/vni", "k/u/domain", "k/u/ip", "k/u/hostno", "k/u/vtep", "k/r/identity", "k/u/identity"}
        assert {"/".join(key.split("/")[:3]) for key in left} <= kept, left
        assert not any(key.startswith("k/r/") for key in left), left
        tombstones = await site.keys("w/t/")
        assert [key.split("/")[2] for key in tombstones] == [host.uid]


async def test_absent_things_are_not_found() -> None:
    async with writing() as site:
        one = site.one
        assert isinstance(await refusal(one.network("acme/web", cidrs=["10.0.0.0/24"])), NotFound)
        await one.tenant("acme")
        error = await refusal(one.port("acme/p"))
        assert isinstance(error, NotFound)
        assert error.code == code_pb2.NOT_FOUND
        assert error.field == "port.network"


async def test_update_merges_into_what_is_stored() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        made = await one.network("acme/web", cidrs=["10.0.0.0/24"], description="one", labels={"a": "b"})
        same = await one.update_network(made.name, description="one")
        assert (same.revision, same.etag) == (made.revision, made.etag)
        more = await one.update_network(made.name, "cidrs", cidrs=["10.0.0.0/24", "fd00::/64"])
        assert list(more.gateways) == ["10.0.0.1", "fd00::1"]
        assert more.description == "one"
        assert more.etag != made.etag
        less = await one.update_network(made.name, "cidrs", "labels", cidrs=["10.0.0.0/25"])
        assert list(less.gateways) == ["10.0.0.1"]
        assert not less.labels
        listed = await one.networks.ListNetworks(network_pb2.ListNetworksRequest(parent="tenants/-"), None)
        assert [n.name for n in listed.networks] == [made.name]


async def test_events_say_who_did_what() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        made = await one.network("acme/web", cidrs=["10.0.0.0/24"])
        await one.update_network(made.name, "description", description="x")
        await one.update_network(made.name, "description", description="x")  # changes nothing
        await one.delete_network(made.name)
        found = await Events(site.etcd, one.store.keys).read(made.uid)
        assert [(e.reason, e.text, e.actor) for e in found] == [
            ("Created", "", "admin"),
            ("Updated", "description", "admin"),
            ("Deleted", "", "admin"),
        ]
