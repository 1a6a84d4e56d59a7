"""What an identity's rules say about a new connection: the same rows that hosts are sent, walked by hand. Pure.

The order is that of agent.proto: tiers ABOVE, groups, tiers BELOW, the fallback. Rules in SHADOW mode decide nothing;
the first one that would have is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from controller.rows import Address
from tealnet.core.rows.security import ICMP, ICMPV6, Action, Direction, Mode, Position, Rule, Rules


class Say(Enum):
    """What comes of it."""

    ALLOWED = "allowed"
    DENIED = "denied"
    SHADOW = "shadow"
    """Nothing allows it, but all groups of the port are in SHADOW mode: it passes."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A new connection, as the port sees it whose rules are asked: `identity` and `address` are the other end's."""

    protocol: int
    version: int
    port: int  # of the target; 0 where there are none
    icmp: tuple[int, int]
    identity: int
    address: Address
    domain: int
    color: int  # 0: none


@dataclass(frozen=True, slots=True)
class Verdict:
    """`rule` decided (None: no rule did); `shadow` would have; `text` says what is wrong where something is."""

    say: Say
    rule: Rule | None = None
    shadow: Rule | None = None
    text: str = ""


def judge(rules: Rules | None, direction: Direction, connection: Connection) -> Verdict:
    """What rules say in one direction; None: the host has none, which closes."""
    if rules is None:
        return Verdict(Say.DENIED, text="there are no rules for this port: it is closed")
    for flaw in rules.flaws:
        if direction in flaw.directions:
            text = f"a rule makes no sense, which closes the direction: {flaw.rule} {flaw.text}"
            return Verdict(Say.DENIED, text=text)
    shadow: Rule | None = None
    for position in Position:
        matching = [
            rule
            for tier in rules.tiers
            if tier.position is position
            for rule in tier.rules
            if rule.direction is direction and matches(rule, connection)
        ]
        if position is Position.GROUPS:  # without an order: what enforces is asked first
            matching.sort(key=lambda rule: rule.mode is Mode.SHADOW)
        decided, seen = _walk(matching)
        if shadow is None or shadow.action is Action.PASS:
            shadow = seen or shadow
        if decided and decided.action is not Action.PASS:
            return Verdict(Say.ALLOWED if decided.action is Action.ALLOW else Say.DENIED, decided, shadow)
    return Verdict(Say.SHADOW if rules.fallback is Mode.SHADOW else Say.DENIED, None, shadow)


def _walk(matching: Iterable[Rule]) -> tuple[Rule | None, Rule | None]:
    """The rule that decides in one position, and the first before it that only would have."""
    shadow: Rule | None = None
    for rule in matching:
        if rule.mode is Mode.ENFORCE:
            return rule, shadow
        shadow = shadow or rule
    return None, shadow


def matches(rule: Rule, connection: Connection) -> bool:
    """Whether a rule is about a connection."""
    if rule.protocol and rule.protocol != connection.protocol:
        return False
    if (rule.protocol, connection.version) in ((ICMP, 6), (ICMPV6, 4)):
        return False
    if rule.ports and not any(ports.first <= connection.port <= ports.last for ports in rule.ports):
        return False
    for wanted, found in zip((rule.icmp_type, rule.icmp_code), connection.icmp, strict=True):
        if wanted is not None and wanted != found:
            return False
    if rule.colors is not None and (connection.domain, connection.color) not in rule.colors:
        return False
    if rule.remote is None or connection.identity in rule.remote.identities:
        return True
    version = connection.address.version
    return any(prefix.version == version and connection.address in prefix for prefix in rule.remote.prefixes)
