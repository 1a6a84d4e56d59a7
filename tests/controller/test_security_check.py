"""What is wrong with rules, told with field and remedy; and rules in canonical form."""

from __future__ import annotations

from typing import Any

import pytest

from controller.decode_policy import group_of, in_words, tier_of
from controller.features import security_check as check
from controller.fields import Violations
from controller.rows_policy import RuleSpec
from tealnet.core.rows.security import Action, Direction, Mode, OnChange
from tealnet.v1 import port_pb2, security_pb2

OWN = "tenants/acme/securityGroups/web"


def group(*ingress: dict[str, Any], **body: Any) -> security_pb2.SecurityGroup:
    return security_pb2.SecurityGroup(name=OWN, ingress=[security_pb2.SecurityRule(**rule) for rule in ingress], **body)


def problems(message: security_pb2.SecurityGroup) -> list[tuple[str, str]]:
    found = Violations()
    check.group_fields(message, found)
    check.group_shape(message, found)
    return [(v.field, v.text) for v in found.found]


@pytest.mark.parametrize(
    ("rule", "field", "text"),
    [
        ({"protocol": "tcq"}, "protocol", "'tcq' is not a protocol: one of any, icmp, icmpv6, sctp, tcp, udp, or a"),
        ({"protocol": "0"}, "protocol", "within 1…255"),
        ({"protocol": "256"}, "protocol", "within 1…255"),
        ({"protocol": "tcp", "ports": ["90-80"]}, "ports[0]", "'90-80' ends before it begins"),
        ({"protocol": "tcp", "ports": ["0"]}, "ports[0]", "within 1…65535"),
        ({"protocol": "tcp", "ports": ["65536"]}, "ports[0]", "within 1…65535"),
        ({"protocol": "tcp", "ports": ["http"]}, "ports[0]", "is not a port like 443 or a range like 8000-8099"),
        ({"protocol": "tcp", "ports": ["1-2-3"]}, "ports[0]", "is not a port"),
        ({"protocol": "tcp", "ports": ["-5"]}, "ports[0]", "is not a port"),
        (
            {"protocol": "tcp", "ports": ["80-90", "443", "85-100"]},
            "ports[2]",
            "overlaps 80-90 of the same rule; write",
        ),
        ({"protocol": "tcp", "ports": ["80", "80"]}, "ports[1]", "80 overlaps 80 of the same rule; write 80"),
        ({"ports": ["80"]}, "ports", "any has no ports; say protocol tcp, udp or sctp"),
        ({"protocol": "icmp", "ports": ["80"]}, "ports", "icmp has no ports"),
        ({"protocol": "tcp", "ports": [str(n) for n in range(1, 67, 2)]}, "ports", "at most 32 ranges"),
        ({"protocol": "tcp", "icmp_type": 8}, "icmp_type", "is for protocol icmp or icmpv6, not for tcp"),
        ({"protocol": "icmp", "icmp_type": 256}, "icmp_type", "256 is not within 0…255"),
        ({"protocol": "icmp", "icmp_code": 0}, "icmp_code", "needs icmp_type"),
        ({"remote_cidr": "10.0.0.1/8"}, "remote_cidr", "did you mean 10.0.0.0/8?"),
        ({"remote_cidr": "10.0.0.1"}, "remote_cidr", "has no length; did you mean 10.0.0.1/32?"),
        ({"remote_cidr": "x"}, "remote_cidr", "is not a prefix"),
        ({"protocol": "icmp", "remote_cidr": "fd00::/64"}, "remote_cidr", "is IPv6, and icmp is of IPv4 alone"),
        ({"protocol": "icmpv6", "remote_cidr": "0.0.0.0/0"}, "remote_cidr", "is IPv4, and icmpv6 is of IPv6 alone"),
        ({"remote_cidr": "::/0", "remote_group": OWN}, "remote_group", "remote_cidr or remote_group; write two rules"),
        ({"remote_group": "web"}, "remote_group", "is not a name like tenants/TENANT/securityGroups/GROUP"),
        ({"color": "Blue"}, "color", "is not a color"),
        ({"color": "base"}, "color", "base is no color"),
        ({"description": "\x00"}, "description", "no control characters"),
    ],
)
def test_a_bad_rule_names_its_field(rule: dict[str, Any], field: str, text: str) -> None:
    found = problems(group({"protocol": "udp"}, rule))
    assert [path for path, _ in found] == [f"ingress[1].{field}"], found
    assert text in found[0][1]


def test_all_that_is_wrong_is_told_at_once() -> None:
    message = group({"protocol": "x"}, {"ports": ["1"]}, mode=7, on_change=9)
    assert [field for field, _ in problems(message)] == ["mode", "on_change", "ingress[0].protocol", "ingress[1].ports"]


def test_a_thousand_rules_and_one() -> None:
    rules: list[dict[str, Any]] = [{"protocol": "tcp", "ports": [str(port)]} for port in range(1, 1001)]
    assert problems(group(*rules)) == []
    ((field, text),) = problems(group(*rules[:700], egress=[security_pb2.SecurityRule(**r) for r in rules[:301]]))[:1]
    assert field == "ingress"
    assert text == "1001 rules are more than 1000: share them out among several groups; a port may be in several"


def test_the_same_rule_twice() -> None:
    message = group(
        {"protocol": "TCP", "ports": ["80", "22"]}, {"protocol": "6", "ports": ["22", "80"], "description": "again"}
    )
    assert problems(message) == [("ingress[1]", "is the same rule as ingress[0]: tcp 22,80 from anyone")]
    both = group({"protocol": "tcp"}, egress=[security_pb2.SecurityRule(protocol="tcp")])
    assert problems(both) == []


def test_too_many_other_groups() -> None:
    rules = [{"remote_group": f"tenants/acme/securityGroups/g{n}"} for n in range(65)]
    ((field, text),) = problems(group(*rules))
    assert field == "ingress" and "65 other groups, more than 64" in text
    assert problems(group(*rules[:64], {"remote_group": OWN})) == []


def test_canonical_form() -> None:
    message = group(
        {"protocol": "6", "ports": ["443", "22", "8000 - 8099"], "remote_cidr": "FD00::/64"},
        {"protocol": " any "},
        {"protocol": "47", "enabled": False},
    )
    assert problems(message) == []
    first, second, third = message.ingress
    assert (first.protocol, list(first.ports), first.remote_cidr) == ("tcp", ["22", "443", "8000-8099"], "fd00::/64")
    assert first.enabled and second.enabled and not third.enabled
    assert (second.protocol, third.protocol) == ("any", "47")


def test_what_a_group_means() -> None:
    message = group(
        {"protocol": "tcp", "ports": ["80"], "remote_group": OWN, "color": "blue"},
        {"protocol": "udp", "enabled": False},
        {"protocol": "icmp", "icmp_type": 8, "icmp_code": 0, "remote_cidr": "0.0.0.0/0"},
        on_change=security_pb2.ON_CHANGE_CUT,
        mode=security_pb2.POLICY_MODE_SHADOW,
    )
    assert problems(message) == []
    spec = group_of("tenants/acme", message)
    assert (spec.mode, spec.on_change) == (Mode.SHADOW, OnChange.CUT)
    assert [rule.index for rule in spec.rules] == [0, 2]  # what is disabled is not in force
    assert [in_words(rule) for rule in spec.rules] == [
        f"tcp 80 from {OWN} in blue",
        "icmp type 8 code 0 from 0.0.0.0/0",
    ]


def test_what_is_not_understood_closes() -> None:
    """Fields and values of a newer controller: such a rule stays, and lets nothing through."""
    rule = security_pb2.SecurityRule(protocol="tcp", enabled=True)
    rule.MergeFromString(b"\xa2\x06\x03abc")  # field 100
    tier = security_pb2.PolicyTier.FromString(b"\x6a\x02\x50\x09\x6a\x02\x50\x01")  # ingress: actions 9 and 1
    (of_group,) = group_of("tenants/acme", security_pb2.SecurityGroup(ingress=[rule])).rules
    first, second = tier_of(tier, ()).rules
    assert (of_group.action, of_group.problem) == (Action.ALLOW, "it has a field that this controller does not know")
    assert (first.action, first.problem) == (Action.DENY, "action 9 is not known")
    assert second == RuleSpec(1, Direction.INGRESS, Action.ALLOW)
    assert "allows nothing" in in_words(of_group) and "denies everything" in in_words(first)


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        ({}, "position", "ABOVE the tenants' groups, or BELOW"),
        ({"position": 5}, "position", "is not ABOVE or BELOW"),
        ({"position": 1, "priority": 1001}, "priority", "1001 is not within 0…1000"),
        ({"position": 1, "tenant_selector": {"a b": "c"}}, "tenant_selector", "key 'a b'"),
        ({"position": 1, "egress": [{}]}, "egress[0].action", "is missing: ALLOW, DENY or PASS"),
        ({"position": 1, "egress": [{"action": 9}]}, "egress[0].action", "9 is not ALLOW, DENY or PASS"),
        (
            {"position": 1, "ingress": [{"action": 1, "remote_group": OWN}]}, "ingress[0].remote_group",
            "is not the last part of a group's name",
        ),
    ],
)  # fmt: skip
def test_a_bad_tier(body: dict[str, Any], field: str, text: str) -> None:
    message, found = security_pb2.PolicyTier(**body), Violations()
    check.tier_fields(message, found)
    check.tier_shape(message, found)
    assert [v.field for v in found.found] == [field]
    assert text in found.found[0].text


def test_groups_of_a_port() -> None:
    port, found = port_pb2.Port(security_groups=["web", OWN, OWN]), Violations("port")
    check.port_groups(port, found)
    assert [v.field for v in found.found] == ["port.security_groups[0]", "port.security_groups[2]"]
    many, found = port_pb2.Port(security_groups=[OWN] * 17), Violations()
    check.port_groups(many, found)
    assert [v.text[:10] for v in found.found] == ["at most 16"]
