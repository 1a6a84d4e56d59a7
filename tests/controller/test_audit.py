"""The audit log: every call that writes has a line, whatever came of it, and one question asks all replicas."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from controller.api.interceptors import is_audited
from controller.audit import AuditLog
from controller.auth import RULES
from controller.etcd.embedded import Durability, EmbeddedEtcd, Options
from tealnet.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    host_pb2,
    host_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    tenant_pb2,
    tenant_pb2_grpc,
)
from tests.controller.running import FakeAgent, Site, prepare, running, site, until

ACME = "tenants/acme"
READS = {
    "GetTenant", "ListTenants", "GetHost", "ListHosts", "GetNetwork", "ListNetworks", "GetRouter", "ListRouters",
    "GetPort", "ListPorts", "GetRollout", "ListRollouts", "GetSecurityGroup", "ListSecurityGroups", "GetPolicyTier",
    "ListPolicyTiers", "GetTrafficSplit", "ListTrafficSplits", "TestPolicy", "ListRules", "ListDenials", "Sync",
    "Watch", "GetStatus", "ListEvents", "Plan", "GetVersion", "ListAlarms", "ListAudit",
}  # fmt: skip


def test_what_is_not_known_to_read_only_is_audited() -> None:
    assert {path.rsplit("/", 1)[1] for path in RULES if not is_audited(path)} == READS
    assert is_audited("/tealnet.v1.JoinService/Join") and is_audited("/tealnet.v1.FutureService/Whatever")
    assert not is_audited("/grpc.health.v1.Health/Check")


@dataclass
class Caller:
    """The API as one party sees it; answers are messages or status codes."""

    channel: grpc.aio.Channel

    async def create(self, ident: str, **more: Any) -> Any:
        stub: Any = tenant_pb2_grpc.TenantServiceStub(self.channel)
        return await outcome(stub.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id=ident, **more)))

    async def delete(self, ident: str) -> Any:
        stub: Any = tenant_pb2_grpc.TenantServiceStub(self.channel)
        return await outcome(stub.DeleteTenant(tenant_pb2.DeleteTenantRequest(name=f"tenants/{ident}", force=True)))

    async def network(self, tenant: str, ident: str) -> Any:
        stub: Any = network_pb2_grpc.NetworkServiceStub(self.channel)
        body = network_pb2.Network(cidrs=["10.0.0.0/24"])
        request = network_pb2.CreateNetworkRequest(parent=f"tenants/{tenant}", network_id=ident, network=body)
        return await outcome(stub.CreateNetwork(request))

    async def audit(self, **more: Any) -> Any:
        stub: Any = admin_pb2_grpc.AdminServiceStub(self.channel)
        return await outcome(stub.ListAudit(admin_pb2.ListAuditRequest(**more)))

    async def lines(self, **more: Any) -> list[tuple[str, str, str, str]]:
        return [(e.who, e.method, e.name, e.result) for e in (await self.audit(**more)).entries]


async def outcome(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error.code()


@contextlib.asynccontextmanager
async def caller(place: Site, role: str = "admin") -> AsyncIterator[Caller]:
    async with place.channel(place.ca.issue(role)) as channel:
        yield Caller(channel)


async def test_every_write_has_a_line_with_who_what_revision_and_result() -> None:
    async with site(replica="a") as place, caller(place) as admin:
        made = await admin.create("acme", request_id="one")
        assert await admin.create("acme") is grpc.StatusCode.ALREADY_EXISTS
        await admin.create("dry", validate_only=True)
        async with caller(place, "tenant/acme/admin") as tenant, caller(place, "tenant/acme/viewer") as viewer:
            network = await tenant.network("acme", "web")
            assert await viewer.network("acme", "db") is grpc.StatusCode.PERMISSION_DENIED
            assert await tenant.audit() is grpc.StatusCode.PERMISSION_DENIED  # for admins, and no write
        assert await admin.delete("acme") is not None
        found = (await admin.audit()).entries
        assert [(e.who, e.method, e.name, e.result, e.reason, e.validate_only) for e in found] == [
            ("admin", "CreateTenant", "acme", "OK", "", False),
            ("admin", "CreateTenant", "acme", "ALREADY_EXISTS", "ALREADY_EXISTS", False),
            ("admin", "CreateTenant", "dry", "OK", "", True),
            ("tenant/acme/admin", "CreateNetwork", f"{ACME} web", "OK", "", False),
            ("tenant/acme/viewer", "CreateNetwork", f"{ACME} db", "PERMISSION_DENIED", "PERMISSION_DENIED", False),
            ("admin", "DeleteTenant", ACME, "OK", "", False),
        ]
        assert [e.revision for e in found[:5]] == [made.revision, 0, 0, network.revision, 0]
        assert found[5].revision > network.revision
        assert ACME in found[0].objects and f"{ACME}/networks/web" in found[5].objects
        assert found[0].request_id == "one" and {e.replica for e in found} == {"a"}
        assert all(e.time.ToNanoseconds() and e.peer.startswith("unix:") for e in found)
        file = place.settings.data_dir / "audit.jsonl"
        assert [json.loads(line)["method"] for line in file.read_text().splitlines()] == [e.method for e in found]
        assert file.stat().st_mode & 0o777 == 0o600


async def test_what_is_asked_for() -> None:
    async with site(replica="a") as place, caller(place) as admin:
        await admin.create("acme")
        await admin.create("globex")
        async with caller(place, "tenant/globex/admin") as tenant:
            await tenant.network("globex", "web")
        globex = [
            ("admin", "CreateTenant", "globex", "OK"),
            ("tenant/globex/admin", "CreateNetwork", "tenants/globex web", "OK"),
        ]
        assert await admin.lines(name="tenants/globex") == globex
        assert await admin.lines(name="tenants/globex/networks/web") == globex[1:]
        assert await admin.lines(name="tenants/glob") == []
        assert await admin.lines(who="tenant/globex") == globex[1:] and await admin.lines(who="tenant/glob") == []
        assert await admin.lines(page_size=1) == globex[1:]
        all_ = (await admin.audit()).entries
        assert await admin.lines(after=all_[1].time) == globex
        assert len(await admin.lines(before=all_[1].time)) == 1
        for wrong in ({"page_size": -1}, {"page_size": 1001}, {"name": "acme"}):
            assert await admin.audit(**wrong) is grpc.StatusCode.INVALID_ARGUMENT


async def test_all_replicas_are_asked() -> None:
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tn")))
        etcd = await stack.enter_async_context(EmbeddedEtcd(Options(directory / "etcd", durability=Durability.MEMORY)))
        places = []
        for name in "ab":
            own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tn")))
            ca, settings = prepare(own, replica=name, etcd=(etcd.endpoint,))
            places.append(Site(own, ca, settings, await stack.enter_async_context(running(settings))))
        one, two = [await stack.enter_async_context(caller(place)) for place in places]
        await one.create("acme")
        await two.create("globex")
        await one.create("initech")
        for asked in (one, two):
            answer = await asked.audit()
            assert [(e.replica, e.name) for e in answer.entries] == [("a", "acme"), ("b", "globex"), ("a", "initech")]
            assert not answer.silent_replicas
        assert [e.replica for e in (await two.audit(name="tenants/initech")).entries] == ["a"]


async def test_a_call_that_was_given_up_has_a_line_too() -> None:
    """Nobody told the caller, so the log must."""
    async with site(embedded=True) as place, caller(place) as admin:
        file = place.settings.data_dir / "etcd" / "etcd.pid"
        etcd = int((await until(lambda: file.exists() and file.read_text(), "the pid of etcd")).split()[0])
        stub: Any = tenant_pb2_grpc.TenantServiceStub(admin.channel)
        os.kill(etcd, signal.SIGSTOP)
        try:
            call = stub.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id="acme"), timeout=0.5)
            assert await outcome(call) is grpc.StatusCode.DEADLINE_EXCEEDED
        finally:
            os.kill(etcd, signal.SIGCONT)
        for _ in range(500):
            if found := await admin.lines():
                break
            await asyncio.sleep(0.02)
        assert found == [("admin", "CreateTenant", "acme", "CANCELLED")]


async def test_what_the_controller_does_by_itself_has_a_line_too() -> None:
    async with site(replica="a") as place, caller(place) as admin:
        hosts: Any = host_pb2_grpc.HostServiceStub(admin.channel)
        await hosts.CreateHost(host_pb2.CreateHostRequest(host_id="h1"))
        async with FakeAgent("h1", "192.0.2.1").connected(place):
            found = (await admin.audit(name="hosts/h1")).entries
        assert [(e.who, e.method, e.result) for e in found] == [
            ("admin", "CreateHost", "OK"),
            ("controller", "PinTunnelAddress", "OK"),
        ]
        assert found[1].revision > found[0].revision and list(found[1].objects) == ["hosts/h1"]


# ---- the file


def entry(number: int) -> dict[str, Any]:
    return {"time": f"2026-11-01T12:00:00.{number:06d}Z", "method": "M", "name": f"tenants/t{number}"}


def names(log: AuditLog, limit: int = 1000, since: str = "") -> list[str]:
    return [e["name"].removeprefix("tenants/t") for e in log.newest(lambda _: True, limit=limit, since=since)]


def test_the_file_has_an_end_and_survives_restarts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "audit.jsonl"
    log = AuditLog(path, most=10_000)
    for number in range(300):
        log.write(entry(number))
        if number == 150:  # another process goes on
            log.close()
            log = AuditLog(path, most=10_000)
    assert sorted(os.listdir(path.parent)) == ["audit.jsonl", "audit.jsonl.1"]
    assert all(file.stat().st_size <= 10_000 for file in path.parent.iterdir())
    found = names(log)
    assert found == [str(n) for n in range(300 - len(found), 300)] and len(found) > 100
    assert names(log, limit=2) == ["298", "299"]
    assert names(log, since=entry(290)["time"]) == [str(n) for n in range(290, 300)]
    log.close()


def test_lines_longer_than_a_block_and_torn_ones(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, most=1 << 20)
    log.write(entry(1) | {"reason": "x" * 100_000})
    log.close()
    with path.open("a") as file:
        file.write('{"time": "2026-11-0\n[]\n\n')
    log.write(entry(2))
    assert names(log) == ["1", "2"]
    log.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_stops_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "audit.jsonl"
    path.symlink_to("/dev/full")
    log = AuditLog(path, most=1 << 20)
    log.write(entry(1))
    log.write(entry(2))
    assert log.lost == 2
    path.unlink()
    log.write(entry(3))
    assert log.lost == 2 and names(log) == ["3"]
    log.close()
    told = capsys.readouterr()
    assert "tenants/t1" in told.out + told.err and "tenants/t2" in told.out + told.err  # the program's own log has them
