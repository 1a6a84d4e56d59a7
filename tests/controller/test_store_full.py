"""The disk quota of etcd is used up (alarm NOSPACE): what still works, and what an operator does about it."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from controller.etcd import Etcd, StoreFull
from controller.etcd.embedded import Durability, EmbeddedEtcd, Options
from controller.etcd.types import put
from tealnet.v1 import admin_pb2, admin_pb2_grpc, system_pb2, system_pb2_grpc, tenant_pb2, tenant_pb2_grpc
from tests.controller.running import FakeAgent, Site, prepare, running, until
from tests.controller.writing import become, replicated


async def test_a_full_store_and_the_way_back() -> None:
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tn")))
        options = Options(directory / "etcd", durability=Durability.MEMORY, quota_bytes=4 << 20)
        server = await stack.enter_async_context(EmbeddedEtcd(options))
        etcd = await stack.enter_async_context(Etcd([server.endpoint]))
        ca, settings = prepare(directory, etcd=(server.endpoint,), lost_after=3)
        controller = await stack.enter_async_context(running(settings))
        place = Site(directory, ca, settings, controller)
        become()
        api, store = replicated(controller), controller.store
        await api.tenant("acme")
        await api.host("h1", vtep="192.0.2.1")
        await api.network("acme/web", cidrs=["10.0.0.0/24"])
        await api.port("acme/a", host="hosts/h1")
        agent = await stack.enter_async_context(FakeAgent("h1", "192.0.2.1").connected(place))
        (uid,) = controller.sessions.by_host
        await until(lambda: controller.sessions.by_host[uid].synced == store.revision)
        channel = await stack.enter_async_context(place.channel(ca.issue("admin")))
        tenants: Any = tenant_pb2_grpc.TenantServiceStub(channel)
        admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
        system: Any = system_pb2_grpc.SystemServiceStub(channel)

        with contextlib.suppress(StoreFull):
            for _ in range(100):
                await etcd.txn((), [put(b"/elsewhere", bytes(500_000))])  # history, most of it
        # Writes are refused with the reason; reads and hosts go on, and say that they are behind.
        try:
            await tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id="globex"))
            raise AssertionError("written into a full store")
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            status: Any = rpc_status.from_call(error)  # type: ignore[arg-type]
            info = error_details_pb2.ErrorInfo()
            assert any(detail.Unpack(info) for detail in status.details) and info.reason == "STORE_FULL"
        await until(lambda: store.stale_since, "heartbeats are refused, too")
        assert (await tenants.GetTenant(tenant_pb2.GetTenantRequest(name="tenants/acme"))).name == "tenants/acme"
        assert (await system.GetStatus(system_pb2.GetStatusRequest())).HasField("stale_since")
        assert not agent.done.is_set()
        # What an operator runs: teal admin alarms, defrag --compact, alarms --disarm.
        (alarm,) = (await admin.ListAlarms(admin_pb2.ListAlarmsRequest())).alarms
        assert alarm.kind == "NOSPACE"
        (member,) = (await admin.Defragment(admin_pb2.DefragmentRequest(compact=True))).members
        assert not member.error and member.after_bytes < member.before_bytes
        assert len((await admin.DisarmAlarms(admin_pb2.DisarmAlarmsRequest())).alarms) == 1
        assert not (await admin.ListAlarms(admin_pb2.ListAlarmsRequest())).alarms
        written = await tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id="globex"), timeout=20)
        await until(lambda: store.stale_since is None)
        port = await api.port("acme/b", host="hosts/h1")
        await until(lambda: controller.sessions.by_host[uid].synced >= port.revision)
        assert not agent.done.is_set() and written.revision < port.revision  # the same session all the time
