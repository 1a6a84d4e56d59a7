"""Networks and routers: live changes, overlaps, MTU."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from controller.errors import FailedPrecondition, Invalid, NotFound
from controller.etcd.types import delete, put
from controller.fields import span_text
from controller.intents.network import uncovered
from tealnet.store.v1 import store_pb2
from tealnet.v1 import host_pb2, network_pb2, router_pb2
from tests.controller.writing import Replicated, Writing, refusal, writing

_BAD: list[tuple[dict[str, Any], str]] = [
    ({"cidrs": []}, "network.cidrs"),
    ({"cidrs": ["10.0.0.1/24"]}, "network.cidrs[0]"),
    ({"cidrs": ["10.0.0.0"]}, "network.cidrs[0]"),
    ({"cidrs": ["10.0.0.0/31"]}, "network.cidrs[0]"),
    ({"cidrs": ["0.0.0.0/0"]}, "network.cidrs[0]"),
    ({"cidrs": ["224.0.0.0/24"]}, "network.cidrs[0]"),
    ({"cidrs": ["127.0.0.0/24"]}, "network.cidrs[0]"),
    ({"cidrs": ["169.254.0.0/24"]}, "network.cidrs[0]"),
    ({"cidrs": ["fe80::/64"]}, "network.cidrs[0]"),
    ({"cidrs": ["ff00::/64"]}, "network.cidrs[0]"),
    ({"cidrs": ["fd00::/127"]}, "network.cidrs[0]"),
    ({"cidrs": ["::ffff:10.0.0.0/120"]}, "network.cidrs[0]"),
    ({"cidrs": ["10.0.0.0/24", "10.0.0.128/25"]}, "network.cidrs[1]"),
    ({"cidrs": ["10.0.0.0/24"] * 17}, "network.cidrs"),
    ({"cidrs": ["10.0.0.0/24"], "gateways": ["10.0.1.1"]}, "network.gateways[0]"),
    ({"cidrs": ["10.0.0.0/24"], "gateways": ["10.0.0.0"]}, "network.gateways[0]"),
    ({"cidrs": ["10.0.0.0/24"], "gateways": ["10.0.0.1", "10.0.0.2"]}, "network.gateways[1]"),
    ({"cidrs": ["10.0.0.0/24"], "reserved_ranges": ["10.0.0.9-10.0.0.2"]}, "network.reserved_ranges[0]"),
    ({"cidrs": ["10.0.0.0/24"], "reserved_ranges": ["10.0.0.9-10.0.1.2"]}, "network.reserved_ranges[0]"),
    ({"cidrs": ["10.0.0.0/24"], "reserved_ranges": ["many"]}, "network.reserved_ranges[0]"),
    ({"cidrs": ["fd00::/64"], "reserved_ranges": ["fd00::5%x\n"]}, "network.reserved_ranges[0]"),
    ({"cidrs": ["fd00::/64"], "reserved_ranges": ["fd00::5", "fd00:0::5"]}, "network.reserved_ranges[1]"),
    ({"cidrs": ["10.0.0.0/24"], "router": "main"}, "network.router"),
    ({"cidrs": ["10.0.0.0/24"], "router": "tenants/globex/routers/main"}, "network.router"),
    ({"cidrs": ["10.0.0.0/24"], "mtu": 575}, "network.mtu"),
    ({"cidrs": ["10.0.0.0/24"], "mtu": 9001}, "network.mtu"),
    ({"cidrs": ["fd00::/64"], "mtu": 1279}, "network.mtu"),
    ({"cidrs": ["10.0.0.0/24"], "policy": 77}, "network.policy"),
    ({"cidrs": ["10.0.0.0/24"], "dns": {"servers": ["x"]}}, "network.dns.servers[0]"),
    ({"cidrs": ["10.0.0.0/24"], "dns": {"servers": ["10.0.0.5"] * 2}}, "network.dns.servers[1]"),
    ({"cidrs": ["10.0.0.0/24"], "dns": {"search_domains": ["a b"]}}, "network.dns.search_domains[0]"),
    ({"cidrs": ["10.0.0.0/24"], "dns": {"search_domains": ["a.b"] * 2}}, "network.dns.search_domains[1]"),
    ({"cidrs": ["10.0.0.0/24"], "address_quarantine": {"seconds": -1}}, "network.address_quarantine"),
    ({"cidrs": ["10.0.0.0/24"], "address_quarantine": {"nanos": 5}}, "network.address_quarantine"),
]


async def test_fields_that_are_refused() -> None:
    async with writing() as site:
        await site.one.tenant("acme")
        for body, field in _BAD:
            error = await refusal(site.one.network("acme/web", **body))
            assert isinstance(error, Invalid), (body, error)
            assert field in [violation.field for violation in error.violations], (body, error)
        assert not await site.keys("k/")


async def test_the_same_addresses_in_two_tenants() -> None:
    async with writing() as site:
        for tenant in ("acme", "globex"):
            await site.one.tenant(tenant)
            await site.one.network(f"{tenant}/web", cidrs=["10.0.0.0/24", "fd00::/64"])
        vnis = [row.spec.segments[0].vni for row in site.one.store.world.networks.rows.values()]
        assert len(set(vnis)) == 2


async def test_attach_and_detach() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.router("acme/main")
        web = await one.network("acme/web", cidrs=["10.0.0.0/24"], router="tenants/acme/routers/main")
        db = await one.network("acme/db", cidrs=["10.0.0.0/24"])
        error = await refusal(one.update_network(db.name, "router", router="tenants/acme/routers/main"))
        assert isinstance(error, FailedPrecondition)
        assert error.blockers[0].subject == web.name
        missing = await refusal(one.update_network(db.name, "router", router="tenants/acme/routers/none"))
        assert isinstance(missing, NotFound)
        detached = await one.update_network(web.name, "router")
        assert not detached.router
        assert not await site.keys("k/r/router")
        await one.update_network(db.name, "router", router="tenants/acme/routers/main")
        assert len(await site.keys("k/r/router")) == 1
        router = await one.routers.GetRouter(router_pb2.GetRouterRequest(name="tenants/acme/routers/main"), None)
        assert list(router.networks) == [db.name]
        error = await refusal(one.update_network(web.name, "router", "mtu", router=router.name, mtu=1300))
        assert error.reason == "CIDR_OVERLAP"
        await one.network("acme/third", cidrs=["10.0.2.0/24"], router=router.name)
        error = await refusal(one.network("acme/fourth", cidrs=["10.0.3.0/24"], router=router.name, mtu=1300))
        assert error.reason == "MTU_DIFFERS"


async def test_cidrs_of_a_live_network() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        web = await one.network("acme/web", cidrs=["10.0.0.0/24"])
        port = await one.port("acme/p", addresses=["10.0.0.200"])
        await one.port("acme/q", addresses=["10.0.0.127"])
        error = await refusal(one.update_network(web.name, "cidrs", cidrs=["10.0.0.0/25"]))
        assert error.reason == "CIDR_IN_USE"
        assert port.name in error.text
        wider = await one.update_network(web.name, "cidrs", cidrs=["10.0.0.0/23"])
        assert list(wider.gateways) == ["10.0.0.1"]
        error = await refusal(one.update_network(web.name, "gateways", gateways=["10.0.0.200"]))
        assert error.reason == "ADDRESS_IN_USE"
        other = await one.update_network(web.name, "gateways", gateways=["10.0.0.254"])
        assert list(other.gateways) == ["10.0.0.254"]
        await one.delete_port(port.name)
        error = await refusal(one.update_network(web.name, "cidrs", cidrs=["10.0.0.0/25"]))
        assert "quarantine" in error.text


async def report_mtu(site: Writing, host: Any, mtu: int) -> None:
    """As its agent does."""
    store, status = site.one.store, store_pb2.HostStatusRow(underlay_mtu=mtu).SerializeToString()
    result = await site.etcd.txn((), [put(store.keys.host_status(host.uid), status)])
    await store.passed(result.revision)


async def test_the_mtu_that_underlays_carry() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        host = await one.host("h1", vtep="192.0.2.1")
        await report_mtu(site, host, 1500)
        error = await refusal(one.network("acme/web", cidrs=["10.0.0.0/24"], mtu=1451))
        assert isinstance(error, Invalid)
        assert "1450" in error.text and "hosts/h1" in error.text
        await one.network("acme/web", cidrs=["10.0.0.0/24"], mtu=1450)
        await report_mtu(site, host, 1400)
        changed = await one.update_network("tenants/acme/networks/web", labels={"a": "b"})
        assert changed.labels == {"a": "b"}
        assert isinstance(await refusal(one.update_network("tenants/acme/networks/web", mtu=1449)), Invalid)
        # Attached to nothing with it, either, until it fits.
        router = await one.router("acme/main")
        error = await refusal(one.update_network("tenants/acme/networks/web", router=router.name))
        assert isinstance(error, Invalid) and error.violations[0].field == "network.mtu"
        await one.update_network("tenants/acme/networks/web", router=router.name, mtu=1350)


async def test_a_host_with_too_little_room_takes_no_port() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.network("acme/web", cidrs=["10.0.0.0/24"])  # the default: 1430
        large, small = await one.host("h1", vtep="192.0.2.1"), await one.host("h2", vtep="2001:db8::2")
        await report_mtu(site, large, 1480)
        await report_mtu(site, small, 1499)
        port = await one.port("acme/p", host="hosts/h1")
        for call in (one.port("acme/q", host="hosts/h2"), one.update_port(port.name, "host", host="hosts/h2")):
            error = await refusal(call)
            assert error.reason == "MTU_TOO_LARGE"
            assert "hosts/h2" in error.text and "1429" in error.text and "1430" in error.text
        await report_mtu(site, large, 1479)  # its underlay has changed: what is there stays, and somebody is told
        (condition,) = (await one.hosts.GetHost(host_pb2.GetHostRequest(name="hosts/h1"), None)).status.conditions
        assert condition.type == "NetworkMtuTooLarge" and "tenants/acme/networks/web: 1430" in condition.text
        await one.update_port(port.name, "description", description="changes of other kinds are fine")
        await report_mtu(site, small, 1500)
        await one.update_port(port.name, "host", host="hosts/h2")
        assert not (await one.hosts.GetHost(host_pb2.GetHostRequest(name="hosts/h1"), None)).status.conditions


async def test_a_tenant_is_told_no_name_of_a_host_that_is_not_granted() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme", placement={"host_selector": {"zone": "a"}})
        await report_mtu(site, await one.host("h1", vtep="192.0.2.1"), 1400)
        error = await refusal(one.network("acme/web", cidrs=["10.0.0.0/24"]))
        assert "1350" in error.text and "h1" not in error.text


async def test_a_wide_cidr_becomes_many_narrow_ones_in_one_small_transaction() -> None:
    async with writing(max_ops=128) as site:
        one = site.one
        await one.tenant("acme")
        web = await one.network("acme/web", cidrs=["10.0.0.0/8", "fd00::/16"])
        segment = web.segments[0].uid
        await one.port("acme/p", addresses=["10.77.0.9"])
        narrow = [f"10.{16 * n}.7.4/30" for n in range(8)] + [f"fd00:{n}:5::4/126" for n in range(1, 9)]
        error = await refusal(one.update_network("tenants/acme/networks/web", cidrs=narrow))
        assert error.reason == "CIDR_IN_USE" and "10.64.7.8-10.80.7.3" in error.text, error.text
        await one.update_port("tenants/acme/ports/p", addresses=["10.16.7.6", "fd00:1:5::6"])
        await site.etcd.txn((), [delete(one.store.keys.ip(segment, ip_address("10.77.0.9")))])
        changed = await one.update_network("tenants/acme/networks/web", cidrs=narrow)
        assert list(changed.cidrs) == narrow


@pytest.mark.parametrize(
    ("old", "new", "gone"),
    [
        (["10.0.0.0/24"], ["10.0.0.0/25"], ["10.0.0.128-10.0.0.255"]),
        (["10.0.0.0/24"], ["10.0.0.0/16"], []),
        (["10.0.0.0/24", "fd00::/64"], ["fd00::/64"], ["10.0.0.0-10.0.0.255"]),
        (["10.0.0.0/24"], ["10.0.0.64/26", "fd00::/64"], ["10.0.0.0-10.0.0.63", "10.0.0.128-10.0.0.255"]),
    ],
)
def test_what_prefixes_no_longer_have(old: list[str], new: list[str], gone: list[str]) -> None:
    left = uncovered(map(ip_network, old), map(ip_network, new))
    assert [span_text(first, last) for first, last in left] == gone


async def test_no_gateway_for_which_a_port_may_speak() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        await one.port("acme/p", allowed_addresses=["10.9.0.0/24"])
        wider = {"cidrs": ["10.0.0.0/24", "10.9.0.0/24"]}
        error = await refusal(one.update_network("tenants/acme/networks/web", **wider))
        assert isinstance(error, FailedPrecondition)
        assert [b.subject for b in error.blockers] == ["tenants/acme/ports/p"]
        await one.update_port("tenants/acme/ports/p", "allowed_addresses")
        await one.update_network("tenants/acme/networks/web", **wider)


async def set_routes(one: Replicated, *routes: tuple[str, str]) -> Any:
    request = router_pb2.UpdateRouterRequest(router=router_pb2.Router(name="tenants/acme/routers/main"))
    for prefix, hop in routes:
        request.router.routes.add(prefix=prefix, next_hop=hop)
    request.update_mask.paths.append("routes")
    return await one.routers.UpdateRouter(request, None)


async def test_static_routes() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.router("acme/main", routes=[{"prefix": "10.8.0.0/16", "next_hop": "10.0.0.9"}])
        await one.network("acme/web", cidrs=["10.0.0.0/24"], router="tenants/acme/routers/main")
        for route in (
            ("10.9.0.1/16", "10.0.0.9"),
            ("10.9.0.0/16", "x"),
            ("10.9.0.0/16", "fd00::9"),
            ("10.9.0.0/16", "10.9.0.1"),
        ):
            assert isinstance(await refusal(set_routes(one, route)), Invalid)
        twice = await refusal(set_routes(one, ("10.9.0.0/16", "10.0.0.9"), ("10.9.0.0/16", "10.0.0.8")))
        assert isinstance(twice, Invalid)
        assert (await refusal(set_routes(one, ("10.0.0.0/16", "10.1.0.9")))).reason == "PREFIX_OVERLAP"
        assert (await refusal(set_routes(one, ("10.9.0.0/16", "10.0.0.1")))).reason == "NEXT_HOP_IS_GATEWAY"
        assert (await refusal(set_routes(one, ("10.0.0.128/25", "10.0.0.9")))).reason == "PREFIX_OVERLAP"
        router = await set_routes(one, ("10.9.0.0/16", "10.0.0.9"), ("10.9.1.0/24", "10.0.0.8"))
        assert len(router.routes) == 2
        overlap = await refusal(one.network("acme/db", cidrs=["10.9.4.0/24"], router=router.name))
        assert overlap.reason == "PREFIX_OVERLAP"


async def test_pages_and_filters() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        for number in range(7):
            await one.network(f"acme/n{number}", cidrs=["10.0.0.0/24"], labels={"parity": str(number % 2)})
        request = network_pb2.ListNetworksRequest(parent="tenants/acme", page_size=3)
        seen: list[str] = []
        while True:
            answer = await one.networks.ListNetworks(request, None)
            seen += [n.name[-2:] for n in answer.networks]
            request.page_token = answer.next_page_token
            if not request.page_token:
                break
        assert seen == [f"n{number}" for number in range(7)]
        request = network_pb2.ListNetworksRequest(parent="tenants/acme", page_size=3, filter="parity=1")
        answer = await one.networks.ListNetworks(request, None)
        assert [n.name[-2:] for n in answer.networks] == ["n1", "n3", "n5"]
        assert not answer.next_page_token
        request.page_token, request.page_size, request.filter = "", 1, ""
        request.page_token = (await one.networks.ListNetworks(request, None)).next_page_token
        request.filter = "parity=0"
        assert isinstance(await refusal(one.networks.ListNetworks(request, None)), Invalid)
        request.page_token = "%%%"
        assert isinstance(await refusal(one.networks.ListNetworks(request, None)), Invalid)


async def test_a_pool_of_vnis_that_is_used_up() -> None:
    """A released VNI is not given out again before no host can know its old meaning."""
    async with writing(vni_first=5000, vni_last=5002) as site:
        one = site.one
        await one.tenant("acme")
        made = [await one.network(f"acme/n{number}", cidrs=["10.0.0.0/24"]) for number in range(3)]
        assert {network.segments[0].vni for network in made} == {5000, 5001, 5002}
        await one.delete_network(made[0].name)
        error = await refusal(one.network("acme/more", cidrs=["10.0.0.0/24"]))
        assert error.reason == "POOL_EXHAUSTED"
        assert "5000…5002" in error.text


async def test_a_network_of_an_earlier_version_stays_without_policy_until_it_is_said() -> None:
    """Controllers without security groups wrote no policy."""
    async with writing() as site:
        one, off, enforce = site.one, network_pb2.Network.POLICY_OFF, network_pb2.Network.POLICY_ENFORCE
        await one.tenant("acme")
        await one.network("acme/new", cidrs=["10.1.0.0/24"])
        name = (await one.network("acme/web", cidrs=["10.0.0.0/24"])).name
        row = one.store.world.networks.rows[name]
        stored = store_pb2.Stored.FromString(row.stored)
        message = network_pb2.Network.FromString(stored.message)
        message.ClearField("policy")
        stored.message = message.SerializeToString()
        await site.etcd.txn((), [put(one.store.keys.intent(name), stored.SerializeToString())])
        await one.store.barrier()
        assert not one.store.world.networks.rows[name].spec.guarded
        changed = await one.update_network(name, "description", description="text")
        assert changed.policy == off and not one.store.world.networks.rows[name].spec.guarded
        assert (await one.update_network(name, "policy")).policy == off  # nothing is said
        assert (await one.update_network(name, "policy", policy=enforce)).policy == enforce
        new = await one.update_network("tenants/acme/networks/new", "policy")
        assert new.policy == enforce and one.store.world.networks.rows[new.name].spec.guarded
