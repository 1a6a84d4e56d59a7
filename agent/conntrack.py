"""Conntrack in the pipeline: who is tracked, what a connection remembers, and the flows of its stages.

A port's zone is its ofport. A packet between two ports of one host passes two zones, the sender's (FROM) and the
target's (TO). A connection remembers in each zone its color (ct_mark[0..7]) and the rule that let it in
(ct_label[0..31], 0 = none), and what is to become of it when that rule goes (ct_label[32..33]). Untracked ports skip
all of these stages, and with them all policy.

    CT_FROM → POLICY_FROM → … ENDPOINT → EGRESS → CT_TO (commits FROM) → COMMITTED_FROM → CT_TO
    CT_TO → POLICY_TO → INGRESS → COMMIT_TO → COMMITTED_TO → OUTPUT

EGRESS and INGRESS let everything pass unless a room puts verdicts there; packets of open connections come by, too.
EGRESS is after ENDPOINT because a rule may name the target's identity.

Every `ct` ends its list of actions, and where it goes on, what is invalid is dropped first. Conntrack on netdev
collects fragments; what is not complete after 15 s it puts, as invalid, into whatever batch comes by, and it takes the
rest of that batch's way (measured, Open vSwitch 3.1): `ct(commit),output` would let it out unjudged, to anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.openflow import actions as act
from agent.openflow.flow import Flow
from agent.openflow.oxm import match
from agent.pipeline import COLORS, Bits, Feature, Flag, Mask, Reg, Stage, flow, goto
from tealnet.core.rows.stream import Segment

FAMILIES = ("ip", "ipv6")
NO_COLOR: Mask = (0, 0xFF00000000)
NEW_FROM: Mask = (Flag.NEW_FROM, Flag.NEW_FROM)


def colored(segments: Iterable[Segment]) -> bool:
    """Whether a routing domain has colors: then every port of it is tracked."""
    return any(segment.color for segment in segments)


def remember() -> bytes:
    """What a commit writes down: the packet's color, the rule that let it pass, what happens when that goes."""
    rule = act.move(Reg.RULE, Bits.CT_RULE) + act.move(Bits.ON_CHANGE, Bits.CT_ON_CHANGE)
    return act.move(Bits.COLOR, Bits.CT_COLOR) + rule


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
    pinned = act.move(Bits.CT_COLOR, Bits.COLOR) + goto(Stage.ROUTE)
    yield _base(stage=stage, priority=90, match_=match(ct_state="+trk-new", metadata=NO_COLOR), actions=pinned)
    yield _base(stage=stage, priority=80, match_=match(ct_state="+trk-new"), actions=goto(Stage.ROUTE))
    new = act.set_field("reg13", Flag.NEW_FROM, mask=Flag.NEW_FROM) + goto(Stage.ROUTE)
    yield _base(stage=stage, priority=70, match_=match(ct_state="+trk+new"), actions=new)

    commit = act.set_field("reg13", 0, mask=Flag.NEW_FROM) + act.ct(
        zone="reg11[0..15]", table=Stage.COMMITTED_FROM, flags=act.CT_COMMIT, actions=remember()
    )
    for family in FAMILIES:
        yield _base(stage=Stage.CT_TO, priority=100, match_=match(reg13=NEW_FROM, **{family: True}), actions=commit)
    yield from _committed(Stage.COMMITTED_FROM, then=Stage.CT_TO)


def _committed(stage: Stage, *, then: Stage) -> Iterator[Flow]:
    yield _base(stage=stage, priority=100, match_=match(ct_state="+trk+inv"), actions=b"")
    yield _base(stage=stage, priority=0, match_=match(), actions=goto(then))


def _to() -> Iterator[Flow]:
    """The target's zone: an established connection keeps its color, a new one is judged and committed."""
    for family in FAMILIES:
        forget = act.set_field(Reg.RULE, 0) + act.set_field(Bits.ON_CHANGE, 0) + act.ct_clear()
        track = forget + act.ct(zone="reg11[16..31]", table=Stage.POLICY_TO)
        wanted = match(reg4=0, reg13=(Flag.CT_TO, Flag.CT_TO), **{family: True})
        yield _base(stage=Stage.CT_TO, priority=80, match_=wanted, actions=track)

    stage = Stage.POLICY_TO
    yield _base(stage=stage, priority=100, match_=match(ct_state="+trk+inv"), actions=b"")
    for color in range(COLORS + 1):
        same = match(ct_state="+trk-new", ct_mark=(color, 0xFF), metadata=color_is(color))
        yield _base(stage=stage, priority=90, match_=same, actions=goto(Stage.INGRESS))
    # Another color's packet on this connection's 5-tuple: twins exclude each other until it closes (B3).
    yield _base(stage=stage, priority=80, match_=match(ct_state="+trk-new"), actions=b"")
    yield _base(stage=stage, priority=70, match_=match(ct_state="+trk+new"), actions=goto(Stage.INGRESS))

    yield _base(stage=Stage.INGRESS, priority=10, match_=match(ct_state="+trk-new"), actions=goto(Stage.OUTPUT))
    for family in FAMILIES:
        commit = act.ct(zone="reg11[16..31]", table=Stage.COMMITTED_TO, flags=act.CT_COMMIT, actions=remember())
        yield _base(stage=Stage.COMMIT_TO, priority=10, match_=match(**{family: True}), actions=commit)
    yield from _committed(Stage.COMMITTED_TO, then=Stage.OUTPUT)
