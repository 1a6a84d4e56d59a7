"""Rules of groups and tiers as they travel: encoded once, with an id that is made of what the user wrote. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from controller.messages import prefix_message
from controller.names import short
from controller.resources import field, varint
from controller.rows_policy import RuleSpec
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.security import FIRST_RULE_ID, Action, Direction, Mode, OnChange, Position

_IDS = 2**32 - FIRST_RULE_ID
_DIRECTIONS = {Direction.INGRESS: pb.RULE_DIRECTION_INGRESS, Direction.EGRESS: pb.RULE_DIRECTION_EGRESS}
_ACTIONS = {Action.ALLOW: pb.RULE_ACTION_ALLOW, Action.DENY: pb.RULE_ACTION_DENY, Action.PASS: pb.RULE_ACTION_PASS}
_MODES = {Mode.ENFORCE: pb.RULE_MODE_ENFORCE, Mode.SHADOW: pb.RULE_MODE_SHADOW}
_ON_CHANGE = {
    OnChange.KEEP: pb.RULE_ON_CHANGE_KEEP,
    OnChange.REEVALUATE: pb.RULE_ON_CHANGE_REEVALUATE,
    OnChange.CUT: pb.RULE_ON_CHANGE_CUT,
}
_POSITIONS = {
    Position.ABOVE: pb.RULE_POSITION_ABOVE,
    Position.GROUPS: pb.RULE_POSITION_GROUPS,
    Position.BELOW: pb.RULE_POSITION_BELOW,
}
_ID = varint(pb.Rule.DESCRIPTOR.fields_by_name["id"].number << 3)
_RULES = pb.RuleTier.DESCRIPTOR.fields_by_name["rules"].number
_TIERS = pb.Rules.DESCRIPTOR.fields_by_name["tiers"].number


class Origin(NamedTuple):
    """Where a rule comes from: a group or tier, the rule's place there, and its id as made of what was written."""

    object: str  # resource name
    uid: str
    direction: Direction
    place: int
    id: int


class Owner(NamedTuple):
    """The group or tier that a rule is of."""

    name: str
    uid: str
    mode: Mode

    @property
    def title(self) -> str:
        """For people on the host: a group's short name, a tier's whole one."""
        return short(self.name) if self.name.startswith("tenants/") else self.name


class Resolved(NamedTuple):
    """What the names in a rule stand for now; None: it names none."""

    identities: tuple[int, ...] | None  # members of the remote group, ascending
    colors: tuple[tuple[int, int], ...] | None  # (routing domain, number)


class Compiled(NamedTuple):
    """A rule ready to be sent but for its id, which another one of the same identity may have."""

    encoded: bytes
    origin: Origin


class CompiledTier(NamedTuple):
    """A tier, or a group, ready to be sent."""

    position: Position
    rules: tuple[Compiled, ...]
    mode: Mode
    on_change: OnChange


def compiled(rule: RuleSpec, owner: Owner, resolved: Resolved) -> Compiled:
    """One rule. What was not understood goes without a meaning: the host names it, and closes the direction."""
    message = pb.Rule(
        name=f"{owner.title}/{rule.direction.value.lower()}[{rule.index}]",
        direction=_DIRECTIONS[rule.direction],
        mode=_MODES[owner.mode],
    )
    if not rule.problem:
        message.action = _ACTIONS[rule.action]
        message.protocol = rule.protocol or 0
        for first, last in rule.ports:
            message.ports.add(first=first, last=last)
        if rule.icmp:
            message.icmp_type = rule.icmp[0]
            if rule.icmp[1] is not None:
                message.icmp_code = rule.icmp[1]
        _far_end(message, rule, resolved)
    origin = Origin(owner.name, owner.uid, rule.direction, rule.index, rule_id(owner.uid, rule))
    return Compiled(message.SerializeToString(deterministic=True), origin)


def _far_end(message: pb.Rule, rule: RuleSpec, resolved: Resolved) -> None:
    """Absent: anybody, any color. Present and empty: nobody, no color."""
    if rule.remote is not None:
        message.remote.prefixes.append(prefix_message(rule.remote))
    elif resolved.identities is not None:
        message.remote.SetInParent()
        message.remote.identities.extend(resolved.identities)
    if resolved.colors is not None:
        message.colors.SetInParent()
        for domain, color in resolved.colors:
            message.colors.colors.add(domain=domain, color=color)


def rule_id(owner_uid: str, rule: RuleSpec) -> int:
    """The same wherever and whenever the same was written; not of members, places, modes and texts."""
    said = (
        owner_uid, rule.direction.value, rule.action.value, rule.protocol, rule.ports, rule.icmp,
        str(rule.remote or ""), rule.group, rule.color, rule.problem,
    )  # fmt: skip
    return int.from_bytes(blake2b(repr(said).encode(), digest_size=8).digest()) % _IDS + FIRST_RULE_ID


class Body(NamedTuple):
    """What is sent for one identity, and where its rules come from, by the id that is sent."""

    body: bytes
    origins: tuple[tuple[int, Origin], ...]


def body_of(tiers: Sequence[CompiledTier], groups: Sequence[CompiledTier], fallback: Mode) -> Body:
    """The resource of an identity from what binds it; tiers in the order of asking."""
    strictest = max((part.on_change for part in (*tiers, *groups)), key=list(OnChange).index, default=OnChange.KEEP)
    of_groups = CompiledTier(Position.GROUPS, tuple(r for g in groups for r in g.rules), Mode.ENFORCE, strictest)
    ordered = [t for t in tiers if t.position is Position.ABOVE]
    if of_groups.rules:
        ordered.append(of_groups)
    ordered += [t for t in tiers if t.position is Position.BELOW]
    taken: set[int] = set()
    origins: list[tuple[int, Origin]] = []
    parts: list[bytes] = []
    for tier in ordered:
        numbered = list(_numbered(tier.rules, taken))
        if tier.position is Position.GROUPS:
            numbered.sort(key=lambda pair: pair[0])
        origins += [(number, rule.origin) for number, rule in numbered]
        rules = b"".join(field(_RULES, _ID + varint(number) + rule.encoded) for number, rule in numbered)
        parts.append(field(_TIERS, pb.RuleTier(position=_POSITIONS[tier.position]).SerializeToString() + rules))
    end = pb.Rules(fallback=_MODES[fallback], on_change=_ON_CHANGE[strictest])
    return Body(b"".join(parts) + end.SerializeToString(), tuple(origins))


def _numbered(rules: Iterable[Compiled], taken: set[int]) -> Iterable[tuple[int, Compiled]]:
    """Ids that are unique in an identity's rules: of two equal ones the later gets the next free number."""
    for rule in rules:
        number = rule.origin.id
        while number in taken:
            number = number + 1 if number < 2**32 - 1 else FIRST_RULE_ID
        taken.add(number)
        yield number, rule
