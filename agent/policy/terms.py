"""What a rule matches, as fields of flows: per dimension a list of alternatives, each a set of fields.

Dimensions are the other end, protocol and port, and color. What a rule does not say is no dimension at all, so that a
flow looks at nothing that no rule asks for: each field that it looks at makes more megaflows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from agent.openflow.oxm import Value
from agent.pipeline import Reg, domain_color
from agent.policy.masks import port_masks
from tealnet.core.rows.parse import Prefix
from tealnet.core.rows.security import ICMP, ICMPV6, SCTP, Direction, Remote, Rule, RuleColor

Fields = Mapping[str, Value]
Dimension = tuple[Fields, ...]  # alternatives; none: never

VALID = "+trk-inv"  # the ct_ fields can be matched only where conntrack knows the packet
_FAMILY = {4: "ip", 6: "ipv6"}
_SCTP = {"ip": "sctp", "ipv6": "sctp6"}
_FAR_END = {  # of the packet that opened the connection
    (Direction.INGRESS, 4): "ct_nw_src",
    (Direction.INGRESS, 6): "ct_ipv6_src",
    (Direction.EGRESS, 4): "ct_nw_dst",
    (Direction.EGRESS, 6): "ct_ipv6_dst",
}


def dimensions(rule: Rule) -> tuple[Dimension, ...]:
    """All that the rule says; () = it matches everything."""
    found: list[Dimension] = []
    if rule.remote is not None:
        found.append(_remote(rule.remote, rule.direction))
    if rule.protocol:
        found.append(_protocol(rule))
    if rule.colors is not None:
        found.append(_colors(rule.colors))
    return tuple(found)


def merged(parts: Iterable[Fields]) -> Fields | None:
    """All fields of several alternatives together, or None where no packet is both."""
    out: dict[str, Value] = {}
    for part in parts:
        for name, value in part.items():
            if name == "ct_state":  # all say VALID, and some say more
                out[name] = max(str(value), str(out.get(name, "")), key=len)
            elif out.setdefault(name, value) != value:
                return None
    families = [family for family, word in _SCTP.items() if family in out or word in out]
    return None if len(families) > 1 else out


def _remote(remote: Remote, direction: Direction) -> Dimension:
    v4 = collapse_addresses(prefix for prefix in remote.prefixes if isinstance(prefix, IPv4Network))
    v6 = collapse_addresses(prefix for prefix in remote.prefixes if isinstance(prefix, IPv6Network))
    identities: Iterator[Fields] = ({Reg.REMOTE: number} for number in remote.identities)
    prefixes: list[Prefix] = [*v4, *v6]
    return (*identities, *(_far_end(prefix, direction) for prefix in prefixes))


def _far_end(prefix: Prefix, direction: Direction) -> Fields:
    family = _FAMILY[prefix.version]
    if not prefix.prefixlen:
        return {family: True}
    return {family: True, "ct_state": VALID, _FAR_END[direction, prefix.version]: str(prefix)}


def _protocol(rule: Rule) -> Dimension:
    fields: dict[str, Value] = {"ct_state": VALID, "ct_nw_proto": rule.protocol}
    if rule.protocol in (ICMP, ICMPV6):  # in a connection's memory type and code are where others have ports
        fields["ip" if rule.protocol == ICMP else "ipv6"] = True
        if rule.icmp_type is not None:
            fields["ct_tp_src"] = rule.icmp_type
        if rule.icmp_code is not None:
            fields["ct_tp_dst"] = rule.icmp_code
    masks = port_masks(rule.ports)
    if not masks or masks == ((0, 0),):
        return (fields,)
    if rule.protocol == SCTP:
        return tuple(alternative for mask in masks for alternative in _sctp(mask))
    return tuple({**fields, "ct_tp_dst": mask} for mask in masks)


def _sctp(mask: tuple[int, int]) -> Iterator[Fields]:
    """On netdev conntrack knows no ports of SCTP: each packet is judged by its own, as who opened it would be."""
    for word in _SCTP.values():
        yield {word: True, "ct_state": f"{VALID}-rpl", "sctp_dst": mask}
        yield {word: True, "ct_state": f"{VALID}+rpl", "sctp_src": mask}


def _colors(colors: Iterable[RuleColor]) -> Dimension:
    return tuple({"metadata": domain_color(*color)} for color in sorted(set(colors)))
