"""Conntrack in the pipeline: who is tracked, what a connection remembers, and the flows of its stages.

A port's zone is its ofport. A packet between two ports of one host passes two zones, the sender's (FROM) and the
target's (TO). A connection remembers in each zone its color (ct_mark[0..7]) and the rule that let it in
(ct_label[0..31], 0 = none), and what is to become of it when that rule goes (ct_label[32..33]). Untracked ports skip
all of these stages, and with them all policy.

    CT_FROM → POLICY_FROM → … ENDPOINT → EGRESS → CT_TO (commits FROM) → COMMITTED_FROM → CT_TO
    CT_TO → POLICY_TO (→ ADOPTED_TO) → INGRESS → COMMIT_TO → COMMITTED_TO → OUTPUT

EGRESS and INGRESS let everything pass unless a room puts verdicts there; packets of open connections come by, too.
EGRESS is after ENDPOINT because a rule may name the target's identity.

Every `ct` ends its list of actions, and where it goes on, what is invalid is dropped first. Conntrack on netdev
collects fragments; what is not complete after 15 s it puts, as invalid, into whatever batch comes by, and it takes the
rest of that batch's way (measured, Open vSwitch 3.1): `ct(commit),output` would let it out unjudged, to anybody.

A TCP packet in the middle of a connection that a zone does not know (after a start of vswitchd, or when the domain
has just got colors) has no color. From a sender without color it goes to every color of the network (`MID_STREAM`),
and both ends remember UNKNOWN. A twin that is not meant answers with a reset, which ends at its own port; the color of
the one that goes on with the connection becomes the connection's.

An answer to a question that passed while nobody was tracked is invalid to conntrack: of TCP the second packet, of ICMP
an echo reply. It passes where no rules guard, as if it were not tracked either; it is in no zone afterwards. Not in
pieces: what comes by as an invalid fragment may be anybody's (docs/adr/0013-verdicts.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.openflow import actions as act
from agent.openflow.flow import Flow
from agent.openflow.oxm import Value, match
from agent.pipeline import COLOR_MASK, TARGET_COLORED, Bits, Feature, Flag, Mask, Reg, Stage, flow, goto
from tealnet.core.rows.colors import COLORS
from tealnet.core.rows.stream import Segment

FAMILIES = ("ip", "ipv6")
SYN, RST, NO_RST = (0x002, 0x012), (0x004, 0x004), (0x000, 0x004)  # of tcp_flags: a first packet, a reset, no reset
SYN_ACK = (0x012, 0x012)  # … the second one
NOT_SYN: Mask = (0, 0x002)
UNKNOWN = 0xFF  # the mark of a connection whose color is being asked for
ANSWERED = 0x100  # of the mark, in the zone of a sender without color: the other end has taken the TCP connection
MARK = "ct_mark[0..7]"
ZONE_FROM, ZONE_TO = "reg11[0..15]", "reg11[16..31]"
NO_COLOR: Mask = (0, COLOR_MASK)
NEW_FROM: Mask = (Flag.NEW_FROM, Flag.NEW_FROM)
SOURCE_COLORED: Mask = (Flag.SOURCE_COLORED, Flag.SOURCE_COLORED)
MANY_ASKED: Mask = (Flag.MANY_COLORS, Flag.MANY_COLORS | Flag.SOURCE_COLORED)


def colored(segments: Iterable[Segment]) -> bool:
    """Whether a routing domain has colors: then every port of it is tracked."""
    return any(segment.color for segment in segments)


def _rule() -> bytes:
    return act.move(Reg.RULE, Bits.CT_RULE) + act.move(Bits.ON_CHANGE, Bits.CT_ON_CHANGE)


def remember() -> bytes:
    """What a commit writes down: the packet's color, the rule that let it pass, what happens when that goes."""
    return act.move(Reg.COLOR, MARK) + _rule()


def ask() -> bytes:
    """The same for a connection whose color is not known."""
    return act.set_field("ct_mark", UNKNOWN, mask=0xFF) + _rule()


def adopt() -> bytes:
    """Give an established connection in the target's zone the packet's color; the rule stays."""
    return act.ct(zone=ZONE_TO, table=Stage.ADOPTED_TO, flags=act.CT_COMMIT, actions=act.move(Reg.COLOR, MARK))


def color_is(color: int) -> Mask:
    """Metadata of packets of one color, in any domain."""
    return (color << 32, COLOR_MASK)


def conntrack_flows() -> Iterator[Flow]:
    """What does not depend on any tenant."""
    for part in (_track, _policy_from, _commit_from, _policy_to, _commit_to):
        yield from part()


def _flow(stage: Stage, priority: int, actions: bytes, **fields: Value) -> Flow:
    return flow(stage=stage, priority=priority, match_=match(**fields), actions=actions, feature=Feature.BASE)


def _families(stage: Stage, priority: int, actions: bytes, **fields: Value) -> Iterator[Flow]:
    """The same for both: conntrack wants to know what it looks at."""
    for family in FAMILIES:
        yield _flow(stage, priority, actions, **fields, **{family: True})


def _tcp(stage: Stage, priority: int, actions: bytes, **fields: Value) -> Iterator[Flow]:
    for family in ("tcp", "tcp6"):
        yield _flow(stage, priority, actions, **fields, **{family: True})


def _mark(bits: int) -> bytes:
    """Raise flags."""
    return act.set_field("reg13", bits, mask=bits)


def _track() -> Iterator[Flow]:
    stage = Stage.CT_FROM
    track = act.ct(zone=ZONE_FROM, table=Stage.POLICY_FROM)
    yield from _families(stage, 10, track, reg13=(Flag.CT_FROM, Flag.CT_FROM))
    yield _flow(stage, 0, goto(Stage.ROUTE))
    stage = Stage.CT_TO
    forget = act.set_field(Reg.RULE, 0) + act.set_field(Bits.ON_CHANGE, 0) + act.ct_clear()
    track = forget + act.ct(zone=ZONE_TO, table=Stage.POLICY_TO)
    yield from _families(stage, 80, track, reg4=0, reg13=(Flag.CT_TO, Flag.CT_TO))


def answers(stage: Stage, priority: int, actions: bytes, **fields: Value) -> Iterator[Flow]:
    """Invalid to conntrack, as it has not seen the question."""
    for first in ({"tcp": True, "tcp_flags": SYN_ACK}, {"icmp": True, "icmp_type": 0}):
        yield _flow(stage, priority, actions, ct_state="+trk+inv", nw_frag="no", **fields, **first)
    for first in ({"tcp6": True, "tcp_flags": SYN_ACK}, {"icmp6": True, "icmpv6_type": 129}):
        yield _flow(stage, priority, actions, ct_state="+trk+inv", nw_frag="no", **fields, **first)


def _policy_from() -> Iterator[Flow]:
    """The sender's zone: take an established connection's color, say what is new."""
    stage, known, on = Stage.POLICY_FROM, "+trk-new", goto(Stage.ROUTE)
    unknown: Mask = (UNKNOWN, 0xFF)
    new = _mark(Flag.NEW_FROM) + on
    yield from answers(stage, 101, on, reg13=(0, Flag.POLICY_FROM))
    yield _flow(stage, 100, b"", ct_state="+trk+inv")
    # A colored port that was asked whether a connection is its own: a reset says no.
    yield from _tcp(stage, 97, b"", ct_state=known, ct_mark=unknown, reg13=SOURCE_COLORED, tcp_flags=RST)
    answer = _mark(Flag.REMARK_FROM) + on
    yield _flow(stage, 96, answer, ct_state=known, ct_mark=unknown, reg13=SOURCE_COLORED)
    # Nobody has answered yet: ask again; but with a new connection the old one's ports are free again.
    yield from _tcp(stage, 95, new, ct_state=known, ct_mark=unknown, tcp_flags=SYN)
    yield _flow(stage, 94, _mark(Flag.MID_STREAM) + on, ct_state=known, ct_mark=unknown)
    pinned = act.move(MARK, Reg.COLOR)
    yield _flow(stage, 90, pinned + on, ct_state=known, metadata=NO_COLOR)
    yield _flow(stage, 80, on, ct_state=known)
    # An attempt that nobody has answered gets its color anew: a client's port may have been given out again.
    yield from _tcp(stage, 79, new, ct_state="+trk+new", metadata=NO_COLOR, tcp_flags=SYN)
    # Conntrack calls a connection new until it is answered: the kernel's any, Open vSwitch's own those of UDP and ICMP.
    for color in range(1, COLORS + 1):
        again: dict[str, Value] = {"ct_mark": (color, 0xFF), "metadata": NO_COLOR}
        yield _flow(stage, 78, pinned + new, ct_state="+trk+new", **again)
    middle = _mark(Flag.NEW_FROM | Flag.MID_STREAM) + on
    yield from _tcp(stage, 75, middle, ct_state="+trk+new", metadata=NO_COLOR, tcp_flags=NOT_SYN)
    yield _flow(stage, 70, new, ct_state="+trk+new")


def _commit_from() -> Iterator[Flow]:
    """The target is known, and egress rules have let it pass: the sender's zone remembers."""
    stage = Stage.CT_TO
    done = act.set_field("reg13", 0, mask=Flag.NEW_FROM | Flag.REMARK_FROM)

    def commit(actions: bytes) -> bytes:
        return done + act.ct(zone=ZONE_FROM, table=Stage.COMMITTED_FROM, flags=act.CT_COMMIT, actions=actions)

    both = Flag.NEW_FROM | Flag.MID_STREAM
    yield from _families(stage, 102, commit(ask()), reg13=(both, both))
    yield from _families(stage, 100, commit(remember()), reg13=NEW_FROM)
    color = act.move(Reg.COLOR, MARK)
    yield from _families(stage, 90, commit(color), reg13=(Flag.REMARK_FROM, Flag.REMARK_FROM))
    yield from _after_ct(Stage.COMMITTED_FROM, then=Stage.CT_TO)


def _after_ct(stage: Stage, *, then: Stage) -> Iterator[Flow]:
    yield _flow(stage, 100, b"", ct_state="+trk+inv")
    yield _flow(stage, 0, goto(then))


def _policy_to() -> Iterator[Flow]:
    """The target's zone: an established connection keeps its color, a new one is judged."""
    stage, known, judge = Stage.POLICY_TO, "+trk-new", goto(Stage.INGRESS)
    unknown: Mask = (UNKNOWN, 0xFF)
    yield from answers(stage, 101, goto(Stage.OUTPUT), reg13=(0, Flag.POLICY_TO))
    yield _flow(stage, 100, b"", ct_state="+trk+inv")
    yield _flow(stage, 96, judge, ct_state=known, ct_mark=unknown, reg13=TARGET_COLORED)  # asked again
    yield from _families(stage, 95, adopt(), ct_state=known, ct_mark=unknown)  # the answer
    answered = act.set_field("ct_mark", ANSWERED, mask=ANSWERED)
    take = act.ct(zone=ZONE_TO, table=Stage.ADOPTED_TO, flags=act.CT_COMMIT, actions=answered)
    for color in range(1, COLORS + 1):  # whether colors answer is what gates of rollouts ask
        first: dict[str, Value] = {"ct_mark": (color, 0xFF | ANSWERED), "metadata": color_is(color)}
        first |= {"reg13": (0, Flag.TARGET_COLORED), "tcp_flags": NO_RST}
        yield from _tcp(stage, 92, take, ct_state="+trk-new+rpl", **first)
    for color in range(COLORS + 1):
        yield _flow(stage, 90, judge, ct_state=known, ct_mark=(color, 0xFF), metadata=color_is(color))
    # Only packets of its own color reach a colored port, and only such without color go between ports without: another
    # mark is from before the network got, lost or renumbered its colors.
    yield from _families(stage, 88, adopt(), ct_state=known, reg13=TARGET_COLORED)
    yield from _families(stage, 88, adopt(), ct_state=known, metadata=NO_COLOR)
    yield from _after_ct(Stage.ADOPTED_TO, then=Stage.INGRESS)
    yield from collision_flows()
    for color in range(1, COLORS + 1):  # unanswered yet, as in the sender's zone
        yield _flow(stage, 79, judge, ct_state="+trk+new", ct_mark=(color, 0xFF), metadata=color_is(color))
    middle = _mark(Flag.MID_STREAM) + judge
    yield from _tcp(stage, 75, middle, ct_state="+trk+new", tcp_flags=NOT_SYN, reg13=MANY_ASKED)
    yield _flow(stage, 70, judge, ct_state="+trk+new")


def collision_flows() -> Iterator[Flow]:
    """Another color's packet on a connection's 5-tuple: twins exclude each other until it closes (agent/tally.py)."""
    yield _flow(Stage.POLICY_TO, 80, b"", ct_state="+trk-new")
    for color in range(1, COLORS + 1):  # unanswered yet
        marked: Mask = (color, 0xFF)
        yield _flow(Stage.POLICY_TO, 78, b"", ct_state="+trk+new", ct_mark=marked, reg13=(0, Flag.TARGET_COLORED))


def _commit_to() -> Iterator[Flow]:
    for priority, what, fields in (
        (20, ask(), {"reg13": (Flag.MID_STREAM, Flag.MID_STREAM)}),
        (10, remember(), {}),
    ):
        actions = act.ct(zone=ZONE_TO, table=Stage.COMMITTED_TO, flags=act.CT_COMMIT, actions=what)
        yield from _families(Stage.COMMIT_TO, priority, actions, **fields)
    yield from _after_ct(Stage.COMMITTED_TO, then=Stage.OUTPUT)
    # What is open passes, unless a room has more to say of it.
    yield _flow(Stage.INGRESS, 10, goto(Stage.OUTPUT), ct_state="+trk-new")
