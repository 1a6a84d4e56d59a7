"""Security groups and policy tiers on a host: who is guarded is in the port's own row, by what in rules/<identity>.

A guarded port whose rules are not here, or make no sense, is closed: JUDGE lets nothing pass that no flow of it does.
"""

from __future__ import annotations

from agent.desired import Pairs, Wants
from agent.inputs import Inputs
from agent.policy.compile import Judged, judge, opened_flows
from agent.policy.stages import stage_flows
from tealnet.core.rows.security import Direction
from tealnet.core.tables import Derived, Graph, Read


def declare(graph: Graph, inputs: Inputs) -> list[Wants]:
    """Everything this room wants."""

    def stages(read: Read, key: str) -> Pairs | None:
        return tuple((f.cookie, f) for f in stage_flows()) if read.get(inputs.this, key) else None

    def opened(read: Read, identity: int) -> Pairs | None:
        rules = read.get(inputs.rules, identity)
        return tuple((f.cookie, f) for _, f in opened_flows(rules)) if rules else None

    return [
        Wants("flow", graph.derive(inputs.this, stages)),
        Wants("flow", graph.derive(inputs.rules, opened), "rules"),
        *(_verdicts(graph, inputs, direction) for direction in Direction),
    ]


def _verdicts(graph: Graph, inputs: Inputs, direction: Direction) -> Wants:
    """The flows of JUDGE for one direction; the other one is not harmed by what is wrong with this one."""

    def judged(read: Read, identity: int) -> Judged | None:
        rules = read.get(inputs.rules, identity)
        return judge(rules, direction) if rules else None

    verdicts: Derived[int, Judged] = graph.derive(inputs.rules, judged)

    def flows(read: Read, identity: int) -> Pairs | None:
        verdict = read.get(verdicts, identity)
        if verdict is not None and verdict.error is not None:
            raise verdict.error  # reported as a failure of rules/<identity>
        return tuple((f.cookie, f) for f in verdict.flows) if verdict else None

    return Wants("flow", graph.derive(verdicts, flows), "rules")
