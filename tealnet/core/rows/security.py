"""What hosts are told of security: the rules that guard ports of one identity.

A rule that makes no sense harms only its own direction: it is named in `flaws`, and who compiles the rules must close
what it stands for. Everything else that makes no sense is a BadResource: then there are no rules, which closes both.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import NamedTuple, TypeVar

from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows import parse
from tealnet.core.rows.parse import BadResource, Prefix, within

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

FIRST_RULE_ID = 256  # smaller ones are not issued
ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
WITH_PORTS = (TCP, UDP, SCTP)
_UINT32 = 2**32 - 1


class Policy(Enum):
    """Whether rules guard a port."""

    OFF = "OFF"
    ENFORCE = "ENFORCE"


class Mode(Enum):
    """Whether rules decide, or only count what they would have decided."""

    ENFORCE = "ENFORCE"
    SHADOW = "SHADOW"


class OnChange(Enum):
    """What becomes of open connections when the rule goes that has let them in. The strictest is the last."""

    KEEP = "KEEP"
    REEVALUATE = "REEVALUATE"
    CUT = "CUT"


class Direction(Enum):
    """To the port, or from it."""

    INGRESS = "INGRESS"
    EGRESS = "EGRESS"


class Action(Enum):
    """What a rule says. PASS: on with the next position."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    PASS = "PASS"


class Position(Enum):
    """Where a tier stands, in the order of asking."""

    ABOVE = "ABOVE"
    GROUPS = "GROUPS"
    BELOW = "BELOW"


class Ports(NamedTuple):
    """A range of ports, both ends included."""

    first: int
    last: int


class RuleColor(NamedTuple):
    """A color of a routing domain."""

    domain: int
    color: int


@dataclass(frozen=True, slots=True)
class Remote:
    """The other end: one of these identities, or an address in one of these prefixes. Nothing of both: nobody."""

    identities: tuple[int, ...]  # ascending
    prefixes: tuple[Prefix, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. None of what it may say = any; () = nothing, so it never matches."""

    id: int
    name: str
    direction: Direction
    action: Action
    mode: Mode
    protocol: int  # 0 = any
    ports: tuple[Ports, ...]  # of the target; () = any
    icmp_type: int | None
    icmp_code: int | None
    remote: Remote | None
    colors: tuple[RuleColor, ...] | None


@dataclass(frozen=True, slots=True)
class Tier:
    """A policy tier: the first rule that matches counts. GROUPS: all rules allow, in no order."""

    position: Position
    rules: tuple[Rule, ...]


class Flaw(NamedTuple):
    """A rule that makes no sense, and the directions that it makes unsafe."""

    directions: tuple[Direction, ...]
    rule: str
    text: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What guards ports of one identity; without any rules they are closed."""

    identity: int
    tiers: tuple[Tier, ...]
    fallback: Mode
    on_change: OnChange
    flaws: tuple[Flaw, ...]


def rules_key(identity: int) -> str:
    """Resource key of the rules of an identity."""
    return f"rules/{identity}"


_POLICY = {pb.PORT_POLICY_UNSPECIFIED: Policy.OFF, pb.PORT_POLICY_OFF: Policy.OFF,
           pb.PORT_POLICY_ENFORCE: Policy.ENFORCE}  # fmt: skip
_MODE = {pb.RULE_MODE_ENFORCE: Mode.ENFORCE, pb.RULE_MODE_SHADOW: Mode.SHADOW}
_ON_CHANGE = {
    pb.RULE_ON_CHANGE_UNSPECIFIED: OnChange.KEEP,
    pb.RULE_ON_CHANGE_KEEP: OnChange.KEEP,
    pb.RULE_ON_CHANGE_REEVALUATE: OnChange.REEVALUATE,
    pb.RULE_ON_CHANGE_CUT: OnChange.CUT,
}
_POSITION = {
    pb.RULE_POSITION_ABOVE: Position.ABOVE,
    pb.RULE_POSITION_GROUPS: Position.GROUPS,
    pb.RULE_POSITION_BELOW: Position.BELOW,
}
_ORDER = list(Position)
_DIRECTION = {pb.RULE_DIRECTION_INGRESS: Direction.INGRESS, pb.RULE_DIRECTION_EGRESS: Direction.EGRESS}
_ACTION = {pb.RULE_ACTION_ALLOW: Action.ALLOW, pb.RULE_ACTION_DENY: Action.DENY, pb.RULE_ACTION_PASS: Action.PASS}


def known(table: Mapping[K, V], value: K, what: str) -> V:
    """The meaning of an enum's value. Raises BadResource for one of a later version."""
    try:
        return table[value]
    except KeyError:
        raise BadResource(f"unknown {what}: {value}") from None


def parse_policy(value: pb.PortPolicy) -> Policy:
    """Raises BadResource."""
    return known(_POLICY, value, "policy")


def parse_rules(ident: str, body: bytes) -> Rules:
    """Raises BadResource, ValueError, DecodeError; not for what is wrong with one rule, see `Rules.flaws`."""
    message = pb.Rules.FromString(body)
    if not ident.isdecimal() or str(int(ident)) != ident:
        raise BadResource(f"not an identity: {ident}")
    flaws: list[Flaw] = []
    tiers = tuple(_tier(tier, flaws) for tier in message.tiers)
    places = [_ORDER.index(tier.position) for tier in tiers]
    if places != sorted(places) or places.count(_ORDER.index(Position.GROUPS)) > 1:
        raise BadResource("tiers are not in order")
    _unique((rule for tier in tiers for rule in tier.rules), flaws)
    return Rules(
        identity=within(int(ident), 1, _UINT32, "identity"),
        tiers=tiers,
        fallback=known(_MODE, message.fallback, "fallback"),
        on_change=known(_ON_CHANGE, message.on_change, "on_change"),
        flaws=tuple(flaws),
    )


def _unique(rules: Iterable[Rule], flaws: list[Flaw]) -> None:
    seen: dict[int, Rule] = {}
    for rule in rules:
        first = seen.setdefault(rule.id, rule)
        if first is not rule:
            directions = tuple(dict.fromkeys((first.direction, rule.direction)))
            flaws.append(Flaw(directions, rule.name, f"has the id of {first.name}: {rule.id}"))


def _tier(message: pb.RuleTier, flaws: list[Flaw]) -> Tier:
    position = known(_POSITION, message.position, "position")
    rules: list[Rule] = []
    for raw in message.rules:
        try:
            rule = _rule(raw)
            if position is Position.GROUPS and rule.action is not Action.ALLOW:
                raise BadResource(f"groups only allow: {rule.action.value}")
            if position is not Position.GROUPS and rules and rule.mode is not rules[0].mode:
                raise BadResource("not in the mode of its tier")
        except ValueError as error:
            one = _DIRECTION.get(raw.direction)
            flaws.append(Flaw((one,) if one else tuple(Direction), raw.name or str(raw.id), str(error)))
        else:
            rules.append(rule)
    if position is Position.GROUPS and any(a.id > b.id for a, b in pairwise(rules)):
        raise BadResource("rules of groups are not in order")
    return Tier(position, tuple(rules))


def _rule(message: pb.Rule) -> Rule:
    protocol = within(message.protocol, 0, 255, "protocol")
    ports = tuple(Ports(p.first, within(p.last, p.first, 65535, "last port")) for p in message.ports)
    if ports and protocol not in WITH_PORTS:
        raise BadResource(f"protocol {protocol} has no ports")
    icmp_type = within(message.icmp_type, 0, 255, "ICMP type") if message.HasField("icmp_type") else None
    icmp_code = within(message.icmp_code, 0, 255, "ICMP code") if message.HasField("icmp_code") else None
    if icmp_type is not None and protocol not in (ICMP, ICMPV6):
        raise BadResource(f"protocol {protocol} has no ICMP type")
    if icmp_code is not None and icmp_type is None:
        raise BadResource("an ICMP code without a type")
    return Rule(
        id=within(message.id, FIRST_RULE_ID, _UINT32, "rule id"),
        name=message.name,
        direction=known(_DIRECTION, message.direction, "direction"),
        action=known(_ACTION, message.action, "action"),
        mode=known(_MODE, message.mode, "mode"),
        protocol=protocol,
        ports=ports,
        icmp_type=icmp_type,
        icmp_code=icmp_code,
        remote=_remote(message.remote) if message.HasField("remote") else None,
        colors=_colors(message.colors) if message.HasField("colors") else None,
    )


def _remote(message: pb.RuleRemote) -> Remote:
    identities = tuple(within(number, 1, _UINT32, "identity") for number in message.identities)
    if any(a >= b for a, b in pairwise(identities)):
        raise BadResource("identities are not in order")
    return Remote(identities, tuple(parse.prefix(prefix) for prefix in message.prefixes))


def _colors(message: pb.RuleColors) -> tuple[RuleColor, ...]:
    return tuple(
        RuleColor(within(c.domain, 1, _UINT32, "domain"), within(c.color, 1, 8, "color")) for c in message.colors
    )
