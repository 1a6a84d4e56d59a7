"""Rules as they travel on the stream: a rule that makes no sense is named, and harms nothing but its direction."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.parse import BadResource
from tealnet.core.rows.security import (
    Action,
    Direction,
    Mode,
    OnChange,
    Ports,
    Position,
    Remote,
    Rule,
    RuleColor,
    Rules,
    Tier,
)
from tealnet.core.rows.stream import decode

KEY = "rules/300"
ANY_V4 = pb.Prefix(address=bytes(4), length=0)


def rule(**changes: Any) -> pb.Rule:
    fields: dict[str, Any] = {
        "id": 1000,
        "name": "web/0",
        "direction": pb.RULE_DIRECTION_INGRESS,
        "action": pb.RULE_ACTION_ALLOW,
        "mode": pb.RULE_MODE_ENFORCE,
    }
    return pb.Rule(**(fields | changes))


def groups(*rules: pb.Rule) -> pb.RuleTier:
    return pb.RuleTier(position=pb.RULE_POSITION_GROUPS, rules=rules)


def rows(*tiers: pb.RuleTier, **changes: Any) -> Rules:
    fields: dict[str, Any] = {"fallback": pb.RULE_MODE_ENFORCE}
    row = decode(KEY, pb.Rules(tiers=tiers, **(fields | changes)).SerializeToString())
    assert isinstance(row, Rules)
    return row


def test_a_rule_becomes_its_row() -> None:
    remote = pb.RuleRemote(identities=[300, 301], prefixes=[ANY_V4])
    web = rule(
        protocol=6,
        ports=[pb.RulePorts(first=80, last=80), pb.RulePorts(first=8000, last=8099)],
        remote=remote,
        colors=pb.RuleColors(colors=[pb.RuleColor(domain=7, color=2)]),
    )
    ping = rule(id=1001, name="web/1", direction=pb.RULE_DIRECTION_EGRESS, protocol=1, icmp_type=8, icmp_code=0)
    assert rows(groups(web, ping), on_change=pb.RULE_ON_CHANGE_CUT) == Rules(
        identity=300,
        tiers=(
            Tier(
                Position.GROUPS,
                (
                    Rule(
                        1000, "web/0", Direction.INGRESS, Action.ALLOW, Mode.ENFORCE, 6,
                        (Ports(80, 80), Ports(8000, 8099)), None, None,
                        Remote((300, 301), (ip_network("0.0.0.0/0"),)), (RuleColor(7, 2),),
                    ),
                    Rule(
                        1001, "web/1", Direction.EGRESS, Action.ALLOW, Mode.ENFORCE, 1, (), 8, 0, None, None,
                    ),
                ),
            ),
        ),
        fallback=Mode.ENFORCE,
        on_change=OnChange.CUT,
        flaws=(),
    )  # fmt: skip


def test_nobody_is_not_anybody() -> None:
    (tier,) = rows(groups(rule(remote=pb.RuleRemote(), colors=pb.RuleColors()), rule(id=1001))).tiers
    nobody, anybody = tier.rules
    assert (nobody.remote, nobody.colors) == (Remote((), ()), ())
    assert (anybody.remote, anybody.colors) == (None, None)


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (rule(id=255), "rule id 255"),
        (rule(action=9), "unknown action: 9"),
        (rule(action=pb.RULE_ACTION_DENY), "groups only allow"),
        (rule(mode=0), "unknown mode: 0"),
        (rule(protocol=300), "protocol 300"),
        (rule(protocol=6, ports=[pb.RulePorts(first=90, last=80)]), "last port 80"),
        (rule(protocol=6, ports=[pb.RulePorts(first=1, last=65536)]), "last port 65536"),
        (rule(protocol=47, ports=[pb.RulePorts(first=1, last=2)]), "protocol 47 has no ports"),
        (rule(ports=[pb.RulePorts(first=1, last=2)]), "protocol 0 has no ports"),
        (rule(protocol=6, icmp_type=8), "protocol 6 has no ICMP type"),
        (rule(protocol=1, icmp_code=8), "without a type"),
        (rule(protocol=1, icmp_type=256), "ICMP type 256"),
        (rule(remote=pb.RuleRemote(identities=[0])), "identity 0"),
        (rule(remote=pb.RuleRemote(identities=[301, 300])), "not in order"),
        (rule(remote=pb.RuleRemote(prefixes=[pb.Prefix(address=b"\1\2\3\4", length=8)])), "host bits"),
        (rule(colors=pb.RuleColors(colors=[pb.RuleColor(domain=7, color=9)])), "color 9"),
    ],
)
def test_a_bad_rule_is_a_flaw_of_its_direction(bad: pb.Rule, text: str) -> None:
    bad.name = "web/bad"
    row = rows(groups(rule(), bad))
    assert [r.name for r in row.tiers[0].rules] == ["web/0"]
    (flaw,) = row.flaws
    assert flaw.directions == (Direction.INGRESS,)
    assert flaw.rule == "web/bad"
    assert text in flaw.text


def test_a_rule_of_no_known_direction_is_a_flaw_of_both() -> None:
    (flaw,) = rows(groups(rule(direction=7))).flaws
    assert flaw.directions == (Direction.INGRESS, Direction.EGRESS)


def test_two_rules_with_one_id_are_a_flaw_of_both_their_directions() -> None:
    (flaw,) = rows(groups(rule(), rule(name="db/0", direction=pb.RULE_DIRECTION_EGRESS))).flaws
    assert flaw.directions == (Direction.INGRESS, Direction.EGRESS)
    assert (flaw.rule, flaw.text) == ("db/0", "has the id of web/0: 1000")


@pytest.mark.parametrize(
    ("tiers", "changes", "text"),
    [
        ([pb.RuleTier()], {}, "unknown position: 0"),
        ([groups(), groups()], {}, "tiers are not in order"),
        ([groups(), pb.RuleTier(position=pb.RULE_POSITION_ABOVE)], {}, "tiers are not in order"),
        ([groups(rule(id=1001), rule())], {}, "rules of groups are not in order"),
        ([], {"fallback": 0}, "unknown fallback: 0"),
        ([], {"on_change": 9}, "unknown on_change: 9"),
    ],
)
def test_rules_that_make_no_sense_are_refused_whole(
    tiers: list[pb.RuleTier], changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(BadResource, match=text):
        rows(*tiers, **changes)


@pytest.mark.parametrize("key", ["rules/x", "rules/007", "rules/0", f"rules/{1 << 32}"])
def test_a_key_that_is_no_identity_is_refused(key: str) -> None:
    with pytest.raises(BadResource):
        decode(key, pb.Rules(fallback=pb.RULE_MODE_ENFORCE).SerializeToString())


@given(st.binary(max_size=300))
def test_any_bytes_are_rules_or_refused(body: bytes) -> None:
    try:
        row = decode(KEY, body)
    except BadResource:
        return
    assert isinstance(row, Rules)
