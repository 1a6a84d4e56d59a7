"""What rules say about a connection: order of positions, modes, what matches."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from controller.verdict import Connection, Say, judge, matches
from tealnet.core.rows.security import (
    Action,
    Direction,
    Flaw,
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

HTTP = Connection(
    protocol=6, version=4, port=80, icmp=(8, 0), identity=300, address=ip_address("10.0.0.5"), domain=7, color=0
)
ABOVE, GROUPS, BELOW = Position.ABOVE, Position.GROUPS, Position.BELOW


def rule(number: int, action: Action = Action.ALLOW, mode: Mode = Mode.ENFORCE, **fields: Any) -> Rule:
    plain = Rule(
        id=number, name=f"r{number}", direction=Direction.INGRESS, action=action, mode=mode, protocol=0, ports=(),
        icmp_type=None, icmp_code=None, remote=None, colors=None,
    )  # fmt: skip
    return replace(plain, **fields)


def rules(*tiers: tuple[Position, list[Rule]], fallback: Mode = Mode.ENFORCE, flaws: Any = ()) -> Rules:
    return Rules(300, tuple(Tier(p, tuple(r)) for p, r in tiers), fallback, OnChange.KEEP, flaws)


def asked(row: Rules | None, connection: Connection = HTTP) -> tuple[str, int, int]:
    """What it comes to, the rule that decided, the one in SHADOW mode that would have (0: none)."""
    verdict = judge(row, Direction.INGRESS, connection)
    return verdict.say.value, verdict.rule.id if verdict.rule else 0, verdict.shadow.id if verdict.shadow else 0


DENY, PASS, SHADOW = Action.DENY, Action.PASS, Mode.SHADOW


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (None, ("denied", 0, 0)),
        (rules(), ("denied", 0, 0)),
        (rules(fallback=SHADOW), ("shadow", 0, 0)),
        (rules((GROUPS, [rule(1)])), ("allowed", 1, 0)),
        (rules((ABOVE, [rule(1, DENY)]), (GROUPS, [rule(2)])), ("denied", 1, 0)),
        (rules((ABOVE, [rule(1, PASS), rule(3, DENY)]), (ABOVE, [rule(4, DENY)]), (GROUPS, [rule(2)])),
         ("allowed", 2, 0)),
        (rules((ABOVE, [rule(1, PASS)]), (BELOW, [rule(2)])), ("allowed", 2, 0)),
        (rules((BELOW, [rule(1, PASS), rule(2)])), ("denied", 0, 0)),
        (rules((BELOW, [rule(1, DENY), rule(2)])), ("denied", 1, 0)),
        (rules((ABOVE, [rule(1, DENY, SHADOW)]), (GROUPS, [rule(2)])), ("allowed", 2, 1)),
        (rules((GROUPS, [rule(1, mode=SHADOW), rule(2)])), ("allowed", 2, 0)),
        (rules((GROUPS, [rule(1, mode=SHADOW)])), ("denied", 0, 1)),
        (rules((GROUPS, [rule(1, mode=SHADOW)]), fallback=SHADOW), ("shadow", 0, 1)),
        (rules((ABOVE, [rule(1, PASS, SHADOW)]), (GROUPS, [rule(2, mode=SHADOW)])), ("denied", 0, 2)),
        (rules((ABOVE, [rule(1, direction=Direction.EGRESS, action=DENY)]), (GROUPS, [rule(2)])), ("allowed", 2, 0)),
        (rules((GROUPS, [rule(1)]), flaws=(Flaw((Direction.EGRESS,), "x", "y"),)), ("allowed", 1, 0)),
        (rules((GROUPS, [rule(1)]), flaws=(Flaw((Direction.INGRESS,), "x", "y"),)), ("denied", 0, 0)),
    ],
)  # fmt: skip
def test_the_first_word_counts(row: Rules | None, expected: tuple[str, int, int]) -> None:
    assert asked(row) == expected


def test_what_is_wrong_is_said() -> None:
    flawed = rules(flaws=(Flaw((Direction.INGRESS,), "web/ingress[0]", "port 0"),))
    assert "web/ingress[0] port 0" in judge(flawed, Direction.INGRESS, HTTP).text
    assert "no rules for this port" in judge(None, Direction.INGRESS, HTTP).text
    assert judge(rules(), Direction.INGRESS, HTTP).say is Say.DENIED


V6 = replace(HTTP, version=6, address=ip_address("fd00::5"))


@pytest.mark.parametrize(
    ("fields", "connection", "expected"),
    [
        ({"protocol": 17}, HTTP, False),
        ({"protocol": 6, "ports": (Ports(443, 443), Ports(79, 81))}, HTTP, True),
        ({"protocol": 6, "ports": (Ports(81, 90),)}, HTTP, False),
        ({"remote": Remote((299, 300), ())}, HTTP, True),
        ({"remote": Remote((), ())}, HTTP, False),
        ({"remote": Remote((299,), (ip_network("10.0.0.0/24"),))}, HTTP, True),
        ({"remote": Remote((), (ip_network("10.0.1.0/24"),))}, HTTP, False),
        ({"remote": Remote((), (ip_network("0.0.0.0/0"),))}, V6, False),
        ({"remote": Remote((), (ip_network("fd00::/64"),))}, V6, True),
        ({"colors": ()}, HTTP, False),
        ({"colors": (RuleColor(7, 1),)}, HTTP, False),
        ({"colors": (RuleColor(7, 1),)}, replace(HTTP, color=1), True),
        ({"colors": (RuleColor(8, 1),)}, replace(HTTP, color=1), False),
        ({"protocol": 1}, replace(HTTP, protocol=1, port=0), True),
        ({"protocol": 1, "icmp_type": 8}, replace(HTTP, protocol=1, port=0), True),
        ({"protocol": 1, "icmp_type": 8, "icmp_code": 1}, replace(HTTP, protocol=1, port=0), False),
        ({"protocol": 58}, replace(HTTP, protocol=58, port=0), False),
        ({"protocol": 58}, replace(V6, protocol=58, port=0), True),
    ],
)
def test_what_matches(fields: dict[str, Any], connection: Connection, expected: bool) -> None:
    assert matches(rule(1, **fields), connection) is expected
