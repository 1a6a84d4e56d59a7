"""Eras of the datapath's cache: what makes it forget its paths instead of changing them.

Open vSwitch's userspace datapath before 3.1.3 (and before 3.0.5, 2.17.8) finds the megaflow that is to be changed by
the first packet that met it, not by its id. Where two megaflows overlap it may change the other one; then one goes on
doing what no flow says any more, for as long as packets keep it, and the revalidators take it to be right. They
overlap whenever flows come to look at less than before, as rules do all the time.

But a megaflow that looks at less than the flows now do is never changed, always deleted. So in some stage of every
pass through the datapath there is a flow that nobody meets and that looks at some of the bits of `pkt_mark`, which is
always 0. As many of them in each era, but others: no era looks at all that another one does.
"""

from __future__ import annotations

from random import SystemRandom

from agent.drivers.openflow import Era, Value
from agent.openflow.flow import Flow, Group, GroupKind
from agent.openflow.oxm import match
from agent.pipeline import Feature, Stage, flow, narrows

# Where packets come in, and what is met next after each `ct` and each group.
STAGES = (
    Stage.CLASSIFY,
    Stage.POLICY_FROM,
    Stage.RESOLVE,
    Stage.COMMITTED_FROM,
    Stage.POLICY_TO,
    Stage.ADOPTED_TO,
    Stage.COMMITTED_TO,
)
FIRST = 65535  # priority: looked for before anything is found
BITS, CHOSEN = 32, 16  # of pkt_mark; that two eras are alike is as likely as 1 in 600 million
_RANDOM = SystemRandom()  # never the same again, whoever has seeded the other one


def era_flows() -> list[Flow]:
    """The flows of another era, each time."""
    bits = sum(1 << bit for bit in _RANDOM.sample(range(BITS), CHOSEN))
    never = match(pkt_mark=(bits, bits))
    return [flow(stage=stage, priority=FIRST, match_=never, actions=b"", feature=Feature.ERA) for stage in STAGES]


def ends_era(value: Value) -> bool:
    """Whether paths may have to change because this has been written, and others that overlap have come.

    A change of color as a whole is not among it: who looked at no hash does not look at less.
    """
    return value.kind is GroupKind.SELECT if isinstance(value, Group) else narrows(value)


ERA = Era(feature=int(Feature.ERA), flows=era_flows, ends=ends_era)
