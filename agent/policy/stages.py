"""The stages that judge packets of guarded ports: what does not depend on any rule.

    EGRESS, INGRESS ─ new ──→ JUDGE ──→ PASSED → SETTLED → CT_TO, COMMIT_TO (which commit)
              └── open ─→ OPENED ┘└───→ DENIED
                            └──→ ONWARD → CT_TO, OUTPUT

EGRESS asks for the sender's port, INGRESS for the target's; from then on it is the *own* port and the *remote* end.
Rules match what opened the connection (the ct_ fields), so they say the same about packets that go back, and about
fragments but the later ones: conntrack lets all of a datagram out or nothing, so its first fragment speaks for it.

OPENED has a flow for each rule that lets connections in: it counts their packets, and says that the rule is still
there. Where it is not, what the connection remembers and what its port's rules say now decide, the strictest of both.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.openflow import actions as act
from agent.openflow.flow import Flow
from agent.openflow.oxm import Value, match
from agent.pipeline import Bits, Feature, Flag, Mask, Reg, Stage, flow, goto
from agent.policy.terms import VALID
from tealnet.core.rows.security import SCTP, Direction, OnChange

FAMILIES = ("ip", "ipv6")
STEP_OF = {Direction.EGRESS: 0, Direction.INGRESS: 1 << 31}  # a verdict begins at step 0 of its direction
NOT_DENIED = 0xFFFFFFFF  # in Reg.SHADOW
FALLBACK = 1  # the id that a connection remembers which no rule has let in, but fallback SHADOW
SHOWN = 128  # bytes of a denied packet: headers and a few options
CODES = {OnChange.KEEP: 0, OnChange.REEVALUATE: 1, OnChange.CUT: 2}
CODE_OF_LABEL = 32  # bit
NONE: Mask = (0, 0xFFFFFFFF)  # of ct_label: no rule
SYN, RESET = (0x002, 0x012), (0x004, 0x004)  # of tcp_flags: who wants to connect; a reset
POLICY_FROM: Mask = (Flag.POLICY_FROM, Flag.POLICY_FROM)
POLICY_TO: Mask = (Flag.POLICY_TO, Flag.POLICY_TO)
AT_TARGET: Mask = (Flag.AT_TARGET, Flag.AT_TARGET)
SENT: Mask = (0, Flag.AT_TARGET)  # by the own port

# Priorities in OPENED.
UNJUDGED, IS_THERE, CUT, CUT_NOW, AGAIN, AGAIN_NOW = 110, 100, 80, 70, 60, 50


def remembers(code: OnChange) -> Mask:
    """ct_label of connections that were opened when their port's rules said so."""
    return (CODES[code] << CODE_OF_LABEL, 3 << CODE_OF_LABEL)


def stage_flows() -> Iterator[Flow]:
    """All of it."""
    yield from _asked(Stage.EGRESS, own=Reg.IDENTITY_FROM, remote=Reg.IDENTITY_TO, forward=Direction.EGRESS)
    yield from _asked(Stage.INGRESS, own=Reg.IDENTITY_TO, remote=Reg.IDENTITY_FROM, forward=Direction.INGRESS)
    yield from _opened()
    yield from _judged()


def policy_flow(stage: Stage, priority: int, actions: bytes, **fields: Value) -> Flow:
    """One flow of this room; no actions = drop."""
    return flow(stage=stage, priority=priority, match_=match(**fields), actions=actions, feature=Feature.SECURITY)


def _asked(stage: Stage, *, own: str, remote: str, forward: Direction) -> Iterator[Flow]:
    """Whose rules are asked, and which. A connection that came from the other side is judged as that side opened it."""
    at_target = stage is Stage.INGRESS
    guarded = POLICY_TO if at_target else POLICY_FROM
    verdict = Flag.AT_TARGET | Flag.SHADOW_PASSED
    common = (
        act.move(own, Reg.OWN)
        + act.move(remote, Reg.REMOTE)
        + act.set_field(Reg.SHADOW, 0)
        + act.set_field("reg13", Flag.AT_TARGET if at_target else 0, mask=verdict)
    )
    backward = Direction.EGRESS if at_target else Direction.INGRESS
    unknown = act.set_field(Reg.STEP, STEP_OF[forward]) + goto(Stage.JUDGE)
    yield policy_flow(stage, 34, common + unknown, reg13=guarded, ct_state="+trk+new-inv", ct_label=NONE)
    # An attempt to connect is judged each time until it is answered: conntrack knows it for 30 s by its ports alone,
    # which the client may have given out again (docs/adr/0019-attempts.md).
    for family in ("tcp", "tcp6"):
        attempt: dict[str, Value] = {"ct_state": "+trk+new-inv-rpl", "tcp_flags": SYN, family: True}
        yield policy_flow(stage, 35, common + unknown, reg13=guarded, **attempt)
    # Of others nobody can say where one ends and the next begins. Let in already, only not answered yet: there is
    # nothing to be judged or written down.
    again = act.set_field("reg13", 0, mask=Flag.NEW_FROM) + act.set_field(Reg.STEP, STEP_OF[forward])
    yield policy_flow(stage, 33, common + again + goto(Stage.OPENED), reg13=guarded, ct_state="+trk+new-inv")
    for priority, state, direction, then in (
        (32, "+trk-new-inv-rpl", forward, Stage.OPENED),
        (31, "+trk-new-inv+rpl", backward, Stage.OPENED),
    ):
        actions = common + act.set_field(Reg.STEP, STEP_OF[direction]) + goto(then)
        yield policy_flow(stage, priority, actions, reg13=guarded, ct_state=state)
    yield policy_flow(stage, 30, b"", reg13=guarded)


def _opened() -> Iterator[Flow]:
    stage = Stage.OPENED
    yield policy_flow(stage, UNJUDGED, goto(Stage.JUDGE), ct_label=NONE)
    # On netdev conntrack takes all SCTP between two addresses for one connection.
    yield policy_flow(stage, UNJUDGED, goto(Stage.JUDGE), ct_state=VALID, ct_nw_proto=SCTP)
    yield from cut(CUT, ct_label=remembers(OnChange.CUT))
    yield policy_flow(stage, AGAIN, goto(Stage.JUDGE), ct_label=remembers(OnChange.REEVALUATE))
    yield policy_flow(stage, 0, goto(Stage.ONWARD))
    yield policy_flow(Stage.ONWARD, 10, goto(Stage.OUTPUT), reg13=AT_TARGET)
    yield policy_flow(Stage.ONWARD, 0, goto(Stage.CT_TO))


def cut(priority: int, **fields: Value) -> Iterator[Flow]:
    """Nothing gets to the guarded end any more but resets. Of TCP it is heard until its socket is closed.

    A reset is taken only with the sequence number that is due, by conntrack and by who gets it (RFC 5961): had the
    other end missed the last data before it, it would hear of nothing, and wait.
    """
    for family in ("tcp", "tcp6"):
        for passes in ({"tcp_flags": RESET}, {"reg13": SENT}):
            yield policy_flow(Stage.OPENED, priority + 1, goto(Stage.ONWARD), **passes, **fields, **{family: True})
    yield policy_flow(Stage.OPENED, priority, b"", **fields)


def _judged() -> Iterator[Flow]:
    for family in FAMILIES:
        later: dict[str, Value] = {"nw_frag": "later", family: True}
        yield policy_flow(Stage.JUDGE, 65535, goto(Stage.PASSED), **later)
    denied = act.set_field(Reg.RULE, 0) + goto(Stage.DENIED)
    yield policy_flow(Stage.JUDGE, 0, denied)  # no rules are here
    show = act.to_controller(SHOWN)
    yield policy_flow(Stage.DENIED, 10, show)  # at priority 0 it would be a table miss, and shown as such

    stage = Stage.PASSED
    for word in (0, NOT_DENIED):
        yield policy_flow(stage, 20, goto(Stage.SETTLED), reg3=word)
    yield policy_flow(stage, 10, show + goto(Stage.SETTLED))

    # All fragments of a datagram must look alike to conntrack from here on, or it would not put them together; so it
    # does not remember a rule yet, and the next whole packet is judged again.
    stage = Stage.SETTLED
    alike = act.set_field("xxreg0", 0) + act.set_field("reg13", 0, mask=Flag.SHADOW_PASSED)
    no_rule = act.set_field(Reg.RULE, 0) + act.set_field(Bits.ON_CHANGE, 0)
    at_sender = act.set_field("reg13", Flag.NEW_FROM, mask=Flag.NEW_FROM) + goto(Stage.CT_TO)
    for place, then in ((AT_TARGET, goto(Stage.COMMIT_TO)), ((0, Flag.AT_TARGET), at_sender)):
        for family in FAMILIES:
            fragment: dict[str, Value] = {"nw_frag": "yes", family: True}
            yield policy_flow(stage, 10, alike + no_rule + then, reg13=place, **fragment)
        yield policy_flow(stage, 0, alike + then, reg13=place)
