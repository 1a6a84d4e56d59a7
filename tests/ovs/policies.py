"""Rules at random, from a world so small that they often meet."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from hypothesis import strategies as st

from tealnet.core.rows.security import (
    Action,
    Direction,
    Mode,
    OnChange,
    Ports,
    Position,
    Remote,
    Rule,
    Rules,
    Tier,
)

IDENTITIES = (301, 302, 303)
PREFIXES = tuple(
    map(ip_network, ("0.0.0.0/0", "10.0.0.0/30", "10.0.0.2/32", "10.9.0.0/16", "::/0", "fd00::2/127", "fd00::4/128"))
)
PORTS = (Ports(0, 65535), Ports(80, 80), Ports(79, 82), Ports(443, 443), Ports(1, 1023), Ports(8000, 8099))
PROTOCOLS = (0, 0, 1, 6, 6, 17, 17, 58, 132, 47)


def rule(number: int, direction: Direction, **changes: Any) -> Rule:
    """An ENFORCE ALLOW of everything, but for the changes."""
    fields: dict[str, Any] = {
        "id": number,
        "name": f"web/{number}",
        "direction": direction,
        "action": Action.ALLOW,
        "mode": Mode.ENFORCE,
        "protocol": 0,
        "ports": (),
        "icmp_type": None,
        "icmp_code": None,
        "remote": None,
        "colors": None,
    }
    return Rule(**(fields | changes))


def rules(
    identity: int,
    *groups: Rule,
    above: tuple[Tier, ...] = (),
    below: tuple[Tier, ...] = (),
    fallback: Mode = Mode.ENFORCE,
    on_change: OnChange = OnChange.KEEP,
) -> Rules:
    """What guards an identity."""
    ordered = tuple(sorted(groups, key=lambda each: each.id))
    return Rules(identity, (*above, Tier(Position.GROUPS, ordered), *below), fallback, on_change, ())


@st.composite
def random_rule(draw: st.DrawFn, *, action: Action, mode: Mode) -> Rule:
    protocol = draw(st.sampled_from(PROTOCOLS))
    fields: dict[str, Any] = {"action": action, "mode": mode, "protocol": protocol}
    if protocol in (6, 17, 132):
        fields["ports"] = tuple(draw(st.lists(st.sampled_from(PORTS), max_size=3)))
    if protocol in (1, 58) and draw(st.booleans()):
        fields["icmp_type"] = draw(st.sampled_from((8, 13) if protocol == 1 else (128, 129)))
        if draw(st.booleans()):
            fields["icmp_code"] = draw(st.sampled_from((0, 1)))
    if draw(st.integers(0, 3)):
        identities = draw(st.lists(st.sampled_from(IDENTITIES), unique=True, max_size=2).map(sorted))
        prefixes = draw(st.lists(st.sampled_from(PREFIXES), unique=True, max_size=2))
        fields["remote"] = Remote(tuple(identities), tuple(prefixes))
    return rule(draw(st.integers(256, 2**32 - 1)), draw(st.sampled_from(Direction)), **fields)


@st.composite
def random_tier(draw: st.DrawFn, position: Position) -> Tier:
    mode = draw(st.sampled_from(Mode))
    actions = draw(st.lists(st.sampled_from(Action), max_size=4))
    return Tier(position, tuple(draw(random_rule(action=action, mode=mode)) for action in actions))


@st.composite
def random_rules(draw: st.DrawFn, identity: int) -> Rules:
    def tiers(position: Position) -> tuple[Tier, ...]:
        return tuple(draw(st.lists(random_tier(position), max_size=3)))

    modes = draw(st.lists(st.sampled_from((Mode.ENFORCE, Mode.ENFORCE, Mode.SHADOW)), max_size=6))
    groups = tuple(draw(random_rule(action=Action.ALLOW, mode=mode)) for mode in modes)
    made = rules(
        identity,
        *groups,
        above=tiers(Position.ABOVE),
        below=tiers(Position.BELOW),
        fallback=draw(st.sampled_from((Mode.ENFORCE, Mode.ENFORCE, Mode.SHADOW))),
    )
    ids = [each.id for tier in made.tiers for each in tier.rules]
    return made if len(set(ids)) == len(ids) else rules(identity)
