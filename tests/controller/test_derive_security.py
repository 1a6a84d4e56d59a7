"""Rules of identities: exact rows, to whom they go, and how little a change touches."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.features import security_rules
from tealnet.core.rows.security import Action, Direction, Mode, OnChange, Ports, Position, Remote, Rules
from tealnet.core.rows.stream import LocalPort
from tealnet.v1 import network_pb2, security_pb2
from tests.controller.deriving import KEYS, MAKE, Derivation
from tests.controller.making import uid_of
from tests.samples import samples

ENFORCE = network_pb2.Network.POLICY_ENFORCE
NET, OPEN = "tenants/acme/networks/web", "tenants/acme/networks/open"
GLOBEX = "tenants/globex/networks/web"
H1, H2, H3 = (uid_of(f"hosts/h{n}") for n in (1, 2, 3))
ABOVE, BELOW = security_pb2.PolicyTier.POSITION_ABOVE, security_pb2.PolicyTier.POSITION_BELOW


def group(own: str, tenant: str = "acme") -> str:
    return f"tenants/{tenant}/securityGroups/{own}"


WEB, DB, DEFAULT = group("web"), group("db"), group("default")
WEB_ID, DB_ID, PLAIN_ID, GLOBEX_ID = 301, 302, 303, 401


def rule(**fields: Any) -> security_pb2.SecurityRule:
    return security_pb2.SecurityRule(**fields)


def tier_rule(action: str, **fields: Any) -> security_pb2.TierRule:
    return security_pb2.TierRule(action=f"RULE_ACTION_{action}", **fields)


def port(number: int, identity: int, host: str, network: str = NET) -> Any:
    tenant = network.split("/")[1]
    return MAKE.port(f"tenants/{tenant}/ports/p{number}", network, [f"10.0.0.{number}"], host=host, identity=identity)


def web(*more: security_pb2.SecurityRule, **body: Any) -> Any:
    ingress = [rule(protocol="tcp", ports=["80", "443"], remote_cidr="0.0.0.0/0"), *more]
    return MAKE.group(WEB, ingress=ingress, egress=[rule(remote_group=DB)], **body)


def db(**body: Any) -> Any:
    return MAKE.group(DB, ingress=[rule(protocol="tcp", ports=["5432"], remote_group=WEB)], **body)


def default(tenant: str = "acme") -> Any:
    name = group("default", tenant)
    return MAKE.group(name, ingress=[rule(remote_group=name)], egress=[rule()])


def base() -> Derivation:
    return (
        Derivation()
        .put(
            *(MAKE.host(f"h{n}", n, vtep=f"192.0.2.{n}") for n in (1, 2, 3)),
            MAKE.tenant("acme", env="prod"),
            MAKE.tenant("globex"),
            MAKE.network(NET, 1, policy=ENFORCE),
            MAKE.network(OPEN, 2, ["10.9.0.0/16"]),
            MAKE.network(GLOBEX, 9, policy=ENFORCE),
            web(),
            db(),
            default(),
            default("globex"),
            MAKE.identity(WEB_ID, "tenants/acme", WEB),
            MAKE.identity(DB_ID, "tenants/acme", DB),
            MAKE.identity(PLAIN_ID, "tenants/acme", DEFAULT),
            MAKE.identity(GLOBEX_ID, "tenants/globex", group("default", "globex")),
            port(1, WEB_ID, "h1"),
            port(2, DB_ID, "h2"),
            port(3, PLAIN_ID, "h2", OPEN),
            port(4, GLOBEX_ID, "h3", GLOBEX),
        )
        .settle()
    )


def rules_at(derivation: Derivation, host: str) -> dict[int, Rules]:
    rows = derivation.rows(f"host/{host}").items()
    return {int(key.removeprefix("rules/")): row for key, row in rows if key.startswith("rules/")}


def one(rules: Rules) -> list[tuple[Any, ...]]:
    """Every rule in short."""
    assert not rules.flaws
    return [
        (tier.position, r.direction, r.action, r.mode, r.protocol, r.ports, r.remote)
        for tier in rules.tiers
        for r in tier.rules
    ]


def test_rules_go_where_a_guarded_port_of_the_identity_is() -> None:
    derivation = base()
    assert {host: set(rules_at(derivation, host)) for host in (H1, H2, H3)} == {
        H1: {WEB_ID}, H2: {DB_ID}, H3: {GLOBEX_ID},
    }  # fmt: skip
    scope = derivation.rows(f"host/{H2}")
    guarded, trusted = (scope[f"localport/{uid_of(f'tenants/acme/ports/p{n}')}"] for n in (2, 3))
    assert isinstance(guarded, LocalPort) and isinstance(trusted, LocalPort)
    assert (guarded.policy.name, trusted.policy.name) == ("ENFORCE", "OFF")
    chunks = derivation.resources.scope(f"host/{H2}").chunks
    needs = {key: b"security" in chunk.encoded for key, chunk in chunks.items()}
    assert {key for key, needed in needs.items() if needed} == {
        f"rules/{DB_ID}", f"localport/{uid_of('tenants/acme/ports/p2')}",
    }  # fmt: skip
    derivation.put(MAKE.network(OPEN, 2, ["10.9.0.0/16"], policy=ENFORCE)).settle()
    assert set(rules_at(derivation, H2)) == {DB_ID, PLAIN_ID}


def test_what_the_rules_say() -> None:
    derivation = base()
    rules = rules_at(derivation, H1)[WEB_ID]
    (any_v4,) = [r.remote for r in rules.tiers[0].rules if r.direction is Direction.INGRESS]
    assert any_v4 is not None and [str(p) for p in any_v4.prefixes] == ["0.0.0.0/0"]
    allow, enforce, groups = Action.ALLOW, Mode.ENFORCE, Position.GROUPS
    assert sorted(one(rules), key=str) == sorted(
        [
            (groups, Direction.INGRESS, allow, enforce, 6, (Ports(80, 80), Ports(443, 443)), any_v4),
            (groups, Direction.EGRESS, allow, enforce, 0, (), Remote((DB_ID,), ())),
        ],
        key=str,
    )
    assert (rules.fallback, rules.on_change) == (Mode.ENFORCE, OnChange.KEEP)
    assert one(rules_at(derivation, H2)[DB_ID]) == [
        (groups, Direction.INGRESS, allow, enforce, 6, (Ports(5432, 5432),), Remote((WEB_ID,), ()))
    ]
    names = {r.name for r in rules.tiers[0].rules}
    assert names == {"web/ingress[0]", "web/egress[0]"}


def test_one_more_member_touches_no_rules() -> None:
    derivation = base()
    computed: list[Any] = []
    security = derivation.resources._tables[-1]
    plain = security.compute
    security.compute = lambda read, key: computed.append(key) or plain(read, key)  # type: ignore[func-returns-value]
    derivation.put(port(50, WEB_ID, "h1"), port(51, WEB_ID, "h1")).settle()
    assert computed == [(H1, WEB_ID)]  # only whether it is still wanted there
    changed = derivation.changed[f"host/{H1}"]
    assert {key.split("/")[0] for key in changed} == {"localport"}
    # On a host that had none of its kind, the rules come along, as they are elsewhere.
    derivation.put(port(52, WEB_ID, "h3")).settle()
    assert derivation.changed[f"host/{H3}"] >= {f"rules/{WEB_ID}"}
    versions = [derivation.resources.scope(f"host/{h}").chunks[f"rules/{WEB_ID}"].version for h in (H1, H3)]
    assert versions[0] == versions[1]


def test_a_new_set_of_groups_is_a_member_of_each() -> None:
    derivation = base().put(MAKE.identity(310, "tenants/acme", WEB, DB), port(60, 310, "h3")).settle()
    both = rules_at(derivation, H3)[310]
    assert len(both.tiers[0].rules) == 3
    assert [r.id for r in both.tiers[0].rules] == sorted(r.id for r in both.tiers[0].rules)
    (db_rule,) = rules_at(derivation, H2)[DB_ID].tiers[0].rules
    assert db_rule.remote == Remote((WEB_ID, 310), ())
    assert db_rule.id in {r.id for r in both.tiers[0].rules}  # the same rule in the rules of every identity
    derivation.put(KEYS.intent("tenants/acme/ports/p60"), KEYS.identity(310)).settle()
    (db_rule,) = rules_at(derivation, H2)[DB_ID].tiers[0].rules
    assert db_rule.remote == Remote((WEB_ID,), ())


def test_ids_are_of_what_was_written() -> None:
    derivation = base()
    before = {r.name: r.id for r in rules_at(derivation, H1)[WEB_ID].tiers[0].rules}
    front = rule(protocol="udp", ports=["53"])
    first = rule(protocol="tcp", ports=["80", "443"], remote_cidr="0.0.0.0/0", description="other words")
    derivation.put(
        MAKE.group(WEB, ingress=[front, first], egress=[rule(remote_group=DB)], mode=security_pb2.POLICY_MODE_SHADOW)
    ).settle()
    after = {r.name: r.id for r in rules_at(derivation, H1)[WEB_ID].tiers[0].rules}
    assert after["web/ingress[1]"] == before["web/ingress[0]"]
    assert after["web/egress[0]"] == before["web/egress[0]"]
    assert after["web/ingress[0]"] not in before.values()
    derivation.put(web(rule(protocol="tcp", ports=["80"]))).settle()
    assert len({r.id for r in rules_at(derivation, H1)[WEB_ID].tiers[0].rules}) == 3


def test_disabled_rules_and_names_that_stand_for_nobody() -> None:
    derivation = base().put(
        MAKE.group(DB, ingress=[rule(enabled=False), rule(remote_group=WEB, color="blue")]),
        KEYS.identity(WEB_ID),
        KEYS.intent("tenants/acme/ports/p1"),
    )
    (left,) = rules_at(derivation.settle(), H2)[DB_ID].tiers[0].rules
    assert (left.name, left.remote, left.colors) == ("db/ingress[1]", Remote((), ()), ())


def test_mode_and_on_change_of_several_groups() -> None:
    shadow, cut = security_pb2.POLICY_MODE_SHADOW, security_pb2.ON_CHANGE_CUT
    derivation = base().put(
        MAKE.identity(310, "tenants/acme", WEB, DB), port(60, 310, "h3"), web(mode=shadow), db(on_change=cut)
    )
    rules = rules_at(derivation.settle(), H3)[310]
    assert (rules.fallback, rules.on_change) == (Mode.ENFORCE, OnChange.CUT)
    modes = {r.name.split("/")[0]: r.mode for r in rules.tiers[0].rules}
    assert modes == {"web": Mode.SHADOW, "db": Mode.ENFORCE}
    assert rules_at(derivation, H1)[WEB_ID].fallback is Mode.SHADOW
    derivation.put(db(mode=shadow)).settle()
    assert rules_at(derivation, H3)[310].fallback is Mode.SHADOW


def test_a_port_of_before_there_were_groups_is_in_the_default_one() -> None:
    derivation = base().put(MAKE.identity(320, "tenants/acme"), port(70, 320, "h3")).settle()
    old = rules_at(derivation, H3)[320]
    (ingress,) = [r for r in old.tiers[0].rules if r.direction is Direction.INGRESS]
    assert ingress.remote == Remote((PLAIN_ID, 320), ())
    derivation.put(KEYS.intent(DEFAULT)).settle()  # not given yet: closed
    assert (rules_at(derivation, H3)[320].tiers, rules_at(derivation, H3)[320].fallback) == ((), Mode.ENFORCE)


def test_tiers_bind_the_tenants_that_they_select() -> None:
    derivation = base()
    globex = rules_at(derivation, H3)[GLOBEX_ID]
    ssh = tier_rule("DENY", protocol="tcp", ports=["22"])
    derivation.put(
        MAKE.tier("late", position=ABOVE, priority=9, ingress=[ssh], tenant_selector={"env": "prod"}),
        MAKE.tier("b", position=ABOVE, priority=1, egress=[tier_rule("PASS"), ssh], tenant_selector={"env": "prod"}),
        MAKE.tier("a", position=ABOVE, priority=1, ingress=[ssh], tenant_selector={"env": "prod"}),
        MAKE.tier(
            "end", position=BELOW, ingress=[tier_rule("ALLOW", remote_group="db")], tenant_selector={"env": "prod"},
            on_change=security_pb2.ON_CHANGE_REEVALUATE,
        ),
    ).settle()  # fmt: skip
    rules = rules_at(derivation, H1)[WEB_ID]
    assert [tier.position.name for tier in rules.tiers] == ["ABOVE", "ABOVE", "ABOVE", "GROUPS", "BELOW"]
    assert [tier.rules[0].name.split("/")[1] for tier in rules.tiers if tier.position is not Position.GROUPS] == [
        "a", "b", "late", "end",
    ]  # fmt: skip
    assert [r.action for r in rules.tiers[1].rules] == [Action.PASS, Action.DENY]
    assert rules.tiers[4].rules[0].remote == Remote((DB_ID,), ())  # acme's own group of that name
    assert rules.on_change is OnChange.REEVALUATE
    assert rules_at(derivation, H3)[GLOBEX_ID] == globex
    assert f"host/{H3}" not in derivation.changed
    derivation.put(MAKE.tier("late", position=ABOVE, priority=9, ingress=[ssh])).settle()
    assert f"rules/{GLOBEX_ID}" in derivation.changed[f"host/{H3}"]
    assert derivation.changed.keys() == {f"host/{H3}"}  # for acme it says what it said
    derivation.put(MAKE.tenant("acme")).settle()
    assert [t.position.name for t in rules_at(derivation, H1)[WEB_ID].tiers] == ["ABOVE", "GROUPS"]


def test_what_was_not_understood_is_a_flaw_of_its_direction() -> None:
    strange = rule(protocol="tcp")
    strange.MergeFromString(b"\xa2\x06\x03abc")  # field 100
    derivation = base().put(MAKE.group(DB, ingress=[strange], egress=[rule()])).settle()
    rules = rules_at(derivation, H2)[DB_ID]
    (flaw,) = rules.flaws
    assert (flaw.directions, flaw.rule) == ((Direction.INGRESS,), "db/ingress[0]")
    assert [r.direction for r in rules.tiers[0].rules] == [Direction.EGRESS]


def test_ids_of_one_identity_are_unique() -> None:
    spec = security_rules.Compiled(b"", security_rules.Origin("a", "0", Direction.INGRESS, 0, 500))
    tier = security_rules.CompiledTier(Position.ABOVE, (spec, spec), Mode.ENFORCE, OnChange.KEEP)
    groups = security_rules.CompiledTier(Position.GROUPS, (spec,), Mode.ENFORCE, OnChange.KEEP)
    body = security_rules.body_of([tier], [groups], Mode.ENFORCE)
    assert [number for number, _ in body.origins] == [500, 501, 502]


STEPS: list[Any] = [
    web(), web(mode=security_pb2.POLICY_MODE_SHADOW), db(), MAKE.group(DB), KEYS.intent(DB), default(),
    KEYS.intent(DEFAULT), MAKE.identity(310, "tenants/acme", WEB, DB), KEYS.identity(310), port(60, 310, "h3"),
    port(60, WEB_ID, "h1"), KEYS.intent("tenants/acme/ports/p60"), MAKE.tenant("acme"), MAKE.tenant("acme", env="prod"),
    MAKE.tier("t", position=ABOVE, ingress=[tier_rule("DENY", remote_group="web")], tenant_selector={"env": "prod"}),
    MAKE.tier("t", position=BELOW, ingress=[tier_rule("ALLOW")]), KEYS.intent("policyTiers/t"),
    MAKE.network(NET, 1), MAKE.network(NET, 1, policy=ENFORCE), MAKE.identity(320, "tenants/acme"),
    port(70, 320, "h2"), KEYS.intent(NET), MAKE.host("h3", 3, vtep="192.0.2.3", fenced=True),
]  # fmt: skip


@settings(max_examples=samples(40, many=1000))
@given(st.lists(st.sampled_from(range(len(STEPS))), max_size=14), st.data())
def test_any_history_ends_like_a_start_from_scratch(steps: list[int], data: st.DataObject) -> None:
    derivation = base()
    latest: dict[bytes, Any] = {}
    for step in steps:
        op = STEPS[step]
        derivation.put(op)
        latest[op if isinstance(op, bytes) else op.key] = op
        if data.draw(st.booleans()):
            derivation.settle()
    derivation.settle()
    fresh = base().put(*latest.values()).settle()
    assert derivation.everything() == fresh.everything()
