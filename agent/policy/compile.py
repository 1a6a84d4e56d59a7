"""The rules of an identity as flows of JUDGE and OPENED, and which of these flows count for which rule.

A verdict walks through steps: runs of tiers that are in the same mode, the groups, the end. In a run of tiers each rule
has a priority of its own, by its place. Rules of groups all allow, so their order is free: those that look at less come
first and let the switch stop before it has looked at more; there many rules have one priority, and where two of them
want the same match, the flow is the first one's.

A rule with several alternatives in more than one dimension is a conjunctive match if that takes fewer flows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby, product
from math import prod

from agent.openflow import actions as act
from agent.openflow.flow import Flow
from agent.openflow.oxm import Value, match
from agent.pipeline import Bits, Feature, Flag, Reg, Stage, flow, goto
from agent.policy.stages import (
    AGAIN_NOW,
    CODES,
    CUT_NOW,
    FALLBACK,
    IS_THERE,
    NONE,
    NOT_DENIED,
    STEP_OF,
    cut,
    policy_flow,
)
from agent.policy.terms import Dimension, Fields, dimensions, merged
from tealnet.core.rows.security import Action, Direction, Mode, OnChange, Position, Rule, Rules

FIRST_ABOVE, GROUPS, FIRST_BELOW, END = 0x0001, 0x4000, 0x8000, 0xFFFF  # steps; a verdict begins at 0
STRAIGHT = 65000  # priority where a step has nothing to look at: above all rules, so that the switch looks no further
TOP = 60000  # … of the first rule of a run of tiers
MOST_RULES = 50000  # in one run
CACHED = 1 << 16  # rules whose flows are remembered: who adds one to a thousand does not wait for the thousand


class UncompilableError(Exception):
    """Rules that can't be flows. Their direction stays closed."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What counts for a rule (0: what no rule decides): the flows that decide, by cookie, and what it costs."""

    rule: int
    name: str
    action: Action
    mode: Mode
    flows: int
    deciding: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """The flows of JUDGE for one direction; none if it has to stay closed because of `error`."""

    flows: tuple[Flow, ...] = ()
    counted: tuple[Counted, ...] = ()
    error: UncompilableError | None = None


@dataclass(frozen=True, slots=True)
class _Claim:
    """A flow that a rule wants: one that decides, or (`clause`) a part of a conjunctive match."""

    priority: int
    match: bytes
    actions: bytes
    clause: bool = False


@dataclass(frozen=True, slots=True)
class _Step:
    """A step and the rules that are asked in it, each with its priority."""

    number: int
    position: Position
    rules: tuple[tuple[int, Rule], ...]


def judge(rules: Rules, direction: Direction) -> Judged:
    """The verdict of one direction."""
    try:
        flaw = next((flaw for flaw in rules.flaws if direction in flaw.directions), None)
        if flaw is not None:
            raise UncompilableError(f"{direction.value} is closed: rule {flaw.rule}: {flaw.text}")
        return _Verdict(rules, direction).result()
    except UncompilableError as error:
        return Judged(error=error)


def let_in(rules: Rules) -> tuple[int, ...]:
    """Rules that open connections remember, each once."""
    found = [rule.id for tier in rules.tiers for rule in tier.rules if _lets_in(rule)]
    if rules.fallback is Mode.SHADOW:
        found.append(FALLBACK)
    return tuple(dict.fromkeys(found))


def opened_flows(rules: Rules) -> Iterator[tuple[int, Flow]]:
    """By rule: the flow of OPENED that says it is there. Then (0): what becomes of connections whose rule is not."""
    for number in let_in(rules):
        label = (number, NONE[1])
        yield number, policy_flow(Stage.OPENED, IS_THERE, goto(Stage.ONWARD), reg0=rules.identity, ct_label=label)
    if rules.on_change is OnChange.CUT:
        yield from ((0, each) for each in cut(CUT_NOW, reg0=rules.identity))
    elif rules.on_change is OnChange.REEVALUATE:
        yield 0, policy_flow(Stage.OPENED, AGAIN_NOW, goto(Stage.JUDGE), reg0=rules.identity)


def _lets_in(rule: Rule) -> bool:
    return rule.mode is Mode.ENFORCE and rule.action is Action.ALLOW


@dataclass(slots=True)
class _Verdict:
    """While one direction is compiled."""

    rules: Rules
    direction: Direction
    flows: list[Flow] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)

    def result(self) -> Judged:
        """All of it."""
        steps = list(_steps(self.rules, self.direction))
        numbers = [step.number for step in steps] + [END]
        self._add(0, STRAIGHT, _enter(self._at(numbers[0])))
        for step, following in zip(steps, numbers[1:], strict=True):
            beyond = next((s.number for s in steps if s.position is not step.position and s.number > step.number), END)
            self._step(step, following=following, beyond=beyond)
            self._add(step.number, 1, _enter(self._at(following)))
        self._end()
        return Judged(tuple(self.flows), tuple(self.counted))

    def _at(self, step: int) -> int:
        return STEP_OF[self.direction] | step

    def _add(self, step: int, priority: int, actions: bytes, **fields: Value) -> Flow:
        where: dict[str, Value] = {Reg.OWN: self.rules.identity, Reg.STEP: self._at(step)}
        added = policy_flow(Stage.JUDGE, priority, actions, **where, **fields)
        self.flows.append(added)
        return added

    def _step(self, step: _Step, *, following: int, beyond: int) -> None:
        """Each place (priority and match) gets one flow: the first rule's that decides there, else all clauses."""
        places: dict[tuple[int, bytes], list[tuple[Rule, _Claim]]] = {}
        for priority, rule in step.rules:
            then = _enter(self._at(beyond if rule.action is Action.PASS and rule.mode is Mode.ENFORCE else following))
            actions = _says(rule, code=CODES[self.rules.on_change]) + (b"" if _final(rule) else then)
            for claim in _claims(rule, priority, self.rules.identity, self._at(step.number), actions):
                places.setdefault((claim.priority, claim.match), []).append((rule, claim))
        deciding: dict[int, list[int]] = {rule.id: [] for _, rule in step.rules}
        cost = dict.fromkeys(deciding, 0)
        for claims in places.values():
            first = next(((rule, claim) for rule, claim in claims if not claim.clause), None)
            made = _made(first[1]) if first is not None else _clauses([claim for _, claim in claims])
            self.flows.append(made)
            for rule, _ in claims:
                cost[rule.id] += 1
            if first is not None:
                deciding[first[0].id].append(made.cookie)
        for _, rule in step.rules:
            self.counted.append(
                Counted(rule.id, rule.name, rule.action, rule.mode, cost[rule.id], tuple(deciding[rule.id]))
            )

    def _end(self) -> None:
        """What no rule has decided."""
        denied = act.set_field(Reg.RULE, 0) + goto(Stage.DENIED)
        if self.rules.fallback is Mode.ENFORCE:
            made = self._add(END, STRAIGHT, denied)
            self.counted.append(Counted(0, "", Action.DENY, Mode.ENFORCE, 1, (made.cookie,)))
            return
        code = CODES[self.rules.on_change]
        passes = act.set_field(Reg.RULE, FALLBACK) + act.set_field(Bits.ON_CHANGE, code) + goto(Stage.PASSED)
        no_word = self._add(END, STRAIGHT + 1, act.set_field(Reg.SHADOW, FALLBACK) + passes, reg3=0)
        self._add(END, STRAIGHT, passes)
        self.counted.append(Counted(0, "", Action.DENY, Mode.SHADOW, 2, (no_word.cookie,)))


def _steps(rules: Rules, direction: Direction) -> Iterator[_Step]:
    """Runs of tiers of one position and mode that say anything about this direction, and the groups."""
    said: list[tuple[Position, list[Rule]]] = []
    for tier in rules.tiers:
        ours = [rule for rule in tier.rules if rule.direction is direction]
        if ours:
            said.append((tier.position, ours))
    numbers = {Position.ABOVE: FIRST_ABOVE, Position.GROUPS: GROUPS, Position.BELOW: FIRST_BELOW}
    for (position, _), run in groupby(said, key=lambda item: (item[0], item[1][0].mode)):
        asked = [rule for _, ours in run for rule in ours]
        if len(asked) > MOST_RULES:
            raise UncompilableError(f"{direction.value} is closed: {len(asked)} rules in one tier")
        if position is Position.GROUPS:
            by_priority = tuple((_free_priority(rule), rule) for rule in asked)
        else:
            by_priority = tuple((TOP - place, rule) for place, rule in enumerate(asked))
        yield _Step(numbers[position], position, by_priority)
        numbers[position] += 1


def _free_priority(rule: Rule) -> int:
    """Of a rule whose order is free: SHADOW after ENFORCE, then by how much it looks at."""
    looks = 2 if rule.ports or rule.icmp_type is not None else 1 if rule.protocol else 0
    return (40000 if rule.mode is Mode.ENFORCE else 10000) - 1000 * looks


def _enter(step: int) -> bytes:
    """On with the next step. What a SHADOW rule would have passed ends with its position."""
    clear = act.set_field("reg13", 0, mask=Flag.SHADOW_PASSED) if step & 0xFFFF in (GROUPS, FIRST_BELOW, END) else b""
    return clear + act.set_field(Reg.STEP, step) + goto(Stage.JUDGE)


def _final(rule: Rule) -> bool:
    return rule.mode is Mode.ENFORCE and rule.action is not Action.PASS


def _says(rule: Rule, *, code: int) -> bytes:
    """What a rule does, but for going on."""
    match rule.mode, rule.action:
        case Mode.ENFORCE, Action.ALLOW:
            remember = act.set_field(Reg.RULE, rule.id) + act.set_field(Bits.ON_CHANGE, code)
            return remember + goto(Stage.PASSED)
        case Mode.ENFORCE, Action.DENY:
            return act.set_field(Reg.RULE, rule.id) + goto(Stage.DENIED)
        case Mode.SHADOW, Action.ALLOW:
            return act.set_field(Reg.SHADOW, NOT_DENIED)
        case Mode.SHADOW, Action.DENY:
            return act.set_field(Reg.SHADOW, rule.id)
        case Mode.SHADOW, Action.PASS:
            return act.set_field("reg13", Flag.SHADOW_PASSED, mask=Flag.SHADOW_PASSED)
    return b""


@lru_cache(CACHED)
def _claims(rule: Rule, priority: int, own: int, step: int, actions: bytes) -> tuple[_Claim, ...]:
    """What one rule wants."""
    always: dict[str, Value] = {Reg.OWN: own, Reg.STEP: step}
    if rule.mode is Mode.SHADOW:
        always |= {Reg.SHADOW: 0, "reg13": (0, Flag.SHADOW_PASSED)}
    terms = dimensions(rule)
    several = [term for term in terms if len(term) > 1]
    single: list[Fields] = [always, *(term[0] for term in terms if len(term) == 1)]
    if any(not term for term in terms) or merged(single) is None:
        return ()
    if len(several) > 1 and sum(map(len, several)) + 1 < prod(map(len, several)):
        return tuple(_conjunctive(rule, priority, several, single=single, always=always, actions=actions))
    plain = (merged([*single, *parts]) for parts in product(*several))
    return tuple(_Claim(priority, match(**fields), actions) for fields in plain if fields is not None)


def _conjunctive(
    rule: Rule, priority: int, several: Sequence[Dimension], *, single: Sequence[Fields], always: Fields, actions: bytes
) -> Iterator[_Claim]:
    for clause, alternatives in enumerate(several, start=1):
        satisfies = act.conjunction(rule.id, clause, len(several))
        for alternative in alternatives:
            fields = merged([*single, alternative])
            if fields is not None:
                yield _Claim(priority, match(**fields), satisfies, clause=True)
    yield _Claim(priority, match(**always, conj_id=rule.id), actions)


@lru_cache(4 * CACHED)
def _made(claim: _Claim) -> Flow:
    return flow(
        stage=Stage.JUDGE,
        priority=claim.priority,
        match_=claim.match,
        actions=claim.actions,
        feature=Feature.SECURITY,
    )


def _clauses(claims: Iterable[_Claim]) -> Flow:
    """A part of several conjunctive matches."""
    first, *others = claims
    actions = first.actions + b"".join(other.actions for other in others)
    return _made(_Claim(first.priority, first.match, actions, clause=True))
