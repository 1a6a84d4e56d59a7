"""Security groups and policy tiers from their messages, and rules in words.

A rule that this build does not understand is not an error of the whole object: that would take rules away, and the ones
that deny among them. It stays, with a problem, and closes.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any

from google.protobuf.unknown_fields import UnknownFieldSet

from controller.rows_policy import GroupSpec, RuleSpec, TierSpec
from tealnet.core.rows.security import ICMP, ICMPV6, SCTP, TCP, UDP, Action, Direction, Mode, OnChange, Position
from tealnet.v1 import security_pb2

PROTOCOLS = {"icmp": ICMP, "tcp": TCP, "udp": UDP, "icmpv6": ICMPV6, "sctp": SCTP}
_NAMES = {number: name for name, number in PROTOCOLS.items()}
ANY = "any"

_MODES = {
    security_pb2.POLICY_MODE_UNSPECIFIED: Mode.ENFORCE,
    security_pb2.POLICY_MODE_ENFORCE: Mode.ENFORCE,
    security_pb2.POLICY_MODE_SHADOW: Mode.SHADOW,
}
_ON_CHANGE = {
    security_pb2.ON_CHANGE_UNSPECIFIED: OnChange.KEEP,
    security_pb2.ON_CHANGE_KEEP: OnChange.KEEP,
    security_pb2.ON_CHANGE_REEVALUATE: OnChange.REEVALUATE,
    security_pb2.ON_CHANGE_CUT: OnChange.CUT,
}
_ACTIONS = {
    security_pb2.RULE_ACTION_ALLOW: Action.ALLOW,
    security_pb2.RULE_ACTION_DENY: Action.DENY,
    security_pb2.RULE_ACTION_PASS: Action.PASS,
}
_POSITIONS = {
    security_pb2.PolicyTier.POSITION_ABOVE: Position.ABOVE,
    security_pb2.PolicyTier.POSITION_BELOW: Position.BELOW,
}


def group_of(tenant: str, message: security_pb2.SecurityGroup) -> GroupSpec:
    """What a group means. What only a newer build knows is taken in the strictest sense."""
    return GroupSpec(
        tenant=tenant,
        rules=_rules(message),
        mode=_MODES.get(message.mode, Mode.ENFORCE),
        on_change=_ON_CHANGE.get(message.on_change, OnChange.CUT),
    )


def tier_of(message: security_pb2.PolicyTier, selector: Iterable[tuple[str, str]]) -> TierSpec:
    """What a tier means."""
    return TierSpec(
        position=_POSITIONS.get(message.position, Position.ABOVE),
        priority=message.priority,
        selector=tuple(selector),
        rules=_rules(message),
        mode=_MODES.get(message.mode, Mode.ENFORCE),
        on_change=_ON_CHANGE.get(message.on_change, OnChange.CUT),
    )


def _rules(message: Any) -> tuple[RuleSpec, ...]:
    lists = ((Direction.INGRESS, message.ingress), (Direction.EGRESS, message.egress))
    return tuple(
        rule_of(index, direction, rule)
        for direction, rules in lists
        for index, rule in enumerate(rules)
        if rule.enabled or not rule.HasField("enabled")
    )


def rule_of(index: int, direction: Direction, rule: Any) -> RuleSpec:
    """One rule of a group or tier."""
    has_action = "action" in rule.DESCRIPTOR.fields_by_name
    try:
        if len(UnknownFieldSet(rule)):
            raise ValueError("it has a field that this controller does not know")
        if has_action and rule.action not in _ACTIONS:
            raise ValueError(f"action {rule.action} is not known")
        return RuleSpec(
            index=index,
            direction=direction,
            action=_ACTIONS[rule.action] if has_action else Action.ALLOW,
            protocol=protocol_number(rule.protocol),
            ports=tuple(sorted(port_range(text) for text in rule.ports)),
            icmp=_icmp(rule),
            remote=ip_network(rule.remote_cidr) if rule.remote_cidr else None,
            group=rule.remote_group,
            color=rule.color,
        )
    except ValueError as error:
        return RuleSpec(index, direction, Action.DENY if has_action else Action.ALLOW, problem=str(error))


def _icmp(rule: Any) -> tuple[int, int | None] | None:
    if not rule.HasField("icmp_type"):
        return None
    return rule.icmp_type, rule.icmp_code if rule.HasField("icmp_code") else None


def protocol_number(text: str) -> int | None:
    """tcp → 6; "" and any → None. Raises ValueError."""
    word = text.strip().lower()
    if word in ("", ANY):
        return None
    if word in PROTOCOLS:
        return PROTOCOLS[word]
    if not word.isdecimal() or not word.isascii() or not 1 <= int(word) <= 255:
        known = ", ".join((ANY, *sorted(PROTOCOLS)))
        raise ValueError(f"{text[:40]!r} is not a protocol: one of {known}, or a number within 1…255")
    return int(word)


def protocol_name(number: int | None) -> str:
    """6 → tcp, None → any, 47 → 47."""
    return ANY if number is None else _NAMES.get(number, str(number))


def port_range(text: str) -> tuple[int, int]:
    """ "80" or "8000-8099", both ends included. Raises ValueError."""
    first, dash, last = (part.strip() for part in text.partition("-"))
    if not _is_port(first) or (dash and not _is_port(last)):
        raise ValueError(f"{text[:40]!r} is not a port like 443 or a range like 8000-8099, within 1…65535")
    low, high = int(first), int(last or first)
    if low > high:
        raise ValueError(f"{text[:40]!r} ends before it begins")
    return low, high


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= 65535


def port_text(ports: tuple[int, int]) -> str:
    """The canonical form of a range."""
    first, last = ports
    return str(first) if first == last else f"{first}-{last}"


def in_words(rule: RuleSpec) -> str:
    """tcp 80,8000-8099 from 10.0.0.0/8"""
    if rule.problem:
        effect = "denies everything" if rule.action is Action.DENY else "allows nothing"
        return f"not understood ({rule.problem}): {effect}"
    words = [protocol_name(rule.protocol)]
    if rule.ports:
        words.append(",".join(map(port_text, rule.ports)))
    if rule.icmp:
        words.append(f"type {rule.icmp[0]}" + (f" code {rule.icmp[1]}" if rule.icmp[1] is not None else ""))
    other = str(rule.remote) if rule.remote else rule.group or "anyone"
    words.append(f"{'from' if rule.direction is Direction.INGRESS else 'to'} {other}")
    if rule.color:
        words.append(f"in {rule.color}")
    return " ".join(words)
