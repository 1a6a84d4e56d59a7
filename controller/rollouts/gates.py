"""What gates say, from what is known. Pure: evidence in, a judgement out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from controller.names import short
from controller.rollouts.plan import (
    MOVED,
    Endpoints,
    External,
    FailedConnections,
    Gate,
    Plan,
    Probe,
    ProbeKind,
    Run,
    State,
)
from controller.rollouts.transition import Judgement, Verdict
from tealnet.store.v1 import store_pb2

_SHOWN = 5  # names
_ASKED = MOVED | {State.VERIFYING}


@dataclass(slots=True)
class Tally:
    """Of an external gate: what the last answers were."""

    successes: int = 0
    failures: int = 0  # in a row, the last ones
    text: str = ""

    def note(self, text: str) -> None:
        """One more answer; `text` says what was wrong with it, "" nothing."""
        self.text = text
        if text:
            self.failures += 1
        else:
            self.successes, self.failures = self.successes + 1, 0


@dataclass(slots=True)
class Counts:
    """New connections to the target since the run's last transition, by network: from reports of all replicas.

    A replica that reports for the first time, or begins anew, starts at nothing; one that vanishes keeps its part.
    """

    _last: dict[tuple[str, int], tuple[str, int, int]] = field(default_factory=dict)
    _added: dict[int, tuple[int, int]] = field(default_factory=dict)
    _serial: int = -1

    def take(self, serial: int, target: str, reports: Mapping[str, store_pb2.RolloutReport]) -> None:
        """Reports by replica, as they are now."""
        if serial != self._serial:
            self._serial = serial
            self._added.clear()
        for replica, report in reports.items():
            for count in report.counts:
                if count.color != target:
                    continue
                place = replica, count.network
                began, opened, failed = self._last.get(place, (report.began, count.opened, count.failed))
                if began != report.began:
                    opened = failed = 0
                self._last[place] = report.began, count.opened, count.failed
                before = self._added.get(count.network, (0, 0))
                more = max(0, count.opened - opened), max(0, count.failed - failed)
                self._added[count.network] = before[0] + more[0], before[1] + more[1]

    def of_networks(self) -> Mapping[int, tuple[int, int]]:
        """Opened and failed, by the network's index."""
        return self._added


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the target."""

    ports: Sequence[tuple[str, str, str]] = ()  # name, state (PortStatus without STATE_), reason
    reports: Mapping[str, store_pb2.RolloutReport] = field(default_factory=dict)  # by replica
    counts: Counts = field(default_factory=Counts)
    tallies: Mapping[int, Tally] = field(default_factory=dict)  # by the gate's index


def judge(plan: Plan, run: Run, evidence: Evidence) -> tuple[Judgement, ...]:
    """All gates, in the plan's order."""
    return tuple(_judge(i, gate, plan, run, evidence) for i, gate in enumerate(plan.gates))


def title(gate: Gate, plan: Plan) -> str:
    """For people: HTTP :8080/healthz in green."""
    match gate:
        case Endpoints():
            return f"ports of {plan.target}"
        case Probe():
            what = "" if gate.kind is ProbeKind.ICMP else f" :{gate.port}"
            path = gate.path if gate.kind is ProbeKind.HTTP else ""
            where = f" of {short(gate.network)}" if gate.network else ""
            which = f" ({gate.ports})" if gate.ports else ""
            return f"{gate.kind.value}{what}{path} in {plan.target}{where}{which}"
        case FailedConnections():
            return f"failed connections to {plan.target}"
        case External():
            return gate.url


def _judge(index: int, gate: Gate, plan: Plan, run: Run, evidence: Evidence) -> Judgement:
    name = title(gate, plan)
    match gate:
        case Endpoints():
            verdict, text = _endpoints(evidence)
        case Probe():
            verdict, text = _probe(index, gate, run, evidence)
        case FailedConnections():
            verdict, text = _failed_connections(gate, plan, run, evidence)
        case External():
            verdict, text = _external(gate, evidence.tallies.get(index, Tally()))
    return Judgement(name, verdict, text)


def _endpoints(evidence: Evidence) -> tuple[Verdict, str]:
    failed = [f"{short(name)} FAILED ({reason})" for name, state, reason in evidence.ports if state == "FAILED"]
    if failed:
        return Verdict.FAIL, _several(failed)
    others = [f"{short(name)} {state}" for name, state, _ in evidence.ports if state != "ACTIVE"]
    if others or not evidence.ports:
        return Verdict.INCONCLUSIVE, _several(others) or "there are none"
    return Verdict.PASS, f"{len(evidence.ports)} ACTIVE"


def _probe(index: int, gate: Probe, run: Run, evidence: Evidence) -> tuple[Verdict, str]:
    if run.state not in _ASKED:
        return Verdict.INCONCLUSIVE, "not asked yet"
    found = [probe for report in evidence.reports.values() for probe in report.probes if probe.gate == index]
    asking, passing = sum(p.asking for p in found), sum(p.passing for p in found)
    worst = max(found, key=lambda p: p.failures, default=store_pb2.RolloutProbeReport())
    if worst.failures >= gate.failures:
        return Verdict.FAIL, f"{worst.text} ({worst.failures} times in a row)"
    if not asking:
        return Verdict.INCONCLUSIVE, "no host has asked yet: one with a port of the color is needed"
    # Each network is asked by itself, and none of them may be left out.
    silent = {p.network for p in found} - {p.network for p in found if p.asking}
    if passing < asking or silent:
        return Verdict.INCONCLUSIVE, worst.text or "some have not been asked yet"
    return Verdict.PASS, f"all answer, asked from {asking} host{'s' if asking > 1 else ''}"


def _failed_connections(gate: FailedConnections, plan: Plan, run: Run, evidence: Evidence) -> tuple[Verdict, str]:
    if run.state not in MOVED or run.step == 0:
        return Verdict.PASS, "no traffic yet"
    by_network = evidence.counts.of_networks()
    total = sum(opened for opened, _ in by_network.values()), sum(failed for _, failed in by_network.values())
    named = [(short(plan.networks[i]), counts) for i, counts in sorted(by_network.items())]
    for where, (opened, failed) in [*named, ("all", total)]:
        if opened >= gate.samples and failed > gate.share * opened:
            text = f"{failed} of {opened} failed ({where}), that is {failed / opened:.1%}; allowed are {gate.share:.1%}"
            return Verdict.FAIL, text
    opened, failed = total
    if opened < gate.samples:
        return Verdict.INCONCLUSIVE, f"{opened} connections, {gate.samples} are needed"
    return Verdict.PASS, f"{failed} of {opened} failed"


def _external(gate: External, tally: Tally) -> tuple[Verdict, str]:
    if tally.failures >= gate.failures:
        return Verdict.FAIL, f"{tally.text} ({tally.failures} times in a row)"
    if tally.failures or not tally.successes:
        return Verdict.INCONCLUSIVE, tally.text or "not asked yet"
    return Verdict.PASS, f"{tally.successes} answers"


def _several(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
