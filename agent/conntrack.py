"""Conntrack in the pipeline: who is tracked, what a connection remembers, and the flows of its stages.

A port's zone is its ofport. A packet between two ports of one host passes two zones, the sender's (FROM) and the
target's (TO). A connection remembers in each zone its color (ct_mark[0..7]) and the rule that let it in
(ct_label[0..31], 0 = none). Untracked ports skip all of these stages, and with them all policy.

    CT_FROM → POLICY_FROM → … ENDPOINT → EGRESS → CT_TO (commits FROM) → POLICY_TO → INGRESS → COMMIT_TO → OUTPUT

EGRESS and INGRESS let everything pass unless a room puts verdicts there; they are asked about new connections only.
EGRESS is after ENDPOINT because a rule may name the target's identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.openflow import actions as act
from agent.openflow.flow import Flow
from agent.openflow.oxm import match
from agent.pipeline import COLORS, Feature, Flag, Mask, Stage, flow, goto
from tealnet.core.rows.stream import Segment

FAMILIES = ("ip", "ipv6")
COLOR_BITS = "metadata[32..39]"
NO_COLOR: Mask = (0, 0xFF00000000)
NEW_FROM: Mask = (Flag.NEW_FROM, Flag.NEW_FROM)


def colored(segments: Iterable[Segment]) -> bool:
    """Whether a routing domain has colors: then every port of it is tracked."""
    return any(segment.color for segment in segments)


def remember() -> bytes:
    """What a commit writes down: the packet's color and the rule in reg15."""
    return act.move(COLOR_BITS, "ct_mark[0..7]") + act.move("reg15", "ct_label[0..31]")


def color_is(color: int) -> Mask:
    """Metadata of packets of one color, in any domain."""
    return (color << 32, 0xFF00000000)


def conntrack_flows() -> Iterator[Flow]:
    """What does not depend on any tenant."""
    yield from _from()
    yield from _to()


def _base(*, stage: Stage, priority: int, match_: bytes, actions: bytes) -> Flow:
    return flow(stage=stage, priority=priority, match_=match_, actions=actions, feature=Feature.BASE)


def _from() -> Iterator[Flow]:
    """The sender's zone: look it up, take an established connection's color, and commit what is new."""
    for family in FAMILIES:
        wanted = match(reg13=(Flag.CT_FROM, Flag.CT_FROM), **{family: True})
        track = act.ct(zone="reg11[0..15]", table=Stage.POLICY_FROM)
        yield _base(stage=Stage.CT_FROM, priority=10, match_=wanted, actions=track)
    yield _base(stage=Stage.CT_FROM, priority=0, match_=match(), actions=goto(Stage.ROUTE))

    stage = Stage.POLICY_FROM
    yield _base(stage=stage, priority=100, match_=match(ct_state="+trk+inv"), actions=b"")
    pinned = act.move("ct_mark[0..7]", COLOR_BITS) + goto(Stage.ROUTE)
    yield _base(stage=stage, priority=90, match_=match(ct_state="+trk-new", metadata=NO_COLOR), actions=pinned)
    yield _base(stage=stage, priority=80, match_=match(ct_state="+trk-new"), actions=goto(Stage.ROUTE))
    new = act.set_field("reg13", Flag.NEW_FROM, mask=Flag.NEW_FROM) + goto(Stage.ROUTE)
    yield _base(stage=stage, priority=70, match_=match(ct_state="+trk+new"), actions=new)

    commit = (
        act.ct(zone="reg11[0..15]", flags=act.CT_COMMIT, actions=remember())
        + act.set_field("reg13", 0, mask=Flag.NEW_FROM)
        + goto(Stage.CT_TO)
    )
    for family in FAMILIES:
        yield _base(stage=Stage.CT_TO, priority=100, match_=match(reg13=NEW_FROM, **{family: True}), actions=commit)


def _to() -> Iterator[Flow]:
    """The target's zone: an established connection keeps its color, a new one is judged and committed."""
    for family in FAMILIES:
        track = act.set_field("reg15", 0) + act.ct_clear() + act.ct(zone="reg11[16..31]", table=Stage.POLICY_TO)
        wanted = match(reg4=0, reg13=(Flag.CT_TO, Flag.CT_TO), **{family: True})
        yield _base(stage=Stage.CT_TO, priority=80, match_=wanted, actions=track)

    stage = Stage.POLICY_TO
    yield _base(stage=stage, priority=100, match_=match(ct_state="+trk+inv"), actions=b"")
    for color in range(COLORS + 1):
        same = match(ct_state="+trk-new", ct_mark=(color, 0xFF), metadata=color_is(color))
        yield _base(stage=stage, priority=90, match_=same, actions=goto(Stage.OUTPUT))
    # Another color's packet on this connection's 5-tuple: twins exclude each other until it closes (B3).
    yield _base(stage=stage, priority=80, match_=match(ct_state="+trk-new"), actions=b"")
    yield _base(stage=stage, priority=70, match_=match(ct_state="+trk+new"), actions=goto(Stage.INGRESS))

    for family in FAMILIES:
        commit = act.ct(zone="reg11[16..31]", flags=act.CT_COMMIT, actions=remember()) + goto(Stage.OUTPUT)
        yield _base(stage=Stage.COMMIT_TO, priority=10, match_=match(**{family: True}), actions=commit)
