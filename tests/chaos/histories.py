"""Histories on a lab, one after the other, each from its own seed."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tealnet import kinds
from tealnet.client import ApiError
from tealnet.lab.wait import wait_for
from tests.chaos.lab_judge import judge
from tests.chaos.operations import Operations
from tests.chaos.rig import Outcome, Rig, accept, drive, traffic
from tests.chaos.settling import BUSY, logs, settle
from tests.lab.looks import Look, look
from tests.lab.stand import LINKS, difference

STEPS = 36  # of which one in three is a fault
ROLLOUTS = 90.0  # seconds until rollouts that nobody holds up are over
_OVER = ("STATE_SUCCEEDED", "STATE_ROLLED_BACK")


def histories(rig: Rig, seeds: Iterator[int], *, until: float) -> Iterator[Outcome]:
    """One per seed, until that moment of the monotonic clock. A history that failed ends it: the lab is not sane."""
    empty = {host.name: look(host) for host in rig.lab.hosts}
    for seed in seeds:
        outcome = one(rig, seed, empty)
        yield outcome
        if outcome.wrong or time.monotonic() > until:
            return


def one(rig: Rig, seed: int, empty: dict[str, Look]) -> Outcome:
    """A history, its judgement, and the way back to where it began."""
    outcome, began = Outcome(seed, gentle=seed % 2 == 0), time.monotonic()
    try:
        with traffic(rig, outcome):
            history, operations, faults = drive(rig, seed, outcome, steps=STEPS)
        accept(rig, faults)
        _rollouts_end(rig)
        settle(rig)  # what was asked before the last fault may have been answered after it
        outcome.wrong += _late(outcome)
        outcome.wrong += judge(rig, history)
        outcome.wrong += _pinged(outcome)
        if not outcome.wrong:
            outcome.wrong += _cleared(rig, operations, empty)
    except Exception as error:  # also of the lab itself: it is told with what happened before
        outcome.wrong.append(f"{type(error).__name__}: {error}")
        outcome.trace += ["", *logs([*rig.lab.controllers, *rig.lab.hosts], since=began)]
    return outcome


def _late(outcome: Outcome) -> list[str]:
    """The promise of the time after the last fault; whether it is held against us is told by `settling`."""
    found = outcome.settling
    if not found.is_ours:
        return []
    why = f"as it is to be only after {found.seconds:.1f} s instead of {found.promise:g}"
    return [f"{why}, and others took less than {BUSY:.0%} of the processors: {found.others:.0%}", *found.lines()]


def _pinged(outcome: Outcome) -> list[str]:
    """Connections outlive all faults. Of gentle ones packets notice nothing; ports that come and go may cost some."""
    lines = [f"a calm workload got no answer at all: {p}" for p in outcome.pings if not p["received"]]
    whole = {"changed": 0, "ended": 0, "silent": 0}
    lines += [f"connections broke: {s}" for s in outcome.streams if {key: s[key] for key in whole} != whole]
    if outcome.gentle:
        most = LINKS * outcome.acknowledged
        lines += [f"more than {most} answers are missing: {p}" for p in outcome.pings if p["lost"] > most]
    return lines


def _rollouts_end(rig: Rig) -> None:
    def over() -> bool:
        try:
            found = list(rig.stand.client.list_all(kinds.ROLLOUT))
        except ApiError:
            return False
        return all(rollout.State.Name(rollout.state) in _OVER for rollout in found)

    wait_for(over, seconds=ROLLOUTS, what="all rollouts are over", every=0.2)


def _cleared(rig: Rig, operations: Operations, empty: dict[str, Look]) -> list[str]:
    """Without the tenants the hosts are as they were."""
    there = {tenant.name for tenant in rig.stand.client.list_all(kinds.TENANT)}
    for tenant in set(operations.last()) & there:
        rig.stand.client.delete(tenant, force=True)
    rig.stand.sync()
    lines = []
    for host in rig.lab.hosts:
        now = look(host)
        if now != empty[host.name]:
            lines.append(f"{host.name} is not as it was: {difference(empty[host.name], now)}")
    return lines
