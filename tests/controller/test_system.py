"""SystemService over gRPC: who sees what, Sync by parent, Watch, status, events; and the process itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from controller.etcd.types import delete
from tealnet.core.pki import Ca
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
from tests.controller.running import DEADLINE, FakeAgent, Site, site, until

NET = "tenants/acme/networks/web"
Type = system_pb2.WatchResponse.Type


class Client:
    """The stubs of one party."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.tenants = tenant_pb2_grpc.TenantServiceStub(channel)
        self.networks = network_pb2_grpc.NetworkServiceStub(channel)
        self.ports = port_pb2_grpc.PortServiceStub(channel)
        self.hosts = host_pb2_grpc.HostServiceStub(channel)
        self.system = system_pb2_grpc.SystemServiceStub(channel)

    async def port(self, own: str, host: str = "h1", tenant: str = "acme") -> port_pb2.Port:
        body = port_pb2.Port(network=f"tenants/{tenant}/networks/web", host=f"hosts/{host}")
        request = port_pb2.CreatePortRequest(parent=f"tenants/{tenant}", port_id=own, port=body)
        created: port_pb2.Port = await self.ports.CreatePort(request)
        return created

    async def sync(self, parent: str = "", revision: int = 0) -> system_pb2.SyncResponse:
        request = system_pb2.SyncRequest(parent=parent, revision=revision)
        request.timeout.FromMilliseconds(2000)
        response: system_pb2.SyncResponse = await self.system.Sync(request)
        return response


@pytest.fixture
async def place() -> AsyncIterator[Site]:
    async with site() as running:
        yield running


@pytest.fixture
async def admin(place: Site) -> AsyncIterator[Client]:
    async with place.channel(place.ca.issue("admin")) as channel:
        client = Client(channel)
        for n in (1, 2):
            host = host_pb2.Host(vtep=f"192.0.2.{n}")
            await client.hosts.CreateHost(host_pb2.CreateHostRequest(host_id=f"h{n}", host=host))
        for tenant in ("acme", "globex"):
            await client.tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id=tenant))
            network = network_pb2.Network(cidrs=["10.0.0.0/24"])
            await client.networks.CreateNetwork(
                network_pb2.CreateNetworkRequest(parent=f"tenants/{tenant}", network_id="web", network=network)
            )
        yield client


@pytest.fixture
async def acme(place: Site, admin: Client) -> AsyncIterator[Client]:
    async with place.channel(place.ca.issue("tenant/acme/admin")) as channel:
        yield Client(channel)


@contextlib.asynccontextmanager
async def refused(code: grpc.StatusCode) -> AsyncIterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        yield
    assert error.value.code() == code, error.value.details()


async def test_sync_by_parent(place: Site, admin: Client, acme: Client) -> None:
    one, two = FakeAgent("h1", "192.0.2.1"), FakeAgent("h2", "192.0.2.2", instance="instance-2")
    async with one.connected(place):
        mine = await admin.port("p1", "h1")
        async with two.connected(place):
            theirs = await admin.port("p1", "h2", "globex")
            for parent in ("tenants/acme", NET, mine.name, "tenants/globex", ""):
                response = await admin.sync(parent, theirs.revision)
                assert response.complete and response.synced == response.hosts, parent
        assert (await acme.sync("", theirs.revision)).complete
        seen = await acme.ports.GetPort(port_pb2.GetPortRequest(name=mine.name))
        assert seen.status.state == port_pb2.PortStatus.STATE_ACTIVE  # synced: at once, without waiting
        response = await admin.sync("tenants/globex")
        assert not response.complete and response.disconnected == ["hosts/h2"]
        await admin.ports.DeletePort(port_pb2.DeletePortRequest(name=mine.name))
        assert (await acme.sync("tenants/acme")).complete
        deleted = await admin.ports.DeletePort(port_pb2.DeletePortRequest(name=theirs.name))
        assert deleted is not None
        response = await admin.sync("tenants/globex")
        assert not response.complete, "the port is still on a host that we can't ask"
    gone = network_pb2.DeleteNetworkRequest(name="tenants/globex/networks/web")
    await admin.networks.DeleteNetwork(gone)  # and with it what says where the port was
    async with place.channel(place.ca.issue("tenant/globex/admin")) as channel:
        response = await Client(channel).sync()
        assert not response.complete and response.disconnected == ["hosts/h2"]
        async with two.connected(place):
            assert (await Client(channel).sync()).complete
    async with refused(grpc.StatusCode.NOT_FOUND):
        await acme.sync("tenants/globex")
    async with refused(grpc.StatusCode.NOT_FOUND):
        await acme.sync("tenants/acme/networks/none")
    async with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await admin.system.Sync(system_pb2.SyncRequest(revision=-1))
    future = system_pb2.SyncRequest(revision=2**62, parent="tenants/acme", timeout={"nanos": 10**8})
    assert not (await admin.system.Sync(future)).complete, "nobody has what is not written"


@pytest.mark.parametrize("name", ["acme", "tenants/acme/gateways/g", "x" * 100_000])
async def test_names_that_are_none(admin: Client, name: str) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await admin.system.Sync(system_pb2.SyncRequest(parent=name))
    async with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await admin.system.Watch(system_pb2.WatchRequest(parent=name)).read()
    async with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await admin.system.ListEvents(system_pb2.ListEventsRequest(name=name))
    async with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await admin.system.ListEvents(system_pb2.ListEventsRequest(page_size=-1))
    labels = {f"{name} {number}": "?" for number in range(3000 if len(name) < 10 else 3)}
    tenant = tenant_pb2.CreateTenantRequest(tenant_id="more", tenant=tenant_pb2.Tenant(labels=labels))
    async with refused(grpc.StatusCode.INVALID_ARGUMENT):  # however much is wrong, it arrives
        await admin.tenants.CreateTenant(tenant)


async def test_watch(place: Site, admin: Client, acme: Client) -> None:
    await admin.port("p1")
    await admin.port("p1", tenant="globex")
    request = system_pb2.WatchRequest(kinds=["port"])
    call = acme.system.Watch(request)

    async def some(count: int, source: Any) -> list[tuple[str, str]]:
        async with asyncio.timeout(DEADLINE):
            got = [await source.read() for _ in range(count)]
        return [(Type.Name(r.type).removeprefix("TYPE_"), r.object.port.name) for r in got]

    assert await some(2, call) == [("ADDED", "tenants/acme/ports/p1"), ("SYNCED", "")]
    await admin.port("p2", tenant="globex")
    created = await admin.port("p2")
    assert await some(1, call) == [("ADDED", "tenants/acme/ports/p2")]
    async with FakeAgent("h1", "192.0.2.1").connected(place):
        states: dict[str, int] = {}
        while states != {f"tenants/acme/ports/p{n}": port_pb2.PortStatus.STATE_ACTIVE for n in (1, 2)}:
            async with asyncio.timeout(DEADLINE):
                response = await call.read()
            states[response.object.port.name] = response.object.port.status.state
    call.cancel()
    resume = system_pb2.WatchRequest(kinds=["port"], resume_revision=created.revision - 1, spec_only=True)
    again = acme.system.Watch(resume)
    assert await some(2, again) == [("ADDED", "tenants/acme/ports/p2"), ("SYNCED", "")]
    again.cancel()
    async with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await acme.system.Watch(system_pb2.WatchRequest(kinds=["gateway"])).read()
    async with refused(grpc.StatusCode.NOT_FOUND):
        await acme.system.Watch(system_pb2.WatchRequest(parent="tenants/globex")).read()


async def test_status_events_version(place: Site, admin: Client, acme: Client) -> None:
    await admin.port("p1")
    status = await admin.system.GetStatus(system_pb2.GetStatusRequest())
    assert (status.tenants, status.networks, status.ports) == (2, 2, 1)
    assert [h.name for h in status.hosts] == ["hosts/h1", "hosts/h2"]
    assert len(status.etcd) == 1 and status.etcd[0].healthy and status.etcd[0].leader
    world = place.controller.store.world
    await until(lambda: world.terms.rows and world.replicas.rows, "the replica has told of itself and does the chores")
    (replica,) = (await admin.system.GetStatus(system_pb2.GetStatusRequest())).replicas
    assert replica.chores and replica.version
    own = await acme.system.GetStatus(system_pb2.GetStatusRequest())
    assert (own.tenants, own.ports) == (1, 1) and not own.hosts and not own.etcd
    async with FakeAgent("h1", "192.0.2.66").connected(place) as wrong:
        assert wrong.refused and wrong.refused.reason == "VtepMismatch"
    events = (await admin.system.ListEvents(system_pb2.ListEventsRequest(name="hosts/h1"))).events
    assert [event.reason for event in events] == ["Created", "VtepMismatch"]
    assert (await admin.system.ListEvents(system_pb2.ListEventsRequest())).events
    async with refused(grpc.StatusCode.NOT_FOUND):
        await acme.system.ListEvents(system_pb2.ListEventsRequest(name="hosts/h1"))
    own_events = (await acme.system.ListEvents(system_pb2.ListEventsRequest())).events
    default = "tenants/acme/securityGroups/default"
    assert {event.name for event in own_events} == {"tenants/acme", default, NET, "tenants/acme/ports/p1"}
    await admin.tenants.DeleteTenant(tenant_pb2.DeleteTenantRequest(name="tenants/acme", force=True))
    await admin.tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id="acme"))
    async with place.channel(place.ca.issue("tenant/acme/admin")) as channel:  # its certificate is of the new one
        new = Client(channel)
        later = (await new.system.ListEvents(system_pb2.ListEventsRequest())).events
        assert (await new.system.GetVersion(system_pb2.GetVersionRequest())).api == "tealnet.v1"
    own = {"tenants/acme", "tenants/acme/securityGroups/default"}
    assert {(event.name, event.reason) for event in later} == {(name, "Created") for name in own}
    health = health_pb2_grpc.HealthStub(admin.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_shows_the_api(acme: Client) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(acme.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]))
    async with asyncio.timeout(DEADLINE):
        answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert {f"tealnet.v1.{kind}Service" for kind in ("Tenant", "Network", "Router", "Port", "Host", "System")} <= names
    call.cancel()


async def test_accepted_and_fenced_by_the_api(place: Site, admin: Client) -> None:
    port, agent = await admin.port("p1"), FakeAgent("h1", "192.0.2.1")
    store = place.controller.store
    async with agent.connected(place):
        await until(lambda: agent.scopes.get("host"))
        await store.etcd.txn((), [delete(store.keys.intent(port.name))])
        await until(lambda: agent.unaccounted, "a port without proof is kept")
        await until(lambda: place.controller.status.host("hosts/h1").unaccounted)
        accepted = await admin.hosts.AcceptHost(host_pb2.AcceptHostRequest(name="hosts/h1"))
        assert accepted.hosts == ["hosts/h1"]
        await until(lambda: not agent.unaccounted, "and goes when an admin says so")
        await admin.hosts.FenceHost(host_pb2.FenceHostRequest(name="hosts/h1"))
        async with asyncio.timeout(DEADLINE):
            await agent.done.wait()
        assert agent.refused and agent.refused.reason == "Fenced"


async def test_the_process(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tn") as name:
        directory = Path(name)
        ca = Ca.create("tealnet.local")
        ca.save(directory)
        ca.issue("controller", dns=["controller"]).save(directory, "controller")
        settings = {
            "listen": [f"unix:{directory}/api.sock", "127.0.0.1:0"],
            "join_listen": "127.0.0.1:0",
            "metrics_listen": "",
            "data_dir": str(directory / "data"),
            "etcd_fsync": False,
            "ca": str(directory / "ca.crt"),
            "ca_key": str(directory / "ca.key"),
            "cert": str(directory / "controller.crt"),
            "key": str(directory / "controller.key"),
        }
        file = directory / "controller.yaml"
        file.write_text(yaml.safe_dump(settings))
        command = (sys.executable, "-m", "controller", "--config", str(file), "--log-level", "info")
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        try:
            assert process.stderr
            lines = []
            async with asyncio.timeout(20):
                while line := await process.stderr.readline():
                    lines.append(line.decode())
                    if '"serving"' in lines[-1]:
                        break
            assert line, "".join(lines)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(15):
                _, rest = await process.communicate()
            assert process.returncode == 0, rest.decode()
            assert b"Traceback" not in rest, rest.decode()
            assert not (directory / "data/etcd/etcd.pid").exists()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        environ = {**os.environ, "TEALNET_LOST_AFTER": "never"}
        wrong = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=environ)
        async with asyncio.timeout(15):
            _, said = await wrong.communicate()
        assert wrong.returncode == 1 and b"lost_after" in said and b"Traceback" not in said
