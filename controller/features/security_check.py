"""Security groups and policy tiers: what is wrong with a request. Pure.

Each field by itself, put into canonical form (so that equal rules are equal texts), and the fields of a rule against
each other. What a rule names is looked up by the writers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from controller import fields
from controller.decode_policy import in_words, port_range, port_text, protocol_name, protocol_number, rule_of
from controller.fields import Violations
from controller.names import default_group, kind_of, tenant_of
from tealnet.core.rows.security import ICMP, ICMPV6, WITH_PORTS, Direction
from tealnet.v1 import port_pb2, security_pb2

MOST_RULES = 1000
MOST_RANGES = 32  # of one rule
MOST_OTHERS = 64  # groups that the rules of one name
MOST_GROUPS = 16  # of a port
MOST_PRIORITY = 1000
_RESERVED = "base"  # the segment of a network without colors
_DIRECTIONS = tuple(Direction)


# ---- ports


def port_groups(message: port_pb2.Port, found: Violations) -> None:
    """The groups that a port names."""
    if len(message.security_groups) > MOST_GROUPS:
        found.add("security_groups", f"at most {MOST_GROUPS}; put rules that belong together into one group")
        return
    for i, name in enumerate(message.security_groups):
        if kind_of(name) != "group":
            found.add(f"security_groups[{i}]", f"{name[:200]!r} is not a name like tenants/TENANT/securityGroups/GROUP")
    fields.distinct(message.security_groups, "security_groups", found)


def port_groups_default(message: port_pb2.Port, name: str) -> None:
    """Write down what is meant by none."""
    if not message.security_groups:
        message.security_groups.append(default_group(tenant_of(name)))


# ---- groups


def group_fields(message: security_pb2.SecurityGroup, found: Violations) -> None:
    """All fields of a group; the message is put into canonical form."""
    fields.common(message, found)
    _modes(message, found)
    _rules(message, found, of_rule=_group_rule)


def _group_rule(rule: security_pb2.SecurityRule, field: str, found: Violations) -> None:
    if rule.remote_group and kind_of(rule.remote_group) != "group":
        text = f"{rule.remote_group[:200]!r} is not a name like tenants/TENANT/securityGroups/GROUP"
        found.add(f"{field}.remote_group", text)


def group_shape(message: security_pb2.SecurityGroup, found: Violations) -> None:
    """All rules together."""
    _size(message, found)
    others = {rule.remote_group for _, _, rule in rules_of(message)} - {"", message.name}
    if len(others) > MOST_OTHERS:
        text = f"the rules name {len(others)} other groups, more than {MOST_OTHERS}: give the workloads one in common"
        found.add("ingress", text)


def default_rules(message: security_pb2.SecurityGroup) -> None:
    """What the group of ports that name none begins with: everything out, and in what comes from itself."""
    message.mode, message.on_change = security_pb2.POLICY_MODE_ENFORCE, security_pb2.ON_CHANGE_KEEP
    message.ingress.add(enabled=True, protocol=protocol_name(None), remote_group=message.name)
    message.egress.add(enabled=True, protocol=protocol_name(None))


# ---- tiers


def tier_fields(message: security_pb2.PolicyTier, found: Violations) -> None:
    """All fields of a tier; the message is put into canonical form."""
    fields.common(message, found)
    _modes(message, found)
    if message.position not in security_pb2.PolicyTier.Position.values():
        found.add("position", f"{message.position} is not ABOVE or BELOW")
    if message.priority > MOST_PRIORITY:
        found.add("priority", f"{message.priority} is not within 0…{MOST_PRIORITY}; 1 is asked before 2")
    fields.labels(message.tenant_selector, "tenant_selector", found)
    _rules(message, found, of_rule=_tier_rule)


def tier_shape(message: security_pb2.PolicyTier, found: Violations) -> None:
    """What a tier must say."""
    _size(message, found)
    if not message.position:
        found.add("position", "is missing: ABOVE the tenants' groups, or BELOW them")


_ACTIONS = (security_pb2.RULE_ACTION_ALLOW, security_pb2.RULE_ACTION_DENY, security_pb2.RULE_ACTION_PASS)


def _tier_rule(rule: security_pb2.TierRule, field: str, found: Violations) -> None:
    if not rule.action:
        found.add(f"{field}.action", "is missing: ALLOW, DENY or PASS")
    elif rule.action not in _ACTIONS:
        found.add(f"{field}.action", f"{rule.action} is not ALLOW, DENY or PASS")
    if rule.remote_group and not fields.NAME.fullmatch(rule.remote_group):
        text = f"{rule.remote_group[:200]!r} is not the last part of a group's name, which is looked up in each tenant"
        found.add(f"{field}.remote_group", text)


# ---- both


def _modes(message: Any, found: Violations) -> None:
    if message.mode not in security_pb2.PolicyMode.values():
        found.add("mode", f"{message.mode} is not ENFORCE or SHADOW")
    if message.on_change not in security_pb2.OnChange.values():
        found.add("on_change", f"{message.on_change} is not KEEP, REEVALUATE or CUT")


def mode_defaults(message: Any) -> None:
    """Write down what is meant where the request says nothing."""
    message.mode = message.mode or security_pb2.POLICY_MODE_ENFORCE
    message.on_change = message.on_change or security_pb2.ON_CHANGE_KEEP


def rules_of(message: Any) -> Iterator[tuple[str, Direction, Any]]:
    """Every rule of a group or tier, with its field path and direction."""
    for direction in _DIRECTIONS:
        list_of = direction.value.lower()
        for i, rule in enumerate(getattr(message, list_of)):
            yield f"{list_of}[{i}]", direction, rule


def _rules(message: Any, found: Violations, *, of_rule: Callable[[Any, str, Violations], None]) -> None:
    if _size(message, found) > MOST_RULES:
        return
    seen: dict[bytes, str] = {}
    for field, direction, rule in rules_of(message):
        before = len(found.found)
        _rule(rule, field, found)
        of_rule(rule, field, found)
        if len(found.found) > before:
            continue
        meaning = direction.value.encode() + _meaning(rule)
        if meaning in seen:
            found.add(field, f"is the same rule as {seen[meaning]}: {in_words(rule_of(0, direction, rule))}")
        seen.setdefault(meaning, field)


def _size(message: Any, found: Violations) -> int:
    """How many rules there are, which must not be too many."""
    count = len(message.ingress) + len(message.egress)
    if count > MOST_RULES:
        field = "ingress" if len(message.ingress) >= len(message.egress) else "egress"
        what = "tiers" if isinstance(message, security_pb2.PolicyTier) else "groups; a port may be in several"
        found.add(field, f"{count} rules are more than {MOST_RULES}: share them out among several {what}")
    return count


def _meaning(rule: Any) -> bytes:
    """A rule without what does not matter to packets."""
    bare = type(rule)()
    bare.CopyFrom(rule)
    bare.ClearField("description")
    bare.ClearField("enabled")
    encoded: bytes = bare.SerializeToString(deterministic=True)
    return encoded


def _rule(rule: Any, field: str, found: Violations) -> None:
    fields.text(rule.description, f"{field}.description", found)
    if not rule.HasField("enabled"):
        rule.enabled = True
    protocol = _protocol(rule, field, found)
    _ports(rule, field, found, protocol=protocol)
    _icmp(rule, field, found, protocol=protocol)
    _remote(rule, field, found, protocol=protocol)
    if rule.color and not fields.NAME.fullmatch(rule.color):
        found.add(f"{field}.color", f"{rule.color[:80]!r} is not a color: {fields.NAME_HELP}")
    elif rule.color == _RESERVED:
        found.add(f"{field}.color", f"{_RESERVED} is no color; leave it out for connections without one")


def _protocol(rule: Any, field: str, found: Violations) -> int | None:
    try:
        number = protocol_number(rule.protocol)
    except ValueError as error:
        found.add(f"{field}.protocol", str(error))
        return None
    rule.protocol = protocol_name(number)
    return number


def _ports(rule: Any, field: str, found: Violations, *, protocol: int | None) -> None:
    if rule.ports and protocol not in WITH_PORTS:
        text = f"{rule.protocol[:40] or 'any'} has no ports; say protocol tcp, udp or sctp, or leave them out"
        found.add(f"{field}.ports", text)
        return
    if len(rule.ports) > MOST_RANGES:
        found.add(f"{field}.ports", f"at most {MOST_RANGES} ranges in a rule; write another rule for the others")
        return
    ranges: list[tuple[int, int]] = []
    for i, text in enumerate(rule.ports):
        try:
            low, high = port_range(text)
        except ValueError as error:
            found.add(f"{field}.ports[{i}]", str(error))
            continue
        for other in ranges:
            if low <= other[1] and other[0] <= high:
                both = port_text((min(low, other[0]), max(high, other[1])))
                what = f"{port_text((low, high))} overlaps {port_text(other)} of the same rule; write {both}"
                found.add(f"{field}.ports[{i}]", what)
        ranges.append((low, high))
    if len(ranges) == len(rule.ports):
        rule.ports[:] = [port_text(one) for one in sorted(ranges)]


def _icmp(rule: Any, field: str, found: Violations, *, protocol: int | None) -> None:
    for part in ("icmp_type", "icmp_code"):
        if not rule.HasField(part):
            continue
        if protocol not in (ICMP, ICMPV6):
            found.add(f"{field}.{part}", f"is for protocol icmp or icmpv6, not for {rule.protocol[:40] or 'any'}")
        elif getattr(rule, part) > 255:
            found.add(f"{field}.{part}", f"{getattr(rule, part)} is not within 0…255")
    if rule.HasField("icmp_code") and not rule.HasField("icmp_type"):
        found.add(f"{field}.icmp_code", "needs icmp_type: a code is one of a type")


def _remote(rule: Any, field: str, found: Violations, *, protocol: int | None) -> None:
    if rule.remote_cidr and rule.remote_group:
        found.add(f"{field}.remote_group", "a rule has remote_cidr or remote_group; write two rules for both")
    if not rule.remote_cidr:
        return
    prefix = fields.prefix(rule.remote_cidr, f"{field}.remote_cidr", found)
    if prefix is None:
        return
    rule.remote_cidr = str(prefix)
    for number, version in ((ICMP, 4), (ICMPV6, 6)):
        if protocol == number and prefix.version != version:
            name = protocol_name(number)
            found.add(f"{field}.remote_cidr", f"{prefix} is IPv{prefix.version}, and {name} is of IPv{version} alone")
