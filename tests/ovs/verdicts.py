"""What rules mean, said once more and in another way than the compiler: rows and a connection in, a word out."""

from __future__ import annotations

from dataclasses import dataclass

from tealnet.core.rows.security import Action, Direction, Mode, Position, Rule, Rules
from tests.ovs.datagrams import Address


@dataclass(frozen=True, slots=True)
class Connection:
    """What opens a connection. `port`: of the target, or the ICMP code; `icmp_type` for ICMP."""

    source: Address
    target: Address
    protocol: int
    port: int = 0
    icmp_type: int = 0
    domain: int = 0
    color: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`rule`: ids of the rules that may have decided (0: none did); `shadow`: those of the first word in SHADOW."""

    passes: bool
    rule: frozenset[int]
    shadow: frozenset[int] = frozenset()


def matches(rule: Rule, connection: Connection, remote: int) -> bool:
    """Whether a rule speaks of a connection with that identity at the other end."""
    version = connection.source.version
    far = connection.source if rule.direction is Direction.INGRESS else connection.target
    if rule.remote is not None:
        known = remote in rule.remote.identities
        if not known and not any(prefix.version == version and far in prefix for prefix in rule.remote.prefixes):
            return False
    if rule.colors is not None and (connection.domain, connection.color) not in rule.colors:
        return False
    if rule.protocol == 0:
        return True
    if rule.protocol != connection.protocol or (rule.protocol, version) in ((1, 6), (58, 4)):
        return False
    if rule.icmp_type is not None and rule.icmp_type != connection.icmp_type:
        return False
    if rule.icmp_code is not None and rule.icmp_code != connection.port:
        return False
    return not rule.ports or any(first <= connection.port <= last for first, last in rule.ports)


def evaluate(rules: Rules | None, direction: Direction, connection: Connection, remote: int) -> Verdict:
    """The verdict of one end; `remote` is the identity of the other one."""
    if rules is None or any(direction in flaw.directions for flaw in rules.flaws):
        return Verdict(False, frozenset({0}))
    shadow: frozenset[int] = frozenset()
    skipped: Position | None = None  # by an ENFORCE PASS
    shadow_skipped: Position | None = None
    for tier in rules.tiers:
        if tier.position is skipped:
            continue
        said = [r for r in tier.rules if r.direction is direction and matches(r, connection, remote)]
        binding = [r for r in said if r.mode is Mode.ENFORCE]
        if binding:
            first = binding[0]
            if first.action is Action.PASS:
                skipped = tier.position
                continue
            deciders = binding if tier.position is Position.GROUPS else [first]
            return Verdict(first.action is Action.ALLOW, frozenset(r.id for r in deciders), shadow)
        dreaming = [r for r in said if r.mode is Mode.SHADOW]
        if dreaming and not shadow and tier.position is not shadow_skipped:
            if dreaming[0].action is Action.PASS:
                shadow_skipped = tier.position
            else:
                deciders = dreaming if tier.position is Position.GROUPS else [dreaming[0]]
                shadow = frozenset(r.id for r in deciders)
    if rules.fallback is Mode.ENFORCE:
        return Verdict(False, frozenset({0}), shadow)
    return Verdict(True, frozenset({0}), shadow or frozenset({0}))
