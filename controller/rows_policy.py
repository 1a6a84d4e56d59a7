"""Rows of security groups and policy tiers.

Only rules that are in force: disabled ones are left out. A rule that this build can't make sense of (written by a newer
one) has a `problem`; it closes: of a group it allows nothing, of a tier it denies everything.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.rows import Labels, Prefix
from tealnet.core.rows.security import Action, Direction, Mode, OnChange, Position


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """One rule; `index` is its place in the object's list of that direction."""

    index: int
    direction: Direction
    action: Action = Action.ALLOW
    protocol: int | None = None  # None: any
    ports: tuple[tuple[int, int], ...] = ()  # of the target, first and last; none: all
    icmp: tuple[int, int | None] | None = None  # type and code; code None: all of the type
    remote: Prefix | None = None
    group: str = ""  # of a group's rule: resource name; of a tier's: last part; "": anyone
    color: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """Rules that allow."""

    tenant: str
    rules: tuple[RuleSpec, ...]
    mode: Mode
    on_change: OnChange


@dataclass(frozen=True, slots=True)
class TierSpec:
    """Rules in their order, ingress first."""

    position: Position  # ABOVE or BELOW
    priority: int
    selector: Labels
    rules: tuple[RuleSpec, ...]
    mode: Mode
    on_change: OnChange
