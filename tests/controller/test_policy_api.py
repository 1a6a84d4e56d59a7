"""PolicyService over gRPC: verdicts with the rule that says so, rules with what they count, denied connections."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import structlog.testing

from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.v1 import (
    host_pb2,
    host_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    port_pb2,
    port_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    security_pb2,
    security_pb2_grpc,
    tenant_pb2,
    tenant_pb2_grpc,
)
from tests.controller.running import FakeAgent, Site, site, until

Outcome = security_pb2.SideVerdict.Outcome
ALLOWED, DENIED = security_pb2.SideVerdict.OUTCOME_ALLOWED, security_pb2.SideVerdict.OUTCOME_DENIED


def group(name: str) -> str:
    tenant, own = name.split("/")
    return f"tenants/{tenant}/securityGroups/{own}"


class Client:
    """All stubs that are needed here, with one certificate."""

    def __init__(self, place: Site, role: str) -> None:
        channel = place.channel(place.ca.issue(role))
        self.tenants: Any = tenant_pb2_grpc.TenantServiceStub(channel)
        self.hosts: Any = host_pb2_grpc.HostServiceStub(channel)
        self.networks: Any = network_pb2_grpc.NetworkServiceStub(channel)
        self.routers: Any = router_pb2_grpc.RouterServiceStub(channel)
        self.ports: Any = port_pb2_grpc.PortServiceStub(channel)
        self.groups: Any = security_pb2_grpc.SecurityGroupServiceStub(channel)
        self.tiers: Any = security_pb2_grpc.PolicyTierServiceStub(channel)
        self.policy: Any = security_pb2_grpc.PolicyServiceStub(channel)

    async def network(self, name: str, cidr: str, **body: Any) -> Any:
        tenant, own = name.split("/")
        message = network_pb2.Network(cidrs=[cidr], **body)
        request = network_pb2.CreateNetworkRequest(parent=f"tenants/{tenant}", network_id=own, network=message)
        return await self.networks.CreateNetwork(request)

    async def port(self, name: str, network: str, *groups: str, host: str = "h1") -> Any:
        tenant, own = name.split("/")
        message = port_pb2.Port(
            network=f"tenants/{tenant}/networks/{network}",
            host=f"hosts/{host}" if host else "",
            security_groups=[group(f"{tenant}/{one}") for one in groups],
        )
        request = port_pb2.CreatePortRequest(parent=f"tenants/{tenant}", port_id=own, port=message)
        return await self.ports.CreatePort(request)

    async def group(self, name: str, **body: Any) -> Any:
        tenant, own = name.split("/")
        message = security_pb2.SecurityGroup(**body)
        return await self.groups.CreateSecurityGroup(
            security_pb2.CreateSecurityGroupRequest(
                parent=f"tenants/{tenant}", security_group_id=own, security_group=message
            )
        )

    async def test(self, source: str, target: str, **more: Any) -> Any:
        """tenant/port → tenant/port"""
        ends = [f"tenants/{one.replace('/', '/ports/')}" for one in (source, target)]
        request = security_pb2.TestPolicyRequest(source=ends[0], target=ends[1], **({"port": 80} | more))
        return await self.policy.TestPolicy(request)


@pytest.fixture
async def place() -> AsyncIterator[Site]:
    async with site() as running:
        yield running


@pytest.fixture
async def admin(place: Site) -> Client:
    """acme: web (routed to db) with w1, w2 in web and d1 in db; open (policy OFF) with o1. globex: web with w1."""
    client = Client(place, "admin")
    for name in ("acme", "globex"):
        tenant = tenant_pb2.Tenant(labels={"env": name})
        await client.tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id=name, tenant=tenant))
    for number in (1, 2):
        host = host_pb2.Host(vtep=f"192.0.2.{number}")
        await client.hosts.CreateHost(host_pb2.CreateHostRequest(host_id=f"h{number}", host=host))
    await client.routers.CreateRouter(router_pb2.CreateRouterRequest(parent="tenants/acme", router_id="main"))
    router = "tenants/acme/routers/main"
    await client.network("acme/web", "10.0.0.0/24", router=router)
    await client.network("acme/db", "10.0.1.0/24", router=router)
    off = network_pb2.Network.POLICY_OFF
    await client.network("acme/open", "10.0.2.0/24", router=router, policy=off)
    await client.network("acme/alone", "10.0.0.0/24")
    await client.network("globex/web", "10.0.0.0/24")
    rule = security_pb2.SecurityRule
    out = [rule()]
    await client.group("acme/web", ingress=[rule(protocol="tcp", ports=["80"])], egress=out)
    await client.group("acme/db", ingress=[rule(protocol="tcp", ports=["5432"], remote_group=group("acme/web"))])
    await client.port("acme/w1", "web", "web")
    await client.port("acme/w2", "web", "web", host="h2")
    await client.port("acme/d1", "db", "db", host="h2")
    await client.port("acme/o1", "open")
    await client.port("acme/a1", "alone", "web")
    await client.port("acme/nowhere", "web", "web", host="")
    await client.port("globex/w1", "web")
    return client


@contextlib.asynccontextmanager
async def refused(code: grpc.StatusCode, text: str = "") -> AsyncIterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code
    assert text in str(caught.value.details())


async def test_verdicts(admin: Client) -> None:
    answer = await admin.test("acme/w1", "acme/d1", port=5432)
    (path,) = answer.paths
    assert answer.allowed and path.allowed and path.text == "both ends let it through"
    assert (path.egress.rule.object, path.egress.rule.text) == (group("acme/web"), "any to anyone")
    ingress = path.ingress.rule
    assert (ingress.object, ingress.index) == (group("acme/db"), 0)
    assert ingress.text == f"tcp 5432 from {group('acme/web')}"
    shown = await admin.groups.GetSecurityGroup(security_pb2.GetSecurityGroupRequest(name=group("acme/db")))
    assert ingress.revision == shown.revision > 0 and answer.info.revision >= ingress.revision

    (path,) = (await admin.test("acme/w1", "acme/d1", port=22)).paths
    assert (path.allowed, path.egress.outcome, path.ingress.outcome) == (False, ALLOWED, DENIED)
    assert path.text == "at the target: no rule allows it"
    (path,) = (await admin.test("acme/d1", "acme/w1")).paths  # db lets nothing out
    assert (path.egress.outcome, path.ingress.outcome) == (DENIED, ALLOWED)
    (path,) = (await admin.test("acme/o1", "acme/w1")).paths
    assert (path.allowed, path.egress.outcome) == (True, security_pb2.SideVerdict.OUTCOME_OFF)
    (path,) = (await admin.test("acme/w2", "acme/w1", protocol="icmp", port=0)).paths
    assert not path.allowed


async def test_where_no_rule_matters(admin: Client) -> None:
    for source, target, reason in (
        ("acme/w1", "acme/a1", "NotRouted"),
        ("acme/w1", "globex/w1", "NotRouted"),
        ("acme/w1", "acme/w1", "SameAddress"),
        ("acme/w1", "acme/nowhere", "TargetUnbound"),
        ("acme/nowhere", "acme/w1", "SourceUnbound"),
    ):
        answer = await admin.test(source, target)
        assert (answer.allowed, [path.reason for path in answer.paths]) == (False, [reason]), target
        assert not answer.paths[0].HasField("egress")
    answer = await admin.test("acme/w1", "acme/w2", protocol="icmpv6", port=0)
    assert [path.reason for path in answer.paths] == ["NoSuchAddress"]
    answer = await admin.test("acme/w1", "acme/w2", color="blue")
    assert [path.reason for path in answer.paths] == ["OtherColor"]


async def test_a_tier_says_no(admin: Client) -> None:
    deny = security_pb2.TierRule(action=security_pb2.RULE_ACTION_DENY, protocol="tcp", ports=["80-90"])
    tier = security_pb2.PolicyTier(
        position=security_pb2.PolicyTier.POSITION_ABOVE, ingress=[deny], tenant_selector={"env": "acme"}
    )
    request = security_pb2.CreatePolicyTierRequest(policy_tier_id="base", policy_tier=tier)
    await admin.tiers.CreatePolicyTier(request)
    (path,) = (await admin.test("acme/w2", "acme/w1")).paths
    assert path.text == "at the target: policyTiers/base denies it: tcp 80-90 from anyone"
    assert path.ingress.rule.action == security_pb2.RULE_ACTION_DENY
    update = security_pb2.UpdatePolicyTierRequest(
        policy_tier={"name": "policyTiers/base", "mode": security_pb2.POLICY_MODE_SHADOW}
    )
    await admin.tiers.UpdatePolicyTier(update)
    (path,) = (await admin.test("acme/w2", "acme/w1")).paths
    assert path.allowed and [origin.object for origin in path.ingress.shadow] == ["policyTiers/base"]


async def test_what_cannot_be_asked(place: Site, admin: Client) -> None:
    for more, text in (
        ({"port": 0}, "port: 0 is not within 1…65535"),
        ({"protocol": "icmp"}, "port: icmp has no ports"),
        ({"protocol": "any", "port": 0}, "protocol: any is no protocol"),
        ({"protocol": "tcq"}, "protocol: 'tcq'"),
        ({"icmp_type": 8}, "icmp_type: is for icmp"),
    ):
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, text):
            await admin.test("acme/w1", "acme/w2", **more)
    async with refused(grpc.StatusCode.NOT_FOUND):
        await admin.test("acme/w1", "acme/none")
    acme, globex = Client(place, "tenant/acme/viewer"), Client(place, "tenant/globex/admin")
    assert (await acme.test("acme/w2", "acme/w1")).allowed
    for client, source, target in ((globex, "acme/w1", "acme/w2"), (acme, "acme/w1", "globex/w1")):
        async with refused(grpc.StatusCode.NOT_FOUND):
            await client.test(source, target)


def uid(port: Any) -> bytes:
    return bytes.fromhex(port.uid)


async def test_rules_with_what_they_count(place: Site, admin: Client) -> None:
    acme, globex = Client(place, "tenant/acme/viewer"), Client(place, "tenant/globex/admin")
    listed = await acme.policy.ListRules(security_pb2.ListRulesRequest(parent="tenants/acme"))
    found = {(r.origin.object.rsplit("/", 1)[1], r.origin.text): (r.ports, r.hosts) for r in listed.rules}
    assert found == {
        ("db", f"tcp 5432 from {group('acme/web')}"): (1, 1),
        ("web", "tcp 80 from anyone"): (3, 2),
        ("web", "any to anyone"): (3, 2),
        ("default", f"any from {group('acme/default')}"): (0, 0),
        ("default", "any to anyone"): (0, 0),
    }
    one = await acme.policy.ListRules(security_pb2.ListRulesRequest(parent="tenants/acme/ports/d1"))
    assert [r.origin.object for r in one.rules] == [group("acme/db")]
    assert not (await acme.policy.ListRules(security_pb2.ListRulesRequest(parent="tenants/acme/ports/o1"))).rules
    async with refused(grpc.StatusCode.NOT_FOUND):
        await globex.policy.ListRules(security_pb2.ListRulesRequest(parent=group("acme/web")))

    world = place.controller.store.world
    identity = world.ports.rows["tenants/acme/ports/w1"].spec.identity
    (web,) = [r.origin.id for r in listed.rules if r.origin.text == "tcp 80 from anyone"]
    agents = [FakeAgent(f"h{n}", f"192.0.2.{n}", instance=f"instance-{n}") for n in (1, 2)]
    async with agents[0].connected(place), agents[1].connected(place):
        for number, agent in enumerate(agents, 1):
            ingress = pb.RULE_DIRECTION_INGRESS
            counts = [
                pb.RuleCount(identity=identity, direction=ingress, rule=web, flows=2, packets=number, connections=1),
                pb.RuleCount(identity=identity, direction=ingress, rule=0, packets=5, connections=5),
                pb.RuleCount(identity=99, direction=ingress, rule=web, flows=100),
            ]
            agent.rule_report = pb.RuleReport(whole=True, counts=counts)
        request = security_pb2.ListRulesRequest(parent="tenants/acme", counters=True)
        counted = await acme.policy.ListRules(request)
        assert not counted.silent_hosts
        (row,) = [r for r in counted.rules if r.origin.id == web]
        assert (row.flows, row.packets, row.connections, row.ports, row.hosts) == (4, 3, 2, 3, 2)
        (rest,) = [r for r in counted.rules if not r.origin.object]
        assert (rest.connections, rest.origin.direction) == (10, security_pb2.RULE_DIRECTION_INGRESS)
        assert not await barriers(place)  # all hosts are this replica's: nothing was written
        agents[1].rule_report = None
        request.timeout.FromMilliseconds(300)
        counted = await acme.policy.ListRules(request)
        assert list(counted.silent_hosts) == ["hosts/h2"]
        (row,) = [r for r in counted.rules if r.origin.id == web]
        assert row.packets == 1


async def barriers(place: Site) -> list[Any]:
    await place.controller.store.barrier()
    return [row for row in place.controller.store.world.barriers.rows.values() if not row.mark]


async def test_denied_connections(place: Site, admin: Client) -> None:
    acme = Client(place, "tenant/acme/viewer")
    world = place.controller.store.world
    w1, w2, d1 = (world.ports.rows[f"tenants/acme/ports/{name}"] for name in ("w1", "w2", "d1"))
    now = time.time_ns()

    def denial(at: int, port: Any, other: Any, **more: Any) -> pb.Denial:
        fields = dict(
            at=at, count=3, port_uid=uid(port), identity=port.spec.identity, direction=pb.RULE_DIRECTION_INGRESS,
            mode=pb.RULE_MODE_ENFORCE, remote_uid=uid(other), protocol=6, source=other.spec.addresses[0].packed,
            target=port.spec.addresses[0].packed, source_port=40000, target_port=22,
        )  # fmt: skip
        return pb.Denial(**(fields | more))

    agent = FakeAgent("h1", "192.0.2.1")
    strange = pb.Denial(at=now, port_uid=b"\1" * 16)
    agent.rule_report = pb.RuleReport(whole=True, denials=[denial(now - 10, w1, w2), strange, denial(now, w1, d1)])
    async with agent.connected(place):
        # Told without being asked, it is in the log, with names, and kept.
        told = [denial(now - 20, w2, d1)]
        with structlog.testing.capture_logs() as lines:
            await agent.say(pb.FromAgent(rule_report=pb.RuleReport(denials=told * 30)))
            await until(lambda: lines, "a line in the log")
        written = [line for line in lines if line["event"] == "denied"]
        assert len(written) == 20
        wanted = {"port": w2.name, "remote_port": d1.name, "direction": "INGRESS", "rule": "none allows it", "more": 2}
        assert wanted.items() <= written[0].items()
        request = security_pb2.ListDenialsRequest(parent="tenants/acme")
        request.after.FromNanoseconds(now - 15)
        request.timeout.FromMilliseconds(500)
        answer = await acme.policy.ListDenials(request)
        assert list(answer.silent_hosts) == ["hosts/h2"]
        first, second = answer.denials
        assert (first.port, first.remote_port, second.remote_port) == (w1.name, w2.name, d1.name)
        assert (first.protocol, first.source_port, first.target_port, first.suppressed) == ("tcp", 40000, 22, 2)
        assert (first.host, first.direction) == ("hosts/h1", security_pb2.RULE_DIRECTION_INGRESS)
        assert (first.source_address, first.target_address) == tuple(str(p.spec.addresses[0]) for p in (w2, w1))
        agent.rule_report = pb.RuleReport(whole=True)
        request.after.FromNanoseconds(now - 5)
        assert [d.remote_port for d in (await acme.policy.ListDenials(request)).denials] == [d1.name]
        request.page_size = 1
        request.ClearField("after")
        assert [d.remote_port for d in (await acme.policy.ListDenials(request)).denials] == [d1.name]
        other = security_pb2.ListDenialsRequest(parent="tenants/acme/ports/d1", timeout=request.timeout)
        assert not (await acme.policy.ListDenials(other)).denials
        everything = await admin.policy.ListDenials(security_pb2.ListDenialsRequest(timeout=request.timeout))
        assert len(everything.denials) == 2 + 30
        async with refused(grpc.StatusCode.NOT_FOUND):
            await Client(place, "tenant/globex/admin").policy.ListDenials(other)
    await until(lambda: not place.controller.sessions.by_host)


async def test_tenants_see_the_tiers_that_bind_them(place: Site, admin: Client) -> None:
    for name in ("acme", "globex"):
        tier = security_pb2.PolicyTier(
            position=security_pb2.PolicyTier.POSITION_ABOVE, tenant_selector={"env": name}, labels={"a": "b"}
        )
        request = security_pb2.CreatePolicyTierRequest(policy_tier_id=name, policy_tier=tier)
        await admin.tiers.CreatePolicyTier(request)
    acme = Client(place, "tenant/acme/viewer")
    listed = (await acme.tiers.ListPolicyTiers(security_pb2.ListPolicyTiersRequest())).policy_tiers
    assert [(t.name, dict(t.tenant_selector), dict(t.labels)) for t in listed] == [("policyTiers/acme", {}, {})]
    async with refused(grpc.StatusCode.NOT_FOUND):
        await acme.tiers.GetPolicyTier(security_pb2.GetPolicyTierRequest(name="policyTiers/globex"))
    async with refused(grpc.StatusCode.NOT_FOUND):
        await acme.policy.ListRules(security_pb2.ListRulesRequest(parent="policyTiers/globex"))
    async with refused(grpc.StatusCode.PERMISSION_DENIED):
        await acme.tiers.DeletePolicyTier(security_pb2.DeletePolicyTierRequest(name="policyTiers/acme"))
    shown = await admin.tiers.GetPolicyTier(security_pb2.GetPolicyTierRequest(name="policyTiers/globex"))
    assert shown.status.tenants == 1
