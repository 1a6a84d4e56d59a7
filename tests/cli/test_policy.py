"""Security on the command line: rules as people type them, groups that name each other, verdicts, logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tealnet.cli.rules import BadRule, in_words, parse
from tealnet.v1 import security_pb2, tenant_pb2
from tests.cli.conftest import Teal
from tests.cli.fake_server import Fake

WEB, DB = "tenants/acme/securityGroups/web", "tenants/acme/securityGroups/db"
INGRESS, EGRESS = security_pb2.RULE_DIRECTION_INGRESS, security_pb2.RULE_DIRECTION_EGRESS


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("any", {"protocol": "any"}),
        ("tcp 80,8000-8099 from 10.0.0.0/8", {
            "protocol": "tcp", "ports": ["80", "8000-8099"], "remote_cidr": "10.0.0.0/8",
        }),
        ("udp from web", {"protocol": "udp", "remote_group": "web"}),
        ("icmp 8/0 from anyone in blue", {"protocol": "icmp", "icmp_type": 8, "icmp_code": 0, "color": "blue"}),
        ("icmpv6 128", {"protocol": "icmpv6", "icmp_type": 128}),
        ("47 from fd00::/64", {"protocol": "47", "remote_cidr": "fd00::/64"}),
    ],
)  # fmt: skip
def test_rules_are_typed_and_read(text: str, fields: dict[str, Any]) -> None:
    assert parse(text, direction="ingress", of_tier=False) == fields
    words = in_words(security_pb2.SecurityRule(**fields), "ingress")
    assert parse(words, direction="ingress", of_tier=False) == fields


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the protocol is missing"),
        ("tcp 80 to web", "ingress rules say 'from', not 'to'"),
        ("tcp from", "from whom?"),
        ("icmp echo", "is not TYPE or TYPE/CODE"),
        ("tcp 80 from web and more", "'and' is not understood"),
        ("tcp in", "in which color?"),
    ],
)
def test_what_is_not_a_rule(text: str, problem: str) -> None:
    with pytest.raises(BadRule, match=problem.replace("?", r"\?")):
        parse(text, direction="ingress", of_tier=False)


def test_rules_of_tiers_begin_with_what_they_say() -> None:
    assert parse("deny tcp 22 to anyone", direction="egress", of_tier=True) == {
        "action": "RULE_ACTION_DENY", "protocol": "tcp", "ports": ["22"],
    }  # fmt: skip
    with pytest.raises(BadRule, match="begins with allow, deny or pass"):
        parse("tcp 22", direction="egress", of_tier=True)


def test_create_group_and_tier(teal: Teal, fake: Fake) -> None:
    done = teal("create", "group", "acme/web", "--ingress", "tcp 80 from anyone", "--ingress", "any from web",
                "--egress", "any", "--on-change", "cut")  # fmt: skip
    assert done.code == 0 and "securityGroup acme/web created" in done.out, done
    made = fake.objects[WEB]
    assert [(r.protocol, list(r.ports), r.remote_group) for r in made.ingress] == [
        ("tcp", ["80"], ""),
        ("any", [], WEB),
    ]
    assert (made.mode, made.on_change) == (security_pb2.POLICY_MODE_ENFORCE, security_pb2.ON_CHANGE_CUT)
    done = teal("create", "tier", "base", "--position", "above", "--priority", "5", "--tenant-label", "env=prod",
                "--egress", "deny tcp 25", "--shadow")  # fmt: skip
    assert done.code == 0, done
    tier = fake.objects["policyTiers/base"]
    assert (tier.position, tier.priority, tier.mode) == (1, 5, security_pb2.POLICY_MODE_SHADOW)
    assert dict(tier.tenant_selector) == {"env": "prod"} and tier.egress[0].action == security_pb2.RULE_ACTION_DENY
    wrong = teal("create", "group", "acme/x", "--ingress", "tcp 80 to web")
    assert wrong.code == 2 and "ingress rules say 'from'" in wrong.err
    assert teal("get", "groups").out.split()[:6] == ["TENANT", "NAME", "INGRESS", "EGRESS", "PORTS", "MODE"]
    shown = teal("describe", "group", "acme/web").out
    assert "tcp 80 from anyone" in shown and "any from acme/web" in shown
    assert "base" in teal("get", "tiers").out and "deny tcp 25 to anyone" in teal("describe", "tier", "base").out


DOCUMENTS = """
kind: SecurityGroup
tenant: acme
name: web
ingress:
- {protocol: tcp, ports: [80, 8000-8099], remote_group: db}
---
{kind: SecurityGroup, tenant: acme, name: db, ingress: [{protocol: tcp, ports: [5432], remote_group: web}]}
---
{kind: SecurityGroup, tenant: acme, name: alone}
---
{kind: Network, tenant: acme, name: n, cidrs: [10.0.0.0/24], policy: ENFORCE}
---
{kind: Port, tenant: acme, name: p, network: n, security_groups: [web, alone]}
---
{kind: PolicyTier, name: base, position: ABOVE, ingress: [{action: DENY, protocol: 47, remote_group: web}]}
"""


def test_groups_that_name_each_other_are_applied(teal: Teal, fake: Fake, tmp_path: Path) -> None:
    fake.add(tenant_pb2.Tenant(name="tenants/acme"))
    (tmp_path / "a.yaml").write_text(DOCUMENTS)
    done = teal("apply", "-f", tmp_path / "a.yaml")
    assert done.code == 0, done
    assert "securityGroup acme/web created" in done.out and "6 created" in done.err
    made = [(method, request) for method, request in fake.calls if "SecurityGroup" in method and "Get" not in method]
    assert [method for method, _ in made].count("CreateSecurityGroup") >= 3
    first = {r.security_group_id: len(r.security_group.ingress) for m, r in made[:2] if m.startswith("Create")}
    assert first == {"web": 0, "db": 0}  # before any rule
    assert [r.remote_group for r in fake.objects[WEB].ingress] == [DB]
    assert list(fake.objects[WEB].ingress[0].ports) == ["80", "8000-8099"]
    assert list(fake.objects["tenants/acme/ports/p"].security_groups) == [WEB, "tenants/acme/securityGroups/alone"]
    tier = fake.objects["policyTiers/base"].ingress[0]
    assert (tier.protocol, tier.remote_group) == ("47", "web")
    order = [method for method, _ in fake.calls if method.startswith("Create")]
    assert order.index("CreateNetwork") < order.index("CreateSecurityGroup") < order.index("CreatePort")
    assert "6 unchanged" in teal("apply", "-f", tmp_path / "a.yaml").err

    done = teal("delete", "-t", "acme", "groups", "web", "db")
    assert done.code == 0 and {WEB, DB}.isdisjoint(fake.objects), done


def test_a_group_that_somebody_else_holds_keeps_its_rules(teal: Teal, fake: Fake) -> None:
    rule = security_pb2.SecurityRule
    fake.add(
        security_pb2.SecurityGroup(name=WEB, ingress=[rule(remote_group=DB)]),
        security_pb2.SecurityGroup(name=DB, ingress=[rule(protocol="tcp")]),
        security_pb2.SecurityGroup(name=WEB + "2", ingress=[rule(remote_group=DB)]),
    )
    done = teal("delete", "-t", "acme", "groups", "db", "web")
    assert done.code == 1 and "securityGroup acme/db stays" in done.err
    assert fake.objects[DB].ingress and WEB not in fake.objects


def test_documents_of_groups(teal: Teal, fake: Fake, tmp_path: Path) -> None:
    fake.add(tenant_pb2.Tenant(name="tenants/acme"))
    for text, problem in (
        ("{kind: SecurityGroup, tenant: acme, name: x, ingress: [{port: 80}]}", "did you mean ports?"),
        ("{kind: SecurityGroup, tenant: acme, name: x, ingress: [{ports: 80}]}", "a list is expected: [80]"),
        ("{kind: SecurityGroup, tenant: acme, name: x, mode: off}", "is none of ENFORCE, SHADOW"),
        ("{kind: PolicyTier, tenant: acme, name: x}", "a policy tier has none; leave it out"),
    ):
        (tmp_path / "a.yaml").write_text(text)
        done = teal("apply", "-f", tmp_path / "a.yaml")
        assert done.code == 2 and problem in done.err, done


def test_a_plan_joins_the_two_steps_of_a_group(teal: Teal, fake: Fake, tmp_path: Path) -> None:
    fake.add(tenant_pb2.Tenant(name="tenants/acme"))
    (tmp_path / "a.yaml").write_text(DOCUMENTS)
    done = teal("apply", "-f", tmp_path / "a.yaml", "--dry-run")
    assert done.code == 0 and done.out.count("would be created") == 6, done
    (request,) = [r for m, r in fake.calls if m == "Plan"]
    names = [item.object.security_group.name.rsplit("/", 1)[-1] for item in request.items]
    assert [name for name in names if name] == ["web", "db", "web", "db", "alone"]


def origin(**fields: Any) -> security_pb2.RuleOrigin:
    plain: dict[str, Any] = {
        "object": WEB, "revision": 7, "direction": INGRESS, "index": 2, "action": 1, "mode": 1, "id": 0xABCD1234,
        "text": f"tcp 80 from {DB}",
    }  # fmt: skip
    return security_pb2.RuleOrigin(**(plain | fields))


def test_policy_test(teal: Teal, fake: Fake) -> None:
    side = security_pb2.SideVerdict
    path = security_pb2.PathVerdict(
        source_address="10.0.0.2", target_address="10.0.0.3",
        egress=side(outcome=side.OUTCOME_OFF),
        ingress=side(outcome=side.OUTCOME_ALLOWED, rule=origin(), shadow=[origin(object="policyTiers/t", action=2)]),
    )  # fmt: skip
    fake.verdict = security_pb2.TestPolicyResponse(allowed=True, paths=[path])
    path.allowed = True
    fake.verdict.paths[0].allowed = True
    done = teal("policy", "test", "-t", "acme", "--from", "a", "--to", "b", "--port", "80")
    assert done.code == 0, done
    lines = done.out.splitlines()
    assert lines[0] == "allowed  10.0.0.2 → 10.0.0.3 tcp 80"
    assert lines[1] == "  leaving acme/a: not asked, its network has policy OFF"
    assert lines[2] == "  at acme/b: allowed by acme/web ingress[2] (tcp 80 from acme/db), revision 7"
    assert "SHADOW mode, which decides nothing, t ingress[2]" in lines[3] and lines[3].endswith("says deny")
    (request,) = [r for m, r in fake.calls if m == "TestPolicy"]
    assert (request.source, request.target) == ("tenants/acme/ports/a", "tenants/acme/ports/b")
    assert (request.protocol, request.port, request.HasField("icmp_type")) == ("tcp", 80, False)
    fake.verdict = security_pb2.TestPolicyResponse(
        paths=[security_pb2.PathVerdict(reason="NotRouted", text="no router in common")]
    )
    done = teal("policy", "test", "--from", "acme/a", "--to", "acme/b", "--proto", "icmp")
    assert done.code == 1 and "denied  ? → ? icmp (NotRouted: no router in common)" in done.out
    assert teal("policy", "test", "--from", "acme/a", "--to", "acme/b", "-o", "json").code == 1


def test_get_rules(teal: Teal, fake: Fake) -> None:
    fake.rules.rules.add(origin=origin(), ports=3, hosts=2, flows=8, packets=100, bytes=2000, connections=5)
    fake.rules.rules.add(origin=security_pb2.RuleOrigin(direction=EGRESS, text="whatever"), connections=9)
    fake.rules.silent_hosts.append("hosts/h2")
    done = teal("get", "rules", "-t", "acme", "--counters")
    assert done.code == 0 and "no word from h2" in done.err, done
    head, web, rest = done.out.splitlines()
    assert head.split()[-5:] == ["FLOWS", "PACKETS", "BYTES", "CONNECTIONS", "SHADOW"]
    assert web.split()[:3] == ["acme/web", "ingress", "allow"] and "tcp 80 from acme/db" in web
    assert web.split()[-7:] == ["3", "2", "8", "100", "2000", "5", "0"]
    assert rest.split()[:2] == ["-", "egress"]
    (request,) = [r for m, r in fake.calls if m == "ListRules"]
    assert (request.parent, request.counters) == ("tenants/acme", True)
    assert "abcd1234" in teal("get", "rules", "group", "acme/web", "-o", "wide").out
    assert fake.calls[-1][1].parent == WEB
    assert "teal get rules -t acme" in teal("get", "rules", "acme").err
    assert teal("get", "rules", "network", "acme/n").code == 2
    assert teal("get", "ports", "--counters").code == 2
    assert '"object": "tenants/acme' in teal("get", "rules", "-o", "json").out


def test_policy_log(teal: Teal, fake: Fake) -> None:
    assert "nothing was denied" in teal("policy", "log", "-t", "acme").err
    denial = fake.denials.denials.add(
        host="hosts/h1", port="tenants/acme/ports/b", direction=INGRESS, remote_port="tenants/acme/ports/a",
        protocol="tcp", source_address="fd00::2", target_address="fd00::3", source_port=40000, target_port=22,
        suppressed=4,
    )  # fmt: skip
    denial.time.FromSeconds(1_800_000_000)
    fake.denials.denials.add(
        host="hosts/h1", port="tenants/acme/ports/b", direction=EGRESS, protocol="icmp", source_address="10.0.0.3",
        target_address="10.0.0.9", icmp_type=8, rule=origin(object="policyTiers/t"), shadow=True,
    )  # fmt: skip
    done = teal("policy", "log", "acme/b")
    first, second = done.out.splitlines()
    assert (
        "tcp [fd00::2]:40000 → [fd00::3]:22  into acme/b on h1 from acme/a: no rule allows it (and 4 like it)" in first
    )
    assert "icmp 10.0.0.3 → 10.0.0.9 type 8 code 0  out of acme/b on h1: by t ingress[2]" in second
    assert second.endswith("(shadow)")
    assert fake.calls[-1][1].parent == "tenants/acme/ports/b"
