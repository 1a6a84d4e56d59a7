"""Security groups and tiers on a real etcd: references, the default group, identities, quotas, races."""

from __future__ import annotations

import asyncio
from typing import Any

from controller.caller import current_caller
from controller.errors import ApiError, FailedPrecondition, NotFound
from controller.etcd.types import delete, put
from controller.intents.group import ensure_default
from controller.names import default_group
from tealnet.store.v1 import store_pb2
from tealnet.v1 import network_pb2, port_pb2, security_pb2, tenant_pb2
from tests.controller.consistent import inconsistencies
from tests.controller.test_write_batch import plan
from tests.controller.test_write_delete import delete_tenant
from tests.controller.writing import Replicated, Writing, group_name, outcome, refusal, writing

WEB, DB, DEFAULT = (group_name(f"acme/{name}") for name in ("web", "db", "default"))


def rule(**fields: Any) -> security_pb2.SecurityRule:
    return security_pb2.SecurityRule(**fields)


def members(replica: Replicated, port: str) -> tuple[str, ...]:
    """The groups behind a port's identity, by name."""
    world = replica.store.world
    numbers = world.identities.rows[world.ports.rows[port].spec.identity].members[1:]
    return tuple(sorted(name for uid in numbers for name in world.groups_by_uid.keys(uid)))


async def test_a_tenant_has_a_default_group() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        group = await one.groups.GetSecurityGroup(security_pb2.GetSecurityGroupRequest(name=DEFAULT), None)
        assert [(r.protocol, r.remote_group) for r in group.ingress] == [("any", DEFAULT)]
        assert [(r.protocol, r.remote_group, r.remote_cidr) for r in group.egress] == [("any", "", "")]
        assert (group.mode, group.on_change) == (security_pb2.POLICY_MODE_ENFORCE, security_pb2.ON_CHANGE_KEEP)
        assert (await refusal(one.group("acme/default"))).reason == "ALREADY_EXISTS"
        refused = await refusal(one.delete_group("acme/default"))
        assert refused.reason == "DEFAULT_GROUP" and "goes with its tenant" in refused.text
        changed = await one.update_group("acme/default", "ingress", ingress=[])
        assert not changed.ingress and len(changed.egress) == 1
        await delete_tenant(one, "tenants/acme", force=False)
        assert not one.store.world.groups.rows
        again = await one.tenant("acme")
        assert one.store.world.groups.rows[DEFAULT].spec.tenant == again.name
        assert await inconsistencies(one.store) == []


async def test_ports_are_in_groups() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        network = await one.network("acme/web", cidrs=["10.0.0.0/24"])
        assert network.policy == network_pb2.Network.POLICY_ENFORCE
        await one.group("acme/web")
        await one.group("acme/db")
        plain = await one.port("acme/plain")
        both = await one.port("acme/both", security_groups=[WEB, DB])
        reverse = await one.port("acme/reverse", security_groups=[DB, WEB])
        assert list(plain.security_groups) == [DEFAULT]
        assert members(one, plain.name) == (DEFAULT,)
        assert members(one, both.name) == (DB, WEB)
        rows = one.store.world.ports.rows
        assert rows[both.name].spec.identity == rows[reverse.name].spec.identity != rows[plain.name].spec.identity
        group = await one.groups.GetSecurityGroup(security_pb2.GetSecurityGroupRequest(name=WEB), None)
        assert group.status.ports == 2
        changed = await one.update_port(plain.name, "security_groups", security_groups=[DB])
        assert list(changed.security_groups) == [DB] and members(one, plain.name) == (DB,)
        before = rows[both.name].spec.identity
        await one.update_port(both.name, "description", description="text")
        assert rows[both.name].spec.identity == before
        await one.update_port(both.name, "security_groups", security_groups=[])
        assert members(one, both.name) == (DEFAULT,)
        assert await inconsistencies(one.store) == []
        refused = await refusal(one.delete_group("acme/db"))
        assert isinstance(refused, FailedPrecondition) and refused.reason == "IN_USE"
        assert {b.subject for b in refused.blockers} == {plain.name, reverse.name}
        for port in (plain, reverse):
            await one.delete_port(port.name)
        await one.delete_group("acme/db")
        assert await inconsistencies(one.store) == []


async def test_groups_that_ports_cannot_have() -> None:
    async with writing() as site:
        one = site.one
        for tenant in ("acme", "globex"):
            await one.tenant(tenant)
            await one.network(f"{tenant}/web", cidrs=["10.0.0.0/24"])
        await one.group("globex/web")
        for names, field, text in (
            ([WEB], "port.security_groups[0]", f"{WEB} not found"),
            ([group_name("globex/web")], "port.security_groups[0]", "is not of tenants/acme"),
            ([DEFAULT, "web"], "port.security_groups[1]", "is not a name like"),
        ):
            refused = await refusal(one.port("acme/p", security_groups=names))
            assert field in refused.text and text in refused.text, refused.text
        await one.group("acme/web")
        await one.delete_group("acme/web")
        assert isinstance(await refusal(one.port("acme/p", security_groups=[WEB])), NotFound)
        await one.port("acme/p")
        assert isinstance(await refusal(one.update_port("tenants/acme/ports/p", security_groups=[WEB])), NotFound)


async def test_rules_refer_to_groups() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.tenant("globex")
        missing = await refusal(one.group("acme/web", ingress=[rule(remote_group=DB)]))
        assert missing.text == f"security_group.ingress[0].remote_group: {DB} not found"
        foreign = await refusal(one.group("acme/web", egress=[rule(remote_group=group_name("globex/default"))]))
        assert "is not of tenants/acme" in foreign.text
        await one.group("acme/web", ingress=[rule(remote_group=WEB)])
        await one.group("acme/db", ingress=[rule(remote_group=WEB), rule(protocol="tcp", remote_group=WEB)])
        await one.update_group("acme/web", "egress", egress=[rule(remote_group=DB)])
        assert await inconsistencies(one.store) == []
        refused = await refusal(one.delete_group("acme/db"))
        assert refused.reason == "IN_USE" and WEB in refused.text
        await one.update_group("acme/web", "ingress", "egress")
        await one.delete_group("acme/db")
        assert await inconsistencies(one.store) == []
        await one.delete_group("acme/web")
        assert not await site.keys("k/q")


async def test_update_checks_rules_together() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        many = [rule(protocol="tcp", ports=[str(n)]) for n in range(1, 601)]
        await one.group("acme/web", ingress=many)
        refused = await refusal(one.update_group("acme/web", "egress", egress=many))
        assert "1200 rules are more than 1000" in refused.text
        await one.update_group("acme/web", "egress", egress=many[:400])
        assert len(one.store.world.groups.rows[WEB].spec.rules) == 1000


async def test_quota() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme", quota={"security_groups": 2})
        await one.group("acme/a")
        await one.group("acme/b")
        refused = await refusal(one.group("acme/c"))
        assert refused.reason == "QUOTA_EXCEEDED"
        await one.delete_group("acme/a")
        await one.group("acme/c")
        assert await inconsistencies(one.store) == []


async def test_cascade_takes_groups_that_refer_to_each_other() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        await one.group("acme/web")
        await one.group("acme/db", ingress=[rule(remote_group=WEB)])
        await one.update_group("acme/web", "ingress", ingress=[rule(remote_group=DB), rule(remote_group=DEFAULT)])
        await one.update_group("acme/default", "ingress", ingress=[rule(remote_group=WEB)])
        await one.port("acme/p", security_groups=[WEB])
        refused = await refusal(delete_tenant(one, "tenants/acme", force=False))
        assert refused.reason == "IN_USE"
        await delete_tenant(one, "tenants/acme")
        assert not one.store.world.groups.rows
        assert not await site.keys("k/r/") and not await site.keys("k/q/")


async def test_a_tenant_of_an_earlier_version_gets_its_default_group() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        old = await one.port("acme/old")
        await as_of_earlier(site, old.name)
        await one.store.barrier()
        assert not one.store.world.groups.rows
        await one.update_port(old.name, "description", description="by a new controller")
        assert one.store.world.ports.rows[old.name].spec.groups == ()
        new = await one.port("acme/new")
        assert members(one, new.name) == (DEFAULT,)
        group = await one.groups.GetSecurityGroup(security_pb2.GetSecurityGroupRequest(name=DEFAULT), None)
        assert group.status.ports == 2
        await one.update_port(old.name, "security_groups", security_groups=[DEFAULT])
        assert members(one, old.name) == (DEFAULT,)
        assert await inconsistencies(one.store) == []


async def as_of_earlier(site: Writing, port: str) -> None:
    """Make the store what a controller without groups would have left."""
    one, keys = site.one, site.one.store.keys
    world = one.store.world
    tenant, row = world.tenants.rows["tenants/acme"], world.ports.rows[port]
    stored = store_pb2.Stored.FromString(row.stored)
    message = one.ports._standard.parts.presenter.message("port", row, current_caller())
    message.ClearField("security_groups")
    message.ClearField("status")
    stored.message = message.SerializeToString()
    number, group = row.spec.identity, world.groups.rows[default_group("tenants/acme")]
    stored.issued.ClearField("group_uids")
    await site.etcd.txn(
        (),
        [
            delete(keys.intent(group.name)),
            delete(keys.reference(kind="group", uid=group.uid, by_kind="port", by_uid=row.uid)),
            put(keys.intent(port), stored.SerializeToString()),
            put(keys.identity(number), store_pb2.Identity(tenant_uid=tenant.uid).SerializeToString()),
        ],
    )


async def test_group_delete_against_port_create() -> None:
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await one.tenant("acme")
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        created = 0
        for number in range(60):
            made = await one.group(f"acme/g{number}")
            await two.store.passed(made.revision)
            port, gone = await asyncio.gather(
                outcome(two.port(f"acme/p{number}", security_groups=[made.name])),
                outcome(one.delete_group(f"acme/g{number}")),
            )
            if isinstance(port, ApiError):
                assert isinstance(port, NotFound) and gone is None, (port, gone)
            else:
                assert isinstance(gone, FailedPrecondition), gone
                created += 1
        assert await inconsistencies(one.store) == []
        assert len(one.store.world.ports.rows) == created


async def test_group_delete_against_a_rule_that_names_it() -> None:
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await one.tenant("acme")
        await one.group("acme/web")
        for number in range(40):
            made = await one.group(f"acme/g{number}")
            await two.store.passed(made.revision)
            changed, gone = await asyncio.gather(
                outcome(two.update_group("acme/web", "ingress", ingress=[rule(remote_group=made.name)])),
                outcome(one.delete_group(f"acme/g{number}")),
            )
            assert isinstance(changed, ApiError) != isinstance(gone, ApiError), (changed, gone)
            if not isinstance(changed, ApiError):
                await two.update_group("acme/web", "ingress")
        assert await inconsistencies(one.store) == []


async def test_one_set_has_one_identity() -> None:
    """Ports with the same new groups on two replicas at the same time."""
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await one.tenant("acme")
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        groups = [(await one.group(f"acme/g{n}")).name for n in range(6)]
        await two.store.barrier()
        sets = [[a, b] for i, a in enumerate(groups) for b in groups[i + 1 :]]
        ports = [
            replica.port(f"acme/p{n}-{i}", security_groups=wanted)
            for n, wanted in enumerate(sets)
            for i, replica in enumerate(site.replicas)
        ]
        made = await asyncio.gather(*ports)
        await one.store.barrier()  # half of them were made by the other replica
        for port in made:
            assert members(one, port.name) == tuple(sorted(port.security_groups))
        assert len(one.store.world.identities.rows) == len(sets)
        assert await inconsistencies(two.store) == []


async def test_default_group_against_tenant_delete() -> None:
    async with writing(replicas=2) as site:
        one, two = site.replicas
        for number in range(30):
            tenant = await one.tenant(f"t{number}")
            key = one.store.keys.intent(default_group(tenant.name))
            await site.etcd.txn((), [delete(key)])
            await one.store.barrier()
            await two.store.barrier()
            await asyncio.gather(delete_tenant(one, tenant.name, force=False), ensure_default(two.store, tenant.name))
        await one.store.barrier()
        assert not one.store.world.groups.rows


async def test_tiers() -> None:
    async with writing() as site:
        one = site.one
        refused = await refusal(one.tier("base"))
        assert "policy_tier.position: is missing" in refused.text
        made = await one.tier(
            "base",
            position=security_pb2.PolicyTier.POSITION_ABOVE,
            priority=5,
            tenant_selector={"env": "prod"},
            ingress=[
                security_pb2.TierRule(
                    action=security_pb2.RULE_ACTION_DENY, protocol="TCP", ports=["22"], remote_group="web"
                )
            ],
        )
        assert made.name == "policyTiers/base" and made.ingress[0].protocol == "tcp"
        await one.tenant("acme", labels={"env": "prod"})
        shown = await one.tiers.GetPolicyTier(security_pb2.GetPolicyTierRequest(name=made.name), None)
        assert shown.status.tenants == 1
        request = security_pb2.UpdatePolicyTierRequest(policy_tier={"name": made.name, "priority": 7})
        assert (await one.tiers.UpdatePolicyTier(request, None)).priority == 7
        await one.tiers.DeletePolicyTier(security_pb2.DeletePolicyTierRequest(name=made.name), None)
        assert not one.store.world.tiers.rows


async def test_a_plan_of_groups_that_name_each_other() -> None:
    """First without rules, then with them: as they are applied."""
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        await one.network("acme/net", cidrs=["10.0.0.0/24"])
        web = security_pb2.SecurityGroup(name=WEB, ingress=[rule(remote_group=DB)])
        db = security_pb2.SecurityGroup(name=DB, ingress=[rule(remote_group=WEB)])
        port = port_pb2.Port(
            name="tenants/acme/ports/p", network="tenants/acme/networks/net", security_groups=[DB, DEFAULT]
        )
        bare = [security_pb2.SecurityGroup(name=name) for name in (WEB, DB)]
        answer = await one.api.planner.plan(plan(*bare, web, db, port))
        assert [r.Action.Name(r.action)[7:] for r in answer.results] == [
            "CREATE",
            "CREATE",
            "UPDATE",
            "UPDATE",
            "CREATE",
        ]
        assert answer.results[2].after.security_group.ingress[0].remote_group == DB
        (refused,) = (await one.api.planner.plan(plan(web))).results
        assert refused.error.message == f"security_group.ingress[0].remote_group: {DB} not found"
        globex = tenant_pb2.Tenant(name="tenants/globex")
        theirs = security_pb2.SecurityGroup(
            name=group_name("globex/web"), egress=[rule(remote_group=group_name("globex/default"))]
        )
        made = (await one.api.planner.plan(plan(globex, theirs))).results
        assert [r.Action.Name(r.action) for r in made] == ["ACTION_CREATE", "ACTION_CREATE"]
        assert not one.store.world.groups.rows.keys() & {WEB, DB}
