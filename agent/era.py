"""Eras of the datapath's cache: what makes it forget its paths instead of changing them.

Open vSwitch's userspace datapath before 3.1.3 (and before 3.0.5, 2.17.8) finds the megaflow that is to be changed by
the first packet that met it, not by its id. Where two megaflows overlap it may change the other one; then one goes on
doing what no flow says any more, for as long as packets keep it, and the revalidators take it to be right. They
overlap whenever flows come to look at less than before, as rules do all the time.

But a megaflow that looks at less than the flows now do is never changed, always deleted. So in some stage of every
pass through the datapath there is a flow that nobody meets and that looks at bits of `pkt_mark`, which is always 0:
others in each era.

The switch's classifier forgets the flows of former eras later than it has new ones, when all its threads have come to
rest; megaflows made meanwhile look at the bits of all of them. So which bits are next is not left to chance: the first
era looks at one half of them, each one after it at a single bit, the one that no era has looked at for longest. Then
a megaflow lacks the bit of each of the FIRST eras that follow the oldest one that it looks at bits of.
"""

from __future__ import annotations

from collections import deque
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
PRIORITY = 65535  # looked for before anything is found
BITS, FIRST = 32, 16  # of pkt_mark, and how many of them the first era looks at
_RANDOM = SystemRandom()  # never the same again, whoever has seeded the other one


class Eras:
    """The eras of one process, in which bits follow each other in an order of its own.

    The first one has to differ from whatever a former process has left: it looks at as many bits as 1 in 600 million
    others, and at more than single bits of a few eras make.
    """

    def __init__(self) -> None:
        self._bits = deque(_RANDOM.sample(range(BITS), BITS))
        self._many = FIRST

    def flows(self) -> list[Flow]:
        """The flows of another era, each time."""
        bits = 0
        for _ in range(self._many):
            bits |= 1 << self._bits[0]
            self._bits.rotate(-1)
        self._many = 1
        never = match(pkt_mark=(bits, bits))
        return [
            flow(stage=stage, priority=PRIORITY, match_=never, actions=b"", feature=Feature.ERA) for stage in STAGES
        ]


def ends_era(value: Value) -> bool:
    """Whether paths may have to change because this has been written, and others that overlap have come.

    A change of color as a whole is not among it: who looked at no hash does not look at less.
    """
    return value.kind is GroupKind.SELECT if isinstance(value, Group) else narrows(value)


def era() -> Era:
    """Eras for one bridge."""
    return Era(feature=int(Feature.ERA), flows=Eras().flows, ends=ends_era)
