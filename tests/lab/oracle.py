"""Random policies, and what they mean: an evaluator of its own, written from the API's description alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import strategies as st

TENANTS = ("acme", "globex")
GROUPS = 4
TCP, UDP = (80, 8081), (53, 8081)
ANY_REMOTE = ""
_RANGES = ["80", "53", "8000-8099", "1-1024", "81-9000", "1-65535"]
_CIDRS = {
    4: ["0.0.0.0/0", "10.1.0.0/24", "10.2.0.0/24", "10.1.0.0/25", "192.0.2.0/24"],
    6: ["::/0", "fd01::/64", "fd02::/64", "2001:db8::/32"],
}


@dataclass(frozen=True)
class Rule:
    """Of a group or a tier. `remote`: "", a prefix, or the number of a group."""

    direction: str
    protocol: str  # as in the API; "other" is the number that this round uses
    ports: tuple[str, ...]
    remote: str | int
    action: str = "ALLOW"


@dataclass(frozen=True)
class Group:
    """A tenant's."""

    rules: tuple[Rule, ...]
    is_shadow: bool


@dataclass(frozen=True)
class Tier:
    """An admin's; `tenant` "" binds all."""

    position: str
    priority: int
    tenant: str
    rules: tuple[Rule, ...]
    is_shadow: bool


@dataclass(frozen=True)
class Policy:
    """Groups by tenant, the groups of each port (by number), tiers in the order of their names."""

    groups: dict[str, tuple[Group, ...]]
    members: dict[str, tuple[int, ...]]
    tiers: tuple[Tier, ...]


@dataclass(frozen=True)
class End:
    """A workload: acme/w1 and its addresses."""

    name: str
    v4: str
    v6: str

    def address(self, version: int) -> str:
        return self.v4 if version == 4 else self.v6

    @property
    def tenant(self) -> str:
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Try:
    """A connection: protocol is tcp, udp, icmp (of either version) or other."""

    source: End
    target: End
    version: int
    protocol: str
    port: int


def passes(policy: Policy, one: Try) -> bool:
    """Whether a new connection gets through, at both ends."""
    return all(ends(policy, one))


def ends(policy: Policy, one: Try) -> tuple[bool, bool]:
    """What the source's rules say, and the target's."""
    return (
        _side(policy, one, "egress", own=one.source, other=one.target),
        _side(policy, one, "ingress", own=one.target, other=one.source),
    )


def _side(policy: Policy, one: Try, direction: str, *, own: End, other: End) -> bool:
    def first(position: str) -> str:
        tiers = [
            (tier.priority, number, tier)
            for number, tier in enumerate(policy.tiers)
            if tier.position == position and tier.tenant in ("", own.tenant) and not tier.is_shadow
        ]
        for _, _, tier in sorted(tiers, key=lambda item: item[:2]):
            for rule in tier.rules:
                if rule.direction == direction and _is_about(policy, rule, one, other):
                    return rule.action
        return ""

    if (word := first("ABOVE")) in ("ALLOW", "DENY"):
        return word == "ALLOW"
    groups = [policy.groups[own.tenant][number] for number in policy.members[own.name]]
    enforced = [rule for group in groups if not group.is_shadow for rule in group.rules]
    if any(rule.direction == direction and _is_about(policy, rule, one, other) for rule in enforced):
        return True
    if (word := first("BELOW")) in ("ALLOW", "DENY"):
        return word == "ALLOW"
    return all(group.is_shadow for group in groups)


def _is_about(policy: Policy, rule: Rule, one: Try, other: End) -> bool:
    protocol = {"icmp": {4: "icmp", 6: "icmpv6"}[one.version]}.get(one.protocol, one.protocol)
    if rule.protocol not in ("any", protocol):
        return False
    if rule.ports and not any(_within(text, one.port) for text in rule.ports):
        return False
    if isinstance(rule.remote, int):
        return rule.remote in policy.members[other.name]
    return not rule.remote or ip_address(other.address(one.version)) in ip_network(rule.remote)


def _within(text: str, port: int) -> bool:
    first, _, last = text.partition("-")
    return int(first) <= port <= int(last or first)


# ---- random ones


@st.composite
def _rules(draw: st.DrawFn, *, of_tier: bool) -> Rule:
    protocol = draw(st.sampled_from(["any", "any", "tcp", "tcp", "udp", "icmp", "icmpv6", "other"]))
    ports = tuple(draw(st.lists(st.sampled_from(_RANGES), max_size=1))) if protocol in ("tcp", "udp") else ()
    versions = {"icmp": [4], "icmpv6": [6]}.get(protocol, [4, 6])
    cidrs = [cidr for version in versions for cidr in _CIDRS[version]]
    remote = draw(st.one_of(st.just(ANY_REMOTE), st.sampled_from(cidrs), st.integers(0, GROUPS - 1)))
    action = draw(st.sampled_from(["ALLOW", "DENY", "DENY", "PASS"])) if of_tier else "ALLOW"
    return Rule(draw(st.sampled_from(["ingress", "egress"])), protocol, ports, remote, action)


def _list(most: int, *, of_tier: bool) -> st.SearchStrategy[tuple[Rule, ...]]:
    # The API refuses a rule that stands twice, whatever it says.
    return st.lists(_rules(of_tier=of_tier), max_size=most, unique=True).map(tuple)


_SHADOW = st.integers(0, 5).map(lambda n: n == 0)
_GROUP = st.builds(Group, rules=_list(6, of_tier=False), is_shadow=_SHADOW)
_TIER = st.builds(
    Tier,
    position=st.sampled_from(["ABOVE", "BELOW"]),
    priority=st.integers(0, 2),
    tenant=st.sampled_from(["", *TENANTS]),
    rules=_list(3, of_tier=True),
    is_shadow=_SHADOW,
)


def other_group() -> st.SearchStrategy[Group]:
    """Something else for a group."""
    return _GROUP


def policies(names: Iterable[str]) -> st.SearchStrategy[Policy]:
    """Policies for workloads of these names."""
    some = st.lists(st.integers(0, GROUPS - 1), min_size=1, max_size=3, unique=True).map(lambda n: tuple(sorted(n)))
    groups = st.tuples(*[_GROUP] * GROUPS)
    return st.builds(
        Policy,
        groups=st.fixed_dictionaries(dict.fromkeys(TENANTS, groups)),
        members=st.fixed_dictionaries(dict.fromkeys(names, some)),
        tiers=st.lists(_TIER, max_size=2).map(tuple),
    )


def fields_of(rule: Rule, *, tenant: str, other: int) -> dict[str, Any]:
    """A rule as the API takes it; a tier's (`tenant` "") names a group by its last part."""
    fields: dict[str, Any] = {
        "protocol": str(other) if rule.protocol == "other" else rule.protocol,
        "ports": rule.ports,
    }
    if isinstance(rule.remote, int):
        fields["remote_group"] = f"tenants/{tenant}/securityGroups/g{rule.remote}" if tenant else f"g{rule.remote}"
    elif rule.remote:
        fields["remote_cidr"] = rule.remote
    return fields if tenant else fields | {"action": f"RULE_ACTION_{rule.action}"}
