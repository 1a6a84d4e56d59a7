"""Ports: allocation, moves, updates, grants."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import Any

from controller.errors import FailedPrecondition, Invalid, NotFound, ResourceExhausted
from controller.etcd.types import delete
from tealnet.store.v1 import store_pb2
from tealnet.v1 import common_pb2, host_pb2, network_pb2, port_pb2, tenant_pb2
from tests.controller.consistent import inconsistencies
from tests.controller.writing import outcome, refusal, writing

DEVICE = common_pb2.ATTACHMENT_KIND_DEVICE
NETNS_PATH = common_pb2.ATTACHMENT_KIND_NETNS_PATH


async def test_an_exhausted_network_says_what_holds_its_addresses() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.host("h1", vtep="192.0.2.1")
        await one.network("acme/web", cidrs=["10.0.0.0/29"], reserved_ranges=["10.0.0.2"])
        ports = [await one.port(f"acme/p{number}", host="hosts/h1") for number in range(4)]
        assert {p.addresses[0] for p in ports} == {f"10.0.0.{i}" for i in (3, 4, 5, 6)}
        await one.delete_port(ports[0].name)
        error = await refusal(one.port("acme/more"))
        assert isinstance(error, ResourceExhausted)
        assert error.reason == "ADDRESSES_EXHAUSTED"
        for part in ("of 8 addresses 3 are held by ports", "4 kept back", "1 in quarantine", "hosts/h1 has confirmed"):
            assert part in error.text, error.text
        asked = await one.port("acme/asked", addresses=["10.0.0.2"])  # reserved ranges are only never given out
        assert list(asked.addresses) == ["10.0.0.2"]


async def test_addresses_run_low_from_nine_in_ten() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        name = (await one.network("acme/web", cidrs=["10.0.0.0/28", "fd00::/64"])).name  # 13 for ports

        async def conditions() -> list[str]:
            network = await one.networks.GetNetwork(network_pb2.GetNetworkRequest(name=name), None)
            return [f"{c.type} {c.text}" for c in network.status.conditions]

        for number in range(11):
            await one.port(f"acme/p{number}", addresses=[f"10.0.0.{2 + number}"])
        assert await conditions() == []
        last = await one.port("acme/p11", addresses=["10.0.0.13"])
        assert await conditions() == [
            "AddressesLow 12 addresses of 10.0.0.0/28 are in use, 0 in quarantine, 1 are free"
        ]
        await one.delete_port(last.name)  # its address is in quarantine: as good as used
        assert await conditions() == [
            "AddressesLow 11 addresses of 10.0.0.0/28 are in use, 1 in quarantine, 1 are free"
        ]


async def test_a_quota_that_is_used_up() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme", quota={"ports": 2, "networks": 1})
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        assert (await refusal(one.network("acme/two", cidrs=["10.0.0.0/24"]))).reason == "QUOTA_EXCEEDED"
        await one.port("acme/a")
        port = await one.port("acme/b")
        assert (await refusal(one.port("acme/c"))).reason == "QUOTA_EXCEEDED"
        await one.delete_port(port.name)
        await one.port("acme/c")


async def test_a_quota_that_was_lowered_gives_no_slots_below_it() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        for number in range(4):
            await one.port(f"acme/p{number}")
        tenant = tenant_pb2.Tenant(name="tenants/acme", quota={"ports": 3})
        await one.tenants.UpdateTenant(tenant_pb2.UpdateTenantRequest(tenant=tenant), None)
        assert (await refusal(one.port("acme/more"))).reason == "QUOTA_EXCEEDED"
        await one.delete_port("tenants/acme/ports/p0")
        assert (await refusal(one.port("acme/more"))).reason == "QUOTA_EXCEEDED"


async def test_move_and_back() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        h1, h2 = await one.host("h1", vtep="192.0.2.1"), await one.host("h2", vtep="192.0.2.2")
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        port = await one.port("acme/p", host="hosts/h1")
        moved = await one.update_port(port.name, "host", host="hosts/h2")
        assert (moved.mac, moved.addresses, moved.uid) == (port.mac, port.addresses, port.uid)
        rows = await site.keys("w/t/")
        tombstone = store_pb2.Tombstone.FromString(rows[f"w/t/{h1.uid}/{port.uid}"])
        assert (tombstone.moved_to, list(tombstone.address_keys)) == (h2.uid, [])
        assert [k.split("/")[3] for k in await site.keys("k/r/host")] == [h2.uid]
        assert [k.split("/")[3] for k in await site.keys("k/u/nic")] == [h2.uid]
        await one.update_port(port.name, "host", host="hosts/h1")
        assert [key.split("/")[2] for key in await site.keys("w/t/")] == [h2.uid]
        unbound = await one.update_port(port.name, "host")
        assert not unbound.host
        assert not await site.keys("k/u/nic")
        assert not await site.keys("k/r/host")


async def test_addresses_of_a_living_port() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.host("h1", vtep="192.0.2.1")
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        port = await one.port("acme/p", host="hosts/h1", addresses=["10.0.0.5"])
        changed = await one.update_port(port.name, "addresses", addresses=["10.0.0.6", "10.0.0.7"])
        assert changed.mac == port.mac
        (key,) = await site.keys("w/t/")
        assert key.count("/") == 4
        assert (await refusal(one.port("acme/q", addresses=["10.0.0.5"]))).reason == "ADDRESS_IN_USE"
        assert (await refusal(one.port("acme/q", addresses=["10.0.0.6"]))).reason == "ADDRESS_IN_USE"
        await one.update_port(port.name, "addresses", addresses=["10.0.0.5"])  # its own: taken back at once
        assert len(await site.keys("w/t/")) == 2
        kept = await one.update_port(port.name, "addresses")
        assert list(kept.addresses) == ["10.0.0.5"]


async def test_one_interface_has_one_port() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.host("h1", vtep="192.0.2.1")
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        await one.port("acme/p", host="hosts/h1")
        attachment = port_pb2.Attachment(namespace="p")
        error = await refusal(one.port("acme/q", host="hosts/h1", attachment=attachment))
        assert isinstance(error, FailedPrecondition)
        assert "tenants/acme/ports/p" in error.text
        attachment.interface = "eth1"
        await one.port("acme/q", host="hosts/h1", attachment=attachment)


async def test_a_namespace_by_its_path_is_of_one_tenant() -> None:
    async with writing(replicas=2) as site:
        one, two = site.replicas
        for tenant in ("acme", "globex"):
            await one.tenant(tenant, placement={"kinds": [NETNS_PATH]})
            await one.network(f"{tenant}/web", cidrs=["10.0.0.0/24"])
        await one.host("h1", vtep="192.0.2.1")
        await one.host("h2", vtep="192.0.2.2")

        def at(path: str, interface: str = "eth0") -> dict[str, Any]:
            attachment = port_pb2.Attachment(kind=NETNS_PATH, path=path, interface=interface)
            return {"host": "hosts/h1", "attachment": attachment}

        mine = await one.port("acme/p", **at("/run/netns/cni-1"))
        await one.port("acme/q", **at("/run/netns/cni-1", "eth1"))
        assert (await refusal(one.port("acme/r", **at("/var/run/netns/cni-1", "eth1")))).reason == "INTERFACE_IN_USE"
        for path in ("/run/netns/cni-1", "/var/run/netns/cni-1"):
            error = await refusal(one.port("globex/p", **at(path, "eth9")))
            assert error.reason == "NAMESPACE_IN_USE"
            assert "acme" not in error.text
        other = await one.port("globex/p", **at("/run/netns/cni-2"))
        moved = {"kind": NETNS_PATH, "path": "/run/netns/cni-1", "interface": "eth9"}
        assert (await refusal(one.update_port(other.name, "attachment", attachment=moved))).reason == "NAMESPACE_IN_USE"
        await one.port("globex/q", **(at("/run/netns/cni-1") | {"host": "hosts/h2"}))  # another one of that path
        # Both at once: one of them is refused, whoever serves them.
        answers = await asyncio.gather(
            outcome(one.port("acme/both", **at("/run/netns/cni-3"))),
            outcome(two.port("globex/both", **at("/run/netns/cni-3", "eth1"))),
        )
        assert [getattr(a, "reason", "") for a in answers].count("NAMESPACE_IN_USE") == 1
        await one.delete_port(mine.name)
        await one.delete_port("tenants/acme/ports/q")
        await one.update_port(other.name, "attachment", attachment=moved)
        assert await inconsistencies(one.store) == []


_BAD_ATTACHMENTS: list[tuple[dict[str, object], str]] = [
    ({"kind": DEVICE, "device": "br-int"}, "port.attachment.device"),
    ({"kind": DEVICE, "device": "lo"}, "port.attachment.device"),
    ({"kind": DEVICE, "device": "eth0"}, "port.attachment.device"),
    ({"kind": DEVICE}, "port.attachment.device"),
    ({"kind": NETNS_PATH, "path": "/proc/1/ns/net"}, "port.attachment.path"),
    ({"kind": NETNS_PATH, "path": "/run/netns/../../proc/1/ns/net"}, "port.attachment.path"),
    ({"kind": NETNS_PATH, "path": "run/netns/x"}, "port.attachment.path"),
    ({"kind": NETNS_PATH, "path": "/run/netns/globex.web-1"}, "port.attachment.path"),
    ({"kind": NETNS_PATH, "path": "/run//netns"}, "port.attachment.path"),
    ({"namespace": "a.b"}, "port.attachment.namespace"),
    ({"interface": "lo"}, "port.attachment.interface"),
    ({"interface": "a" * 16}, "port.attachment.interface"),
    ({"interface": "a/b"}, "port.attachment.interface"),
    ({"device": "tap0"}, "port.attachment.device"),
    ({"kind": 9}, "port.attachment.kind"),
]


async def test_attachments_that_are_refused() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme", placement={"kinds": [1, 2, 3]})
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        for attachment, field in _BAD_ATTACHMENTS:
            error = await refusal(one.port("acme/p", attachment=attachment))
            assert isinstance(error, Invalid), error
            assert field in [violation.field for violation in error.violations], attachment


async def test_grants() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme", placement={"host_selector": {"zone": "a"}})
        await one.host("h1", vtep="192.0.2.1", labels={"zone": "a"})
        await one.host("h2", vtep="192.0.2.2", labels={"zone": "b"})
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        refused = await refusal(one.port("acme/p", attachment={"kind": DEVICE, "device": "tap0"}))
        assert refused.reason == "KIND_NOT_GRANTED"
        foreign, absent = (
            await refusal(one.port("acme/p", host="hosts/h2")),
            await refusal(one.port("acme/p", host="hosts/h3")),
        )
        assert isinstance(foreign, NotFound)
        assert foreign.text.replace("h2", "h3") == absent.text
        await one.port("acme/p", host="hosts/h1")
        drained = await one.hosts.DrainHost(host_pb2.DrainHostRequest(name="hosts/h1"), None)
        assert list(drained.ports) == ["tenants/acme/ports/p"]
        assert (await refusal(one.port("acme/q", host="hosts/h1"))).reason == "HOST_DRAINED"
        await one.hosts.FenceHost(host_pb2.FenceHostRequest(name="hosts/h1"), None)
        assert (await refusal(one.port("acme/q", host="hosts/h1"))).reason == "HOST_FENCED"


_BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"addresses": ["10.0.0.1"]}, "port.addresses[0]"),
    ({"addresses": ["10.0.0.0"]}, "port.addresses[0]"),
    ({"addresses": ["10.0.0.255"]}, "port.addresses[0]"),
    ({"addresses": ["10.0.1.5"]}, "port.addresses[0]"),
    ({"addresses": ["10.0.0.5", "10.0.0.5"]}, "port.addresses[1]"),
    ({"addresses": ["10.0.0.5/24"]}, "port.addresses[0]"),
    ({"addresses": ["fe80::1%eth0"]}, "port.addresses[0]"),
    ({"mac": "02:74:6e:00:00:01"}, "port.mac"),
    ({"mac": "ff:ff:ff:ff:ff:ff"}, "port.mac"),
    ({"mac": "02:00:00:00:01"}, "port.mac"),
    ({"allowed_addresses": ["0.0.0.0/0"]}, "port.allowed_addresses[0]"),
    ({"allowed_addresses": ["10.0.0.0/8"]}, "port.allowed_addresses[0]"),
    ({"allowed_addresses": ["10.9.0.1/24"]}, "port.allowed_addresses[0]"),
    ({"allowed_addresses": ["10.9.0.0/24", "10.9.0.0/255.255.255.0"]}, "port.allowed_addresses[1]"),
    ({"host": "h1"}, "port.host"),
    ({"labels": {"a b": "c"}}, "port.labels"),
    ({"description": "x" * 1025}, "port.description"),
]


async def test_fields_that_are_refused() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        for body, field in _BAD_FIELDS:
            error = await refusal(one.port("acme/p", **body))
            assert isinstance(error, Invalid), error
            assert field in [violation.field for violation in error.violations], body
        assert not one.store.world.ports.rows


async def test_a_re_created_port_keeps_its_mac() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.network("acme/web", cidrs=["10.0.0.0/24"], address_quarantine={"seconds": 0})
        port = await one.port("acme/p", addresses=["10.0.0.9"])
        twin = await one.port("acme/q", addresses=["10.0.0.10"], mac="02:00:00:00:00:01")
        assert twin.mac == "02:00:00:00:00:01"
        assert (await refusal(one.port("acme/r", mac="02-00-00-00-00-01"))).reason == "MAC_IN_USE"
        await one.delete_port(port.name)
        key = one.store.keys.ip(
            one.store.world.networks.rows[port.network].spec.segments[0].uid, ip_address("10.0.0.9")
        )
        await site.etcd.txn((), [delete(key)])  # as the chore leader does
        again = await one.port("acme/p", addresses=["10.0.0.9"])
        assert again.mac == port.mac


async def test_what_cannot_be_changed() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        await one.network("acme/db", cidrs=["10.0.0.0/24"])
        port = await one.port("acme/p")
        error = await refusal(one.update_port(port.name, "network", network="tenants/acme/networks/db"))
        assert isinstance(error, Invalid)
        assert error.violations[0].field == "port.network"
        same = await one.update_port(port.name, "network", network=port.network)
        assert same.revision == port.revision
        assert isinstance(await refusal(one.update_port(port.name, "nonsense")), Invalid)
        assert isinstance(await refusal(one.update_port(port.name, "uid")), Invalid)
        stale = await refusal(one.update_port(port.name, "description", description="x", etag="0123"))
        assert stale.reason == "ETAG_MISMATCH"
        labelled = await one.update_port(port.name, "labels.tealnet.dev/set", labels={"tealnet.dev/set": "one"})
        assert dict(labelled.labels) == {"tealnet.dev/set": "one"}


async def test_a_grant_that_was_taken_back_is_not_used_again() -> None:
    async with writing() as site:
        one = site.one
        path = common_pb2.ATTACHMENT_KIND_NETNS_PATH
        await one.tenant("acme", placement={"kinds": [path]})
        await one.host("h1")
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        port = await one.port("acme/p", host="hosts/h1", attachment={"kind": path, "path": "/run/netns/cni-1"})
        tenant = tenant_pb2.Tenant(name="tenants/acme", placement={"kinds": [common_pb2.ATTACHMENT_KIND_NETNS]})
        await one.tenants.UpdateTenant(tenant_pb2.UpdateTenantRequest(tenant=tenant), None)
        other = {"path": "/run/netns/cni-2"}
        assert (await refusal(one.update_port(port.name, "attachment.path", attachment=other))).reason == (
            "KIND_NOT_GRANTED"
        )
        await one.update_port(port.name, labels={"it": "stays"})
        await one.hosts.DrainHost(host_pb2.DrainHostRequest(name="hosts/h1"), None)
        own = {"kind": common_pb2.ATTACHMENT_KIND_NETNS}
        await one.update_port(port.name, "attachment", attachment=own)
