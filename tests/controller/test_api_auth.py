"""Over gRPC with real certificates: who may what, and what refusals look like on the wire."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from tealnet.core.pki import Leaf, load_certificate, make_csr, uri_names
from tealnet.v1 import (
    host_pb2,
    host_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    port_pb2,
    port_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
    tenant_pb2,
    tenant_pb2_grpc,
)
from tests.controller.running import Site, site, until


class Party:
    """All stubs with one certificate."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.tenants: Any = tenant_pb2_grpc.TenantServiceStub(channel)
        self.hosts: Any = host_pb2_grpc.HostServiceStub(channel)
        self.networks: Any = network_pb2_grpc.NetworkServiceStub(channel)
        self.ports: Any = port_pb2_grpc.PortServiceStub(channel)
        self.system: Any = system_pb2_grpc.SystemServiceStub(channel)


def party(place: Site, role: str, leaf: Leaf | None = None) -> Party:
    return Party(place.channel(leaf or place.ca.issue(role)))


async def refused(call: Any) -> tuple[grpc.StatusCode, str, status_pb2.Status]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error: Any = caught.value
    status = rpc_status.from_call(error) or status_pb2.Status()
    return error.code(), error.details() or "", status


async def two_tenants(admin: Party) -> None:
    for name in ("acme", "globex"):
        await admin.tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id=name))
        network = network_pb2.Network(cidrs=["10.0.0.0/24"])
        await admin.networks.CreateNetwork(
            network_pb2.CreateNetworkRequest(parent=f"tenants/{name}", network_id="web", network=network)
        )


def new_port(tenant: str, ident: str, **body: Any) -> port_pb2.CreatePortRequest:
    port = port_pb2.Port(network=f"tenants/{tenant}/networks/web", **body)
    return port_pb2.CreatePortRequest(parent=f"tenants/{tenant}", port_id=ident, port=port)


async def test_tenants_see_only_their_own() -> None:
    async with site() as place:
        admin = party(place, "admin")
        await two_tenants(admin)
        await admin.hosts.CreateHost(
            host_pb2.CreateHostRequest(host_id="h1", host=host_pb2.Host(vtep="192.0.2.1", labels={"zone": "a"}))
        )
        acme, viewer = party(place, "tenant/acme/admin"), party(place, "tenant/acme/viewer")
        port = await acme.ports.CreatePort(new_port("acme", "p", host="hosts/h1"))
        listed = await viewer.networks.ListNetworks(network_pb2.ListNetworksRequest(parent="tenants/-"))
        assert [n.name for n in listed.networks] == ["tenants/acme/networks/web"]
        assert listed.networks[0].segments[0].vni == 0
        assert [t.name for t in (await acme.tenants.ListTenants(tenant_pb2.ListTenantsRequest())).tenants] == [
            "tenants/acme"
        ]
        foreign = [
            viewer.networks.GetNetwork(network_pb2.GetNetworkRequest(name=f"tenants/{name}/networks/web"))
            for name in ("globex", "nobody")
        ]
        (code, text, _), (code2, text2, _) = [await refused(call) for call in foreign]
        assert code is code2 is grpc.StatusCode.NOT_FOUND
        assert text.replace("globex", "nobody") == text2
        assert (await refused(acme.ports.CreatePort(new_port("globex", "p"))))[0] is grpc.StatusCode.NOT_FOUND
        assert (await refused(viewer.ports.CreatePort(new_port("acme", "q"))))[0] is grpc.StatusCode.PERMISSION_DENIED
        delete = tenant_pb2.DeleteTenantRequest(name="tenants/acme")
        assert (await refused(acme.tenants.DeleteTenant(delete)))[0] is grpc.StatusCode.PERMISSION_DENIED
        host = await acme.hosts.GetHost(host_pb2.GetHostRequest(name="hosts/h1"))
        assert (host.vtep, host.status.ports, dict(host.labels)) == ("", 0, {"zone": "a"})
        shown = await admin.hosts.GetHost(host_pb2.GetHostRequest(name="hosts/h1"))
        assert (shown.vtep, shown.status.ports) == ("192.0.2.1", 1)
        assert port.host == "hosts/h1"


async def test_hosts_and_strangers() -> None:
    async with site(ca_key="") as place:
        admin = party(place, "admin")
        await admin.hosts.CreateHost(host_pb2.CreateHostRequest(host_id="h1"))
        host = party(place, "host/h1")
        assert (await host.system.GetVersion(system_pb2.GetVersionRequest())).api == "tealnet.v1"
        code, _, _ = await refused(host.networks.ListNetworks(network_pb2.ListNetworksRequest(parent="tenants/-")))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        csr = host_pb2.RenewCertificateRequest(csr_pem=make_csr("host/other", "tealnet.local").csr_pem)
        code, _, status = await refused(host.hosts.RenewCertificate(csr))
        assert (code, reason_of(status)) == (grpc.StatusCode.FAILED_PRECONDITION, "PKI_EXTERNAL")
        nobody = party(place, "tenant/nobody/admin")
        code, _, status = await refused(nobody.tenants.ListTenants(tenant_pb2.ListTenantsRequest()))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert reason_of(status) == "UNKNOWN_PARTY"


async def test_a_renewal_is_for_whoever_asks_whatever_the_request_says() -> None:
    async with site() as place:
        await party(place, "admin").hosts.CreateHost(host_pb2.CreateHostRequest(host_id="h1"))
        csr = host_pb2.RenewCertificateRequest(csr_pem=make_csr("host/other", "tealnet.local").csr_pem)
        renewed = await party(place, "host/h1").hosts.RenewCertificate(csr)
        named = uri_names(load_certificate(renewed.certificate_pem, "the answer"))
        assert named == ["spiffe://tealnet.local/host/h1"]


async def test_revocation_and_old_certificates_of_a_name() -> None:
    async with site() as place:
        admin = party(place, "admin")
        old, issued = place.ca.issue("tenant/acme/admin"), int(time.time())
        await until(lambda: int(time.time()) > issued)  # certificates know seconds only
        await admin.tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id="acme"))
        code, _, status = await refused(party(place, "", old).tenants.ListTenants(tenant_pb2.ListTenantsRequest()))
        assert (code, reason_of(status)) == (grpc.StatusCode.UNAUTHENTICATED, "REVOKED")
        acme = party(place, "tenant/acme/admin")
        watch = acme.system.Watch(system_pb2.WatchRequest())
        await watch.read()
        update = tenant_pb2.UpdateTenantRequest(tenant=tenant_pb2.Tenant(name="tenants/acme"))
        update.tenant.revoked_before.seconds = int(time.time()) + 60
        await admin.tenants.UpdateTenant(update)
        code, _, _ = await refused(acme.tenants.ListTenants(tenant_pb2.ListTenantsRequest()))
        assert code is grpc.StatusCode.UNAUTHENTICATED

        async def drained() -> None:
            while isinstance(await watch.read(), system_pb2.WatchResponse):
                pass

        async with asyncio.timeout(5):
            code, _, _ = await refused(drained())
        assert code is grpc.StatusCode.UNAUTHENTICATED


def reason_of(status: status_pb2.Status) -> str:
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            assert info.domain == "tealnet"
            return str(info.reason)
    return ""


async def test_details_on_the_wire() -> None:
    async with site() as place:
        admin = party(place, "admin")
        await two_tenants(admin)
        bad = network_pb2.Network(cidrs=["10.0.0.1/24", "x"], mtu=100)
        create = network_pb2.CreateNetworkRequest(parent="tenants/acme", network_id="n", network=bad)
        code, text, status = await refused(admin.networks.CreateNetwork(create))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "did you mean 10.0.0.0/24?" in text
        request = error_details_pb2.BadRequest()
        assert any(detail.Unpack(request) for detail in status.details)
        fields = [violation.field for violation in request.field_violations]
        assert fields == ["network.cidrs[0]", "network.cidrs[1]", "network.mtu"]
        await admin.ports.CreatePort(new_port("acme", "p"))
        code, _, status = await refused(
            admin.networks.DeleteNetwork(network_pb2.DeleteNetworkRequest(name="tenants/acme/networks/web"))
        )
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        failure = error_details_pb2.PreconditionFailure()
        assert any(detail.Unpack(failure) for detail in status.details)
        assert failure.violations[0].subject == "tenants/acme/ports/p"
