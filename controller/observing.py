"""What one host is asked to report beside its Acks, and what it has reported: of one session.

    Observer ──want──► number, Observe ──► agent ──► Observed ──heard──► epochs, counts, probes

Counters of an agent only grow until it begins anew; here they become what was added since the last report.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from tealnet.agent.v1 import agent_pb2 as pb

_EPOCHS = 4  # kept of each network
Counted = tuple[str, int]  # network uid, color number


class Epoch(NamedTuple):
    """Weights that a host has applied, by its own clock in Unix ns; 0: it holds them until their apply_at."""

    epoch: int
    applied_at: int
    late: bool


class Added(NamedTuple):
    """TCP connections since the last report."""

    opened: int
    failed: int


@dataclass(slots=True)
class Counters:
    """Of one host, as last reported. It outlives sessions, so that nothing is counted twice or lost between two."""

    since: int = 0
    values: dict[Counted, Added] = field(default_factory=dict)

    def take(self, observed: pb.Observed) -> dict[Counted, Added]:
        """What was added. The first report of all is where counting starts."""
        now = {
            (network.network_uid.hex(), color.color): Added(color.opened, color.failed)
            for network in observed.networks
            for color in network.colors
        }
        began, before = not self.since, self.values
        if observed.since != self.since:  # it counts from zero
            before = {}
        self.since, self.values = observed.since, now
        if began:
            return {}
        added = {}
        for key, value in now.items():
            old = before.get(key, Added(0, 0))
            added[key] = Added(max(0, value.opened - old.opened), max(0, value.failed - old.failed))
        return added


class Observing:
    """Of one session. `want` says what to ask; `heard` takes a report."""

    def __init__(self) -> None:
        self.on_held: Callable[[], None] = lambda: None  # called when weights are held until their instant
        self.wake = asyncio.Event()  # something new is to be asked
        self.last = pb.Observed()  # nothing has been heard: number 0
        self.epochs: dict[str, deque[Epoch]] = {}  # by network uid, oldest first
        self.failures: dict[int, int] = {}  # probe id → rounds in a row with somebody who did not answer
        self.serials: dict[str, int] = {}  # rollout uid → its serial when what was last heard was asked for
        self._number = 0
        self._wanted = b""
        self._asked: dict[int, dict[str, int]] = {}  # number → serials
        self._rounds: dict[int, int] = {}  # probe id → end of its last round

    def want(self, observe: pb.Observe, serials: dict[str, int]) -> None:
        """The whole set. It is asked anew also when only a serial has changed: the answer is after that transition."""
        body = observe.SerializeToString()
        if body == self._wanted and self._asked.get(self._number, {}) == serials:
            return
        self._wanted, self._number = body, self._number + 1
        self._asked[self._number] = serials
        self.wake.set()

    def message(self) -> bytes:
        """What is to be sent, encoded."""
        self.wake.clear()
        observe = pb.Observe.FromString(self._wanted)
        observe.number = self._number
        return pb.ToAgent(observe=observe).SerializeToString()

    def heard(self, observed: pb.Observed) -> None:
        """A report; one of a set that was never asked for is nothing."""
        if observed.number not in self._asked:
            return
        self.last, self.serials = observed, self._asked[observed.number]
        for number in [number for number in self._asked if number < observed.number]:
            del self._asked[number]
        for network in observed.networks:
            self._note_epochs(network)
        for probe in observed.probes:
            if probe.last_at != self._rounds.get(probe.id):
                self._rounds[probe.id] = probe.last_at
                self.failures[probe.id] = self.failures.get(probe.id, 0) + 1 if probe.failing else 0
        for gone in self._rounds.keys() - {probe.id for probe in observed.probes}:
            del self._rounds[gone]
            self.failures.pop(gone, None)

    def _note_epochs(self, network: pb.NetworkObserved) -> None:
        """The last few, so that who reads once a second misses none."""
        known = self.epochs.setdefault(network.network_uid.hex(), deque(maxlen=_EPOCHS))
        held = 0
        if known and not known[-1].applied_at:
            held = known.pop().epoch  # it is said anew whether it is held still
        if network.epoch and (not known or known[-1].epoch != network.epoch):
            known.append(Epoch(network.epoch, network.applied_at, network.late))
        if network.armed_epoch:
            known.append(Epoch(network.armed_epoch, 0, False))
            if network.armed_epoch != held:
                self.on_held()
