"""A host that was taken over: it hears of its own scopes only, and is believed about its own ports only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.v1 import host_pb2, host_pb2_grpc, port_pb2, system_pb2, system_pb2_grpc
from tests.controller.making import Maker, uid_of
from tests.controller.running import FakeAgent, Site, site, until

WEB, DB = "tenants/acme/networks/web", "tenants/globex/networks/db"
P1, P2, MINE = "tenants/acme/ports/p1", "tenants/acme/ports/p2", "tenants/globex/ports/mine"
ACTIVE = port_pb2.PortStatus.STATE_ACTIVE
LOCAL = f"localport/{uid_of(P1)}"


@pytest.fixture
async def place() -> AsyncIterator[Site]:
    """h1 has p1 and p2 of acme; h2, the thief, only a port of globex."""
    async with site() as running:
        store = running.controller.store
        make = Maker(store.keys)
        ops = [
            make.tenant("acme"), make.tenant("globex"), make.host("h1", 1, vtep="192.0.2.1"),
            make.host("h2", 2, vtep="192.0.2.2"), make.network(WEB, 1), make.network(DB, 2),
            make.port(P1, WEB, ["10.0.0.5", "fd00::5"], host="h1"), make.port(P2, WEB, ["10.0.0.6"], host="h1"),
            make.port(MINE, DB, ["10.0.0.5"], host="h2"),
        ]  # fmt: skip
        await store.passed((await store.etcd.txn((), ops)).revision)
        yield running


@asynccontextmanager
async def both(place: Site) -> AsyncIterator[tuple[FakeAgent, FakeAgent]]:
    """h1, honest, and h2."""
    async with (
        FakeAgent("h1", "192.0.2.1").connected(place) as honest,
        FakeAgent("h2", "192.0.2.2", instance="instance-2").connected(place) as thief,
    ):
        for port in (P1, P2, MINE):
            await active(place, port)
        yield honest, thief


async def active(place: Site, port: str) -> None:
    await until(lambda: place.controller.status.port(port).state == ACTIVE, f"{port} active")


async def sync(place: Site, parent: str) -> system_pb2.SyncResponse:
    async with place.channel(place.ca.issue("admin")) as channel:
        stub: Any = system_pb2_grpc.SystemServiceStub(channel)
        request = system_pb2.SyncRequest(parent=parent)
        request.timeout.FromMilliseconds(500)
        answer: system_pb2.SyncResponse = await stub.Sync(request, timeout=5)
        return answer


def said(thief: FakeAgent, **more: Any) -> pb.FromAgent:
    return pb.FromAgent(ack=pb.Ack(revision=thief.revision, **more))


async def heard(thief: FakeAgent, place: Site) -> None:
    """Everything said before is taken in: what comes last shows."""
    facts = pb.Facts(ovs_version=f"mark {thief.revision} {id(thief)}")
    await thief.say(pb.FromAgent(facts=facts))
    rows = place.controller.store.world.host_status.rows
    await until(lambda: rows[uid_of("hosts/h2")].ovs_version == facts.ovs_version, "heard")


async def test_a_host_hears_of_its_own_scopes_only(place: Site) -> None:
    """Whatever it claims to have: scopes of others in Hello, answers to questions that nobody asked."""
    thief = FakeAgent("h2", "192.0.2.2", instance="instance-2")
    thief.scopes = {"host": {LOCAL: b"x"}, "domain/1001": {f"endpoint/{uid_of(P1)}": b"y"}, "domain/1002": {}}
    thief.scopes[f"host/{uid_of('hosts/h1')}"] = {}
    async with FakeAgent("h1", "192.0.2.1").connected(place), thief.connected(place):
        await active(place, MINE)
        for scope in ("domain/1001", "host", f"host/{uid_of('hosts/h1')}", "", "domain/", "domain/1001/x"):
            versions = pb.Versions(scope=scope, versions=[pb.KeyVersion(key=LOCAL, version=b"")])
            await thief.say(pb.FromAgent(versions=versions))
            await thief.say(pb.FromAgent(taken=pb.Taken(unit=1, mismatched=[scope])))
        await heard(thief, place)
        assert set(thief.scopes) <= {"host", "domain/1002"}
        deltas = [delta for unit in thief.units for part in unit for delta in part.scopes]
        # A scope that it claims and has no right to is named once more: it is to be dropped.
        assert {delta.scope for delta in deltas if not delta.dropped} <= {"host", "domain/1002"}
        told = b"".join(delta.SerializeToString() for delta in deltas if not delta.dropped)
        for secret in ("acme", "p1", uid_of("hosts/h1")):
            assert secret.encode() not in told
        assert bytes.fromhex(uid_of("hosts/h1")) not in told
        assert b"\xfd" + bytes(14) + b"\x05" not in told  # an address of p1


async def test_a_host_speaks_for_its_own_ports_only(place: Site) -> None:
    async with both(place) as (_, thief):
        before = dict(place.controller.store.world.port_status.rows)
        failures = [
            pb.KeyFailure(key=key, version=b"v", reason="LIE", text="not there")
            for key in (LOCAL, f"localport/{uid_of(P2)}", f"endpoint/{uid_of(P1)}", "segment/5001", "route/1001/::/0")
        ]
        await thief.say(said(thief, failures=failures, unaccounted=[LOCAL, f"localport/{uid_of(P2)}"]))
        await heard(thief, place)
        assert place.controller.store.world.port_status.rows == before
        for port in (P1, P2, MINE):
            assert place.controller.status.port(port).state == ACTIVE
        answer = await sync(place, "tenants/acme")
        assert answer.complete and not answer.failed


async def test_not_for_its_neighbours_in_a_domain_either(place: Site) -> None:
    """h2 gets a port of acme, and with it the right to be asked about acme's domain: not to speak for p1."""
    store = place.controller.store
    near = "tenants/acme/ports/near"
    async with both(place) as (_, thief):
        make = Maker(store.keys)
        await store.passed((await store.etcd.txn((), [make.port(near, WEB, ["10.0.0.7"], host="h2")])).revision)
        await active(place, near)
        failures = [pb.KeyFailure(key=LOCAL, version=b"v", reason="LIE", text="not there")]
        await thief.say(said(thief, failures=failures))
        await heard(thief, place)
        answer = await sync(place, WEB)
        assert answer.complete and not answer.failed
        own = [pb.KeyFailure(key=f"localport/{uid_of(near)}", reason="TRUE", text="it is so")]
        await thief.say(said(thief, failures=own))
        await until(lambda: place.controller.status.port(near).reason == "TRUE")
        assert [f.object for f in (await sync(place, WEB)).failed] == [near]


async def test_an_admin_who_accepts_a_host_takes_nothing_from_others(place: Site) -> None:
    async with both(place) as (honest, thief):
        thief.unaccounted = {LOCAL: b"x"}
        await thief.ack()
        rows = place.controller.store.world.host_status.rows
        await until(lambda: rows[uid_of("hosts/h2")].unaccounted, "unaccounted told")
        async with place.channel(place.ca.issue("admin")) as channel:
            stub: Any = host_pb2_grpc.HostServiceStub(channel)
            await stub.AcceptHost(host_pb2.AcceptHostRequest(name="hosts/h2"))
        await until(lambda: not thief.unaccounted, "h2 lets it go")
        assert LOCAL in honest.scopes["host"] and place.controller.status.port(P1).state == ACTIVE


async def test_what_a_host_says_has_an_end(place: Site) -> None:
    """Megabytes of conditions, texts and keys are neither stored nor do they end anything but, at most, its session."""
    async with both(place) as (honest, thief):
        long = "x" * (1 << 20)
        conditions = [pb.HostCondition(type=f"C{n}", text=long, remedy=long) for n in range(3)]
        conditions += [pb.HostCondition(type=f"D{n}", text="t") for n in range(5000)]
        await thief.say(pb.FromAgent(facts=pb.Facts(conditions=conditions, ovs_version=long, datapath=long)))
        mine = f"localport/{uid_of(MINE)}"
        failures = [
            pb.KeyFailure(key=mine, reason=long, text=long),
            pb.KeyFailure(key=f"endpoint/{uid_of(MINE)}", version=b"v" * 100_000, text=long),
        ]
        keys = [f"localport/{n:032x}" for n in range(50_000)]
        await thief.say(said(thief, failures=failures, unaccounted=[*keys, long, "junk"]))
        rows = place.controller.store.world.host_status.rows
        await until(lambda: len(rows[uid_of("hosts/h2")].unaccounted) > 1000, "unaccounted told")
        await until(lambda: place.controller.status.port(MINE).state == port_pb2.PortStatus.STATE_FAILED)
        host = place.controller.status.host("hosts/h2")
        assert len(host.conditions) < 50 and host.ByteSize() < 200_000
        assert rows[uid_of("hosts/h2")].ByteSize() < 500_000
        assert place.controller.status.port(MINE).ByteSize() < 10_000
        assert not thief.done.is_set() and not honest.done.is_set()


async def test_conditions_that_the_controller_finds_are_not_the_hosts_to_tell(place: Site) -> None:
    async with both(place) as (_, thief):
        told = [pb.HostCondition(type=kind, text="lie") for kind in ("Unaccounted", "ForeignHistory", "VtepMismatch")]
        await thief.say(pb.FromAgent(facts=pb.Facts(conditions=[*told, pb.HostCondition(type="Honest", text="so")])))
        await until(lambda: place.controller.status.host("hosts/h2").conditions, "conditions")
        assert [c.type for c in place.controller.status.host("hosts/h2").conditions] == ["Honest"]


async def test_another_hosts_certificate_has_no_session_of_ours(place: Site) -> None:
    """The name comes from the certificate, the tunnel address from the Host object: never from the message."""
    async with both(place) as (honest, _):
        stolen = FakeAgent("h2", "192.0.2.1", instance="instance-2")
        async with stolen.connected(place, place.ca.issue("host/h2")):
            assert stolen.refused is not None and stolen.refused.reason == "VtepMismatch"
        assert not honest.done.is_set() and place.controller.status.port(P1).state == ACTIVE


@pytest.mark.parametrize("role", ["admin", "controller", "tenant/acme/admin", "tenant/acme/viewer"])
async def test_who_is_no_host_has_no_session(place: Site, role: str) -> None:
    agent = FakeAgent("h1", "192.0.2.1")
    async with agent.connected(place, place.ca.issue(role, dns=["somebody"])):
        assert agent.refused is not None and agent.welcome is None
        assert "not a host" in agent.refused.text


async def test_without_a_certificate_there_is_no_stream(place: Site) -> None:
    credentials = grpc.ssl_channel_credentials(place.ca.cert_pem)
    options = [("grpc.ssl_target_name_override", "controller"), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(place.settings.listen[0], credentials, options) as channel:
        call: Any = channel.stream_stream(
            "/tealnet.agent.v1.AgentService/Connect", lambda m: m.SerializeToString(), pb.ToAgent.FromString
        )(iter([pb.FromAgent(hello=FakeAgent("h1", "192.0.2.1").hello())]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
