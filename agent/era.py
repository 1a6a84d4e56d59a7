"""Eras of the datapath's cache: what makes it forget its paths instead of changing them.

Open vSwitch's userspace datapath before 3.1.3 (and before 3.0.5, 2.17.8) finds the megaflow that is to be changed by
the first packet that met it, not by its id. Where two megaflows overlap it may change the other one; then one goes on
doing what no flow says any more, for as long as packets keep it, and the revalidators take it to be right. They
overlap whenever flows come to look at less than before, as rules do all the time.

But a megaflow that looks at less than the flows now do is never changed, always deleted. So in the tables of which
flows change there is one that nobody meets and that looks at a bit of `pkt_mark`, which is always 0: at another one in
each era. Who has not looked at these tables keeps its path. A whole era, with a flow at each place where a pass of the
datapath begins or goes on, comes first, and whenever bits run short.

The switch's classifier forgets the flows of former eras later than it has new ones, when all its threads have come to
rest; megaflows made meanwhile look at the bits of all of them. So which bits are next is not left to chance: the first
era looks at one half of them, each one after it at a single bit, the one that no era has looked at for longest. Then
a megaflow lacks the bit of each of the eras that follow the oldest one that it looks at bits of, up to RESERVE.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from functools import reduce
from operator import or_
from random import SystemRandom

from agent.drivers.openflow import Era, Value
from agent.openflow.flow import Flow, Group, GroupKind
from agent.openflow.oxm import match
from agent.pipeline import Feature, Stage, narrows

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
RESERVE = 8  # bits that nobody looks at: how many eras the switch may be late with forgetting
_RANDOM = SystemRandom()  # never the same again, whoever has seeded the other one


class Eras:
    """The eras of one process, in which bits follow each other in an order of its own.

    The first one has to differ from whatever a former process has left: it looks at as many bits as 1 in 600 million
    others, and at more than single bits of a few eras make.
    """

    def __init__(self) -> None:
        self._free = deque(_RANDOM.sample(range(BITS), BITS))  # bits nobody looks at; for longest: the first
        self._live: dict[int, int] = {}  # table → bits that its flow looks at

    def flows(self, tables: Collection[int] | None) -> list[Flow]:
        """All flows of the next era, in which those of these tables (None: of a whole era) look at another bit."""
        before = self._bits()
        if not self._live:
            self._live = dict.fromkeys(STAGES, self._next(FIRST))
        elif tables is None or len(self._free) <= RESERVE:
            self._live = dict.fromkeys({*STAGES, *(tables or ())}, self._next(1))
        else:
            self._live |= dict.fromkeys(tables, self._next(1))
        gone = before & ~self._bits()
        self._free += [bit for bit in range(BITS) if gone >> bit & 1]
        return [_never(table, bits) for table, bits in sorted(self._live.items())]

    def _bits(self) -> int:
        return reduce(or_, self._live.values(), 0)

    def _next(self, count: int) -> int:
        return sum(1 << self._free.popleft() for _ in range(count))


def _never(table: int, bits: int) -> Flow:
    return Flow(table, PRIORITY, match(pkt_mark=(bits, bits)), b"", int(Feature.ERA))


def ends_era(value: Value) -> bool:
    """Whether paths may have to change because this has been written, and others that overlap have come.

    A change of color as a whole is not among it: who looked at no hash does not look at less.
    """
    return value.kind is GroupKind.SELECT if isinstance(value, Group) else narrows(value)


def era() -> Era:
    """Eras for one bridge."""
    return Era(feature=int(Feature.ERA), flows=Eras().flows, ends=ends_era)
