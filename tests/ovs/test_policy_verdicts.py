"""Rules as flows, against an evaluator that knows no flows: real frames and conntrack decide who is right."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from agent.policy.compile import judge
from tealnet.core.rows.security import Action, Direction, Mode, Position, Rules
from tests.ovs import datagrams
from tests.ovs.datagrams import ICMP, ICMPV6, SCTP, SYN, TCP, UDP
from tests.ovs.guarded import Guarded, ends
from tests.ovs.policies import IDENTITIES, random_rules
from tests.ovs.sandbox import Sandbox
from tests.ovs.verdicts import Connection, Verdict, evaluate
from tests.samples import samples

pytestmark = pytest.mark.ovs

PORTS = dict(zip((2, 3, 4), IDENTITIES, strict=True))
TRIED = (79, 80, 83, 443, 8050, 9000)
GRE = 47


def tries() -> Iterator[tuple[int, int, Connection, bytes]]:
    """Every ordered pair of ports × family × protocol × port: (from, to, connection, packet)."""
    number = itertools.count(1)
    for (source, target), version in itertools.product(itertools.permutations(PORTS, 2), (4, 6)):
        both = ends(source, target, version)
        for protocol, make in ((TCP, None), (UDP, datagrams.udp), (SCTP, datagrams.sctp)):
            for port in TRIED:
                if protocol == SCTP and source > target:
                    continue  # as for GRE below
                mark = next(number).to_bytes(4, "big")
                pair = (20000 + source, port)
                packet = make(both, pair, data=mark) if make else datagrams.tcp(both, pair, SYN, data=mark)
                yield source, target, Connection(*both, protocol, port), packet
        for kind, code in ((8, 0), (13, 0)) if version == 4 else ((128, 0),):
            mark = next(number).to_bytes(4, "big")
            packet = datagrams.icmp(both, kind, code, number=kind + code, data=mark)
            protocol = ICMP if version == 4 else ICMPV6
            yield source, target, Connection(*both, protocol, code, kind), packet
        if source < target:  # without ports there is one connection between two addresses: the rest are answers
            mark = next(number).to_bytes(4, "big")
            yield source, target, Connection(*both, GRE), datagrams.datagram(both, GRE, bytes(4) + mark)


TRIES = list(tries())


def verdicts(rules: dict[int, Rules]) -> list[tuple[Verdict, Verdict]]:
    """At the sender's end and at the target's."""
    return [
        (
            evaluate(rules[PORTS[source]], Direction.EGRESS, connection, PORTS[target]),
            evaluate(rules[PORTS[target]], Direction.INGRESS, connection, PORTS[source]),
        )
        for source, target, connection, _ in TRIES
    ]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    with Sandbox() as ovs:
        host = Guarded(ovs)
        for number, identity in PORTS.items():
            host.plug(number, identity=identity)
        yield host


@seed(4)
@settings(
    max_examples=samples(16, many=300),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),  # shrinking takes minutes
)
@given(policy=st.tuples(*(random_rules(identity) for identity in IDENTITIES)))
async def test_frames_go_where_the_evaluator_says(guarded: Guarded, policy: tuple[Rules, ...]) -> None:
    rules = {each.identity: each for each in policy}
    guarded.put(*policy)
    await guarded.load()
    await guarded.forget()
    before = await guarded.counters()
    out = await guarded.send(*((source, packet) for source, _, _, packet in TRIES))
    came = {(number, found.payload[-4:]) for number, frames in out.items() for found in frames}
    expected = verdicts(rules)
    for (_, target, connection, packet), (egress, ingress) in zip(TRIES, expected, strict=True):
        arrived = (target, packet[-4:]) in came
        assert arrived == (egress.passes and ingress.passes), (connection, egress, ingress)
    assert len(came) == sum(egress.passes and ingress.passes for egress, ingress in expected)
    await check_counters(guarded, rules, expected, before=before)


async def check_counters(
    guarded: Guarded,
    rules: dict[int, Rules],
    expected: list[tuple[Verdict, Verdict]],
    *,
    before: Mapping[str, tuple[int, int]],
) -> None:
    """Each rule has counted what it has decided, or would have; rules of groups may share, so they are summed up."""
    decided: Counter[tuple[int, Direction, int]] = Counter()
    alike: dict[tuple[int, Direction, Mode], set[int]] = {}
    for identity, direction in itertools.product(rules, Direction):
        for tier in rules[identity].tiers:
            for each in tier.rules if tier.position is Position.GROUPS else ():
                alike.setdefault((identity, direction, each.mode), set()).add(each.id)

    def one(identity: int, direction: Direction, ids: frozenset[int]) -> tuple[int, Direction, int]:
        return identity, direction, min(ids)

    for (source, target, _, _), (egress, ingress) in zip(TRIES, expected, strict=True):
        for identity, direction, verdict in (
            (PORTS[source], Direction.EGRESS, egress),
            (PORTS[target], Direction.INGRESS, ingress),
        ):
            if direction is Direction.INGRESS and not egress.passes:
                continue
            if not (verdict.passes and verdict.rule == {0}):
                decided[one(identity, direction, verdict.rule)] += 1
            if verdict.shadow and (verdict.passes or verdict.shadow != {0}):
                decided[one(identity, direction, verdict.shadow)] += 1
    after = await guarded.counters()
    counted_now = {cookie: packets - before.get(cookie, (0, 0))[0] for cookie, (packets, _) in after.items()}
    for identity, direction in itertools.product(rules, Direction):
        judged = judge(rules[identity], direction)
        seen: Counter[int] = Counter()
        for counted in judged.counted:
            seen[counted.rule] = sum(counted_now[hex(cookie)] for cookie in counted.deciding)
            assert bool(counted.flows) or not counted.deciding
        for mode in Mode:
            group = alike.get((identity, direction, mode), set())
            assert sum(seen[number] for number in group) == sum(
                decided[identity, direction, number] for number in group
            )
        ordered = {
            each.id
            for tier in rules[identity].tiers
            for each in tier.rules
            if tier.position is not Position.GROUPS and each.direction is direction
        }
        for number in ordered | {0}:
            passed = Action.PASS in {c.action for c in judged.counted if c.rule == number}
            assert passed or seen[number] == decided[identity, direction, number], number
