"""What rules have counted, from the statistics of their flows: never less than before, as long as a rule is here.

A flow's statistics begin anew whenever it is written again, so what they grow by is added up, and kept in a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.policy.compile import judge, opened_flows
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.security import Action, Direction, Mode, Rules

Key = tuple[int, str, int]  # identity, direction, rule (0: what no rule decides)
Stats = Mapping[int, tuple[int, int]]  # by cookie: packets and bytes
DIRECTIONS = {Direction.INGRESS: pb.RULE_DIRECTION_INGRESS, Direction.EGRESS: pb.RULE_DIRECTION_EGRESS}


@dataclass(frozen=True, slots=True)
class Spec:
    """Which flows count for a rule."""

    direction: Direction
    action: Action
    mode: Mode
    flows: int
    deciding: tuple[int, ...]
    opened: tuple[int, ...]


@dataclass(slots=True)
class Total:
    """New connections, and packets and bytes of them all."""

    decided: int = 0
    packets: int = 0
    size: int = 0


def specs(rules: Rules) -> dict[Key, Spec]:
    """Of all rules of an identity."""
    opened: dict[int, list[int]] = {}
    for number, flow in opened_flows(rules):
        opened.setdefault(number, []).append(flow.cookie)
    out: dict[Key, Spec] = {}
    for direction in Direction:
        for each in judge(rules, direction).counted:
            there = tuple(opened.get(each.rule, ())) if each.rule else ()
            out[rules.identity, direction.value, each.rule] = Spec(
                direction, each.action, each.mode, each.flows + len(there), each.deciding, there
            )
    return out


@dataclass(slots=True)
class Counters:
    """`update` with statistics; `changed` is what has grown, or has become another rule, since it was asked last."""

    path: Path | None = None
    _seen: dict[int, tuple[int, int]] = field(default_factory=dict)  # by cookie
    _totals: dict[Key, Total] = field(default_factory=dict)
    _specs: dict[int, tuple[Rules, dict[Key, Spec]]] = field(default_factory=dict)
    _told: dict[Key, pb.RuleCount] = field(default_factory=dict)
    _saved: str = ""

    def load(self) -> None:
        """What a former process has counted."""
        if self.path is None or not self.path.exists():
            return
        try:
            stored = json.loads(self.path.read_text())
            self._seen = {int(cookie): (packets, size) for cookie, packets, size in stored["seen"]}
            self._totals = {(i, d, r): Total(*numbers) for i, d, r, *numbers in stored["totals"]}
        except (OSError, ValueError, KeyError, TypeError):
            self._seen, self._totals = {}, {}  # counters begin anew, nothing else is lost

    def save(self) -> None:
        """For the next process."""
        if self.path is None:
            return
        seen = [[cookie, *numbers] for cookie, numbers in self._seen.items()]
        totals = [[*key, t.decided, t.packets, t.size] for key, t in self._totals.items()]
        text = json.dumps({"seen": seen, "totals": totals})
        if text != self._saved:
            temporary = self.path.with_suffix(".new")
            temporary.write_text(text)
            temporary.replace(self.path)
            self._saved = text

    def update(self, rules: Mapping[int, Rules], stats: Stats) -> None:
        """Take in what the flows say now."""
        for identity in self._specs.keys() - rules.keys():
            del self._specs[identity]
        for identity, row in rules.items():
            known = self._specs.get(identity)
            if known is None or known[0] is not row:
                self._specs[identity] = (row, specs(row))
        here = dict(self._all())
        for key in self._totals.keys() - here.keys():
            del self._totals[key]
        grown = {cookie: self._grown(cookie, now) for cookie, now in stats.items()}
        for key, spec in here.items():
            total = self._totals.setdefault(key, Total())
            total.decided += sum(grown[c][0] for c in spec.deciding if c in grown)
            counted = [grown[c] for c in (*spec.deciding, *spec.opened) if c in grown]
            total.packets += sum(packets for packets, _ in counted)
            total.size += sum(size for _, size in counted)
        self._seen = dict(stats)

    def _grown(self, cookie: int, now: tuple[int, int]) -> tuple[int, int]:
        before = self._seen.get(cookie, (0, 0))
        return now if now[0] < before[0] else (now[0] - before[0], now[1] - before[1])

    def _all(self) -> Iterator[tuple[Key, Spec]]:
        for _, each in self._specs.values():
            yield from each.items()

    def all(self) -> list[pb.RuleCount]:
        """Every rule."""
        self._told = {key: self._count(key, spec) for key, spec in self._all()}
        return list(self._told.values())

    def changed(self) -> list[pb.RuleCount]:
        """Those that are not as they were told last."""
        now = {key: self._count(key, spec) for key, spec in self._all()}
        out = [count for key, count in now.items() if self._told.get(key) != count]
        self._told = now
        return out

    def gone(self) -> bool:
        """Whether a rule that was told of is not here any more: only a whole report can say so."""
        return bool(self._told.keys() - dict(self._all()).keys())

    def _count(self, key: Key, spec: Spec) -> pb.RuleCount:
        total = self._totals.get(key, Total())
        out = pb.RuleCount(identity=key[0], direction=DIRECTIONS[spec.direction], rule=key[2], flows=spec.flows)
        if spec.mode is Mode.SHADOW:
            out.shadow_hits = total.decided
        else:
            out.packets, out.bytes, out.connections = total.packets, total.size, total.decided
        return out
