"""Colors and weights: names, numbers in a routing domain, and what is wrong with a request. Pure.

A color's number stands in its network's own row (`IssuedSegment.color_number`) and is that of the routing domain which
the network is in: the same for the same name in all networks of the domain (a track), 1…8. It is issued here, when a
color is added and when a network changes its domain; the domain's guard keeps two writers from issuing at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

from controller.errors import Blocker, FailedPrecondition, invalid
from controller.fields import NAME, NAME_HELP, Violations, distinct
from controller.rows import Intent, NetworkSpec, Segment
from tealnet.core.rows.colors import COLORS, SLOTS

BASE = "base"
"""The segment of a network without colors."""
HEAVIEST = 1_000_000


# ---- names


def color_fields(colors: Sequence[str], found: Violations) -> None:
    """The names of a network's colors."""
    if len(colors) > COLORS:
        found.add("colors", f"at most {COLORS}, in a routing domain together")
        return
    for i, color in enumerate(colors):
        if color == BASE:
            found.add(f"colors[{i}]", f"{BASE!r} is the segment of a network without colors; choose another name")
        elif not NAME.fullmatch(color):
            found.add(f"colors[{i}]", f"{color[:80]!r} is not a name: {NAME_HELP}")
    distinct(colors, "colors", found)


def segment_of(network: Intent[NetworkSpec], color: str) -> Segment:
    """The segment that a new port asks for; where there is only one, it need not say which. Raises Invalid."""
    segments, colors = network.spec.segments, network.spec.colors
    if not colors:
        if color:
            raise invalid("port.color", f"{network.name} has no colors; leave it out")
        return segments[0]
    if not color:
        if len(segments) > 1:
            raise invalid("port.color", f"is missing: {network.name} has the colors {', '.join(colors)}")
        return segments[0]
    found = next((segment for segment in segments if segment.color == color), None)
    if found is None:
        text = f"{color[:80]!r} is no color of {network.name}, which has {', '.join(colors)}"
        raise invalid("port.color", text, reason="NO_SUCH_COLOR")
    return found


# ---- numbers


def domain_colors(networks: Iterable[Intent[NetworkSpec]]) -> dict[str, int]:
    """The numbers of all colors of some networks of one routing domain, by name."""
    return {s.color: s.color_number for network in networks for s in network.spec.segments if s.color_number}


def numbered(colors: Sequence[str], *, own: Mapping[str, int], domain: Mapping[str, int]) -> dict[str, int] | None:
    """Numbers for a network's colors; None if its domain would have more than eight.

    `domain`: of the domain's other networks, whose names decide; `own`: as they are. A number that need not change does
    not: connections are marked with it. A new name gets the number that its hash says, so that the same name has the
    same number in most domains, and a network keeps its numbers when it is attached.
    """
    if len(domain.keys() | set(colors)) > COLORS:
        return None
    chosen = {color: domain[color] for color in colors if color in domain}
    taken = set(domain.values())
    for color in colors:  # those that have one first
        if color not in chosen and color in own and own[color] not in taken:
            chosen[color] = own[color]
            taken.add(own[color])
    for color in colors:
        if color not in chosen:
            chosen[color] = next(n for n in _preferred(color) if n not in taken)
            taken.add(chosen[color])
    return chosen


def _preferred(color: str) -> list[int]:
    """All numbers, beginning with the one that is this name's by its hash."""
    first = int.from_bytes(blake2b(color.encode(), digest_size=8).digest(), "big")
    return [(first + step) % COLORS + 1 for step in range(COLORS)]


def too_many(router: str, colors: Sequence[str], others: Iterable[Intent[NetworkSpec]]) -> FailedPrecondition:
    """A routing domain would have more than eight colors."""
    by_network = {row.name: row.spec.colors for row in others if row.spec.colors}
    names = sorted({color for own in by_network.values() for color in own} | set(colors))
    blockers = [
        Blocker("TOO_MANY_COLORS", name, f"{name} has {', '.join(own)}") for name, own in sorted(by_network.items())
    ]
    text = (
        f"{router} would have {len(names)} colors ({', '.join(names)}); at most {COLORS} names in a routing domain: "
        "use names that it has, or take some out"
    )
    return FailedPrecondition(text, blockers[:20], reason="TOO_MANY_COLORS")


# ---- weights


def weight_fields(weights: Mapping[str, int], field: str, found: Violations) -> None:
    """Weights by themselves: hosts share out 256 slots, so nothing finer can be carried out (B7)."""
    total = sum(weights.values())
    for color, weight in sorted(weights.items()):
        if not NAME.fullmatch(color):
            found.add(field, f"{color[:80]!r} is not a color's name")
        elif weight > HEAVIEST:
            found.add(field, f"{color}={weight}: at most {HEAVIEST}")
        elif weight and weight * SLOTS < total:
            least = -(-total // SLOTS)
            found.add(field, f"{color}={weight} of {total} is less than 1/{SLOTS}, the smallest share: {least} or 0")
    if weights and not total:
        found.add(field, "at least one color needs a weight above 0")


def weights_named(weights: Mapping[str, int], colors: Sequence[str], field: str, found: Violations) -> None:
    """Weights against the colors that there are."""
    for color in sorted(weights.keys() - set(colors)):
        there = f"there are {', '.join(colors)}" if colors else "the network has no colors"
        found.add(field, f"{color[:80]!r} is no color of it; {there}")
