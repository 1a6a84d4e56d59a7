"""Clocks that are set forward or back: only what speaks of a time of day may read one, and an instant stays one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.clock import Instants
from agent.resources import Resources
from tealnet.agent.v1 import agent_pb2 as pb
from tests.fakes.controller import FakeController, endpoint, segment

ROOT = Path(__file__).parents[2]
SECOND, HOUR = 10**9, 3600 * 10**9

MAY_READ = {
    "agent/clock.py": "Instants: an instant that hosts are to switch at together is a time of day",
    "agent/core.py": "Ack tells when",
    "agent/epochs.py": "Observed tells when weights were applied",
    "agent/observe.py": "Observed tells when",
    "agent/probe.py": "Observed tells when",
    "agent/stream.py": "pings find out how far the clocks are apart",
    "agent/tell.py": "denials tell when",
    "agent/underlay/move.py": "how long a set-up is unconfirmed is counted over reboots",
    "agent/underlay/setup.py": "the same",
    "controller/api/interceptors.py": "the audit log tells when",
    "controller/api/join.py": "tells people when a token ends; it ends by its lease",
    "controller/auth.py": "certificates end at a time of day",
    "controller/events.py": "keys of events, so that they are in order; they end by their lease",
    "controller/hosts.py": "objects tell when they were made",
    "controller/intents/addresses.py": "tells people how long a quarantine lasts; it ends by the leader's own clock",
    "controller/rollouts/leader.py": "an instant that hosts are to switch at together is a time of day",
    "controller/server.py": "the audit log tells when; metrics",
    "controller/session.py": "pings find out how far the clocks are apart",
    "controller/sessions.py": "certificates end at a time of day",
    "controller/store.py": "tells since when reads are stale",
}
"""All else counts by the monotonic clock: leases, liveness, drains, quarantine, back-offs, deadlines."""


def readers() -> Iterator[str]:
    for directory in ("agent", "controller"):
        for file in (ROOT / directory).rglob("*.py"):
            if re.search(r"\btime\.time\b|\btime_ns\b|\bdatetime\.(now|utcnow)\b", file.read_text()):
                yield str(file.relative_to(ROOT))


def test_only_what_speaks_of_a_time_of_day_reads_one() -> None:
    assert sorted(set(readers())) == sorted(MAY_READ)


class Clocks:
    def __init__(self) -> None:
        self.wall, self.steady = 1_700_000_000 * SECOND, 5 * SECOND
        self.instants = Instants(lambda: self.wall, lambda: self.steady)

    def pass_(self, seconds: float) -> None:
        self.wall += int(seconds * SECOND)
        self.steady += int(seconds * SECOND)


def unit(controller: FakeController, weight: int, *, apply_at: int = 0) -> list[pb.Update]:
    colors = [pb.ColorWeight(color=1, weight=weight), pb.ColorWeight(color=2, weight=1)]
    weights = pb.Weights(domain=700, network_number=5, colors=colors, epoch=weight, apply_at=apply_at)
    domain = dict([segment(), endpoint(1), ("weights/" + "0" * 31 + "5", weights.SerializeToString())])
    return controller.unit({"host": {}, "domain/700": domain})


@pytest.mark.parametrize("jump", [-HOUR, HOUR, -10 * SECOND, 10 * SECOND])
def test_an_instant_comes_when_it_was_to_come_whatever_the_clock_is_set_to(jump: int) -> None:
    clocks, controller = Clocks(), FakeController()
    resources = Resources(clock=clocks.instants)
    resources.merge(unit(controller, 10))
    resources.merge(unit(controller, 20, apply_at=clocks.wall + 2 * SECOND))
    (key,) = resources.armed
    clocks.pass_(1)
    clocks.wall += jump
    assert not resources.release() and resources.armed
    clocks.pass_(0.9)
    assert not resources.release()
    clocks.pass_(0.2)
    assert resources.release().keys() == {key} and not resources.armed and not resources.problems
    # From now on it is that time.
    assert clocks.instants.now() == clocks.wall
    resources.merge(unit(controller, 30, apply_at=clocks.wall + SECOND))
    assert resources.armed
    clocks.pass_(1)
    assert resources.release()


def test_a_clock_that_is_right_only_later_delays_no_more_than_it_was_wrong() -> None:
    clocks, controller = Clocks(), FakeController()
    resources = Resources(clock=clocks.instants)
    resources.merge(unit(controller, 10))
    resources.merge(unit(controller, 20, apply_at=clocks.wall + 2 * SECOND))
    resources.merge(unit(controller, 30))  # it is called off
    assert not resources.armed
    clocks.wall += HOUR
    assert clocks.instants.now() == clocks.wall
