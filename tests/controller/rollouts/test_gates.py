"""What gates say, from evidence; counts that survive restarts of agents and replicas; external URLs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.observing import Added, Counters, Observing
from controller.rollouts.clock import Clock
from controller.rollouts.external import fetch, is_allowed, problem
from controller.rollouts.gates import Counts, Evidence, Tally, judge
from controller.rollouts.plan import (
    Endpoints,
    External,
    FailedConnections,
    Gate,
    Probe,
    ProbeKind,
    Run,
    Span,
    State,
)
from controller.rollouts.transition import Verdict
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.store.v1 import store_pb2
from tests.controller.rollouts.simulated import plan

SHIFTING, VERIFYING = Run(State.SHIFTING, step=1, applied=True), Run(State.VERIFYING)
PROBE = Probe(ProbeKind.TCP, 80, "/", "", Span(200, 399), 1.0, 1.0, 3, "", "")


def verdict(gate: Gate, run: Run, evidence: Evidence) -> tuple[Verdict, str]:
    (judgement,) = judge(plan(gates=(gate,)), run, evidence)
    return judgement.verdict, judgement.text


def probed(*places: tuple[int, int, int, int]) -> dict[str, store_pb2.RolloutReport]:
    """One replica each: network, asking, passing, failures in a row."""
    return {
        f"replica-{i}": store_pb2.RolloutReport(
            probes=[store_pb2.RolloutProbeReport(gate=0, network=n, asking=a, passing=p, failures=f, text="no answer")]
        )
        for i, (n, a, p, f) in enumerate(places)
    }


def counted(*counts: tuple[int, int, int], began: str = "x", color: str = "green") -> store_pb2.RolloutReport:
    """Network, opened, failed."""
    return store_pb2.RolloutReport(
        began=began,
        counts=[store_pb2.RolloutColorCount(network=n, color=color, opened=o, failed=f) for n, o, f in counts],
    )


def test_endpoints() -> None:
    for ports, expected in (
        ([], Verdict.INCONCLUSIVE),
        ([("p", "ACTIVE", "")], Verdict.PASS),
        ([("p", "ACTIVE", ""), ("q", "PENDING", "")], Verdict.INCONCLUSIVE),
        ([("p", "UNKNOWN", "HostLost"), ("q", "FAILED", "NO_DEVICE")], Verdict.FAIL),
    ):
        assert verdict(Endpoints(), VERIFYING, Evidence(ports=ports))[0] is expected


def test_probes() -> None:
    for places, expected in (
        ([], Verdict.INCONCLUSIVE),
        ([(0, 0, 0, 0)], Verdict.INCONCLUSIVE),
        ([(0, 2, 2, 0), (1, 1, 1, 0)], Verdict.PASS),
        ([(0, 2, 2, 0), (1, 0, 0, 0)], Verdict.INCONCLUSIVE),  # one network is asked by nobody
        ([(0, 2, 2, 0), (0, 0, 0, 0), (1, 1, 1, 0)], Verdict.PASS),  # … but by another replica
        ([(0, 2, 1, 2), (1, 1, 1, 0)], Verdict.INCONCLUSIVE),
        ([(0, 2, 1, 3), (1, 1, 1, 0)], Verdict.FAIL),
    ):
        assert verdict(PROBE, VERIFYING, Evidence(reports=probed(*places)))[0] is expected, places
    assert verdict(PROBE, Run(State.PREPARING), Evidence(reports=probed((0, 2, 2, 0))))[0] is Verdict.INCONCLUSIVE


def test_failed_connections() -> None:
    gate = FailedConnections(0.05, 20)
    for after, expected in (
        ((0, 0), Verdict.INCONCLUSIVE),  # none of none is no reason to go on
        ((19, 19), Verdict.INCONCLUSIVE),
        ((20, 0), Verdict.PASS),
        ((20, 1), Verdict.PASS),
        ((20, 2), Verdict.FAIL),
    ):
        counts = Counts()
        counts.take(1, "green", {"a": counted((0, 1000, 1000))})  # of an earlier hold
        counts.take(1, "green", {"a": counted((0, 1000 + after[0], 1000 + after[1]))})
        assert verdict(gate, SHIFTING, Evidence(counts=counts))[0] is expected, after
        assert verdict(gate, VERIFYING, Evidence(counts=counts))[0] is Verdict.PASS, "no traffic yet"


def test_one_network_may_fail_alone() -> None:
    counts = Counts()
    counts.take(1, "green", {"a": counted((0, 0, 0), (1, 0, 0))})
    counts.take(1, "green", {"a": counted((0, 1000, 0), (1, 25, 20))})
    found = verdict(FailedConnections(0.05, 20), SHIFTING, Evidence(counts=counts))
    assert found[0] is Verdict.FAIL and "20 of 25 failed (db)" in found[1]


def test_counts_over_replicas_that_begin_anew() -> None:
    counts = Counts()
    counts.take(1, "green", {"a": counted((0, 50, 5)), "b": counted((0, 7, 0), began="y")})
    counts.take(1, "green", {"a": counted((0, 60, 6))})  # b is gone
    counts.take(1, "green", {"a": counted((0, 3, 1), began="z")})  # a was restarted: these are new
    assert counts.of_networks() == {0: (13, 2)}
    counts.take(2, "green", {"a": counted((0, 9, 1), began="z")})  # a new hold begins with nothing but what came since
    assert counts.of_networks() == {0: (6, 0)}
    counts.take(2, "green", {"a": counted((0, 99, 9), began="z", color="blue")})
    assert counts.of_networks() == {0: (6, 0)}


def test_external() -> None:
    gate = External("https://x/", Span(200, 299), 1.0, 1.0, 2)
    tally = Tally()
    for text, expected in (
        (None, Verdict.INCONCLUSIVE),
        ("", Verdict.PASS),
        ("status 500", Verdict.INCONCLUSIVE),
        ("status 500", Verdict.FAIL),
        ("", Verdict.PASS),
    ):
        if text is not None:
            tally.note(text)
        assert verdict(gate, SHIFTING, Evidence(tallies={0: tally}))[0] is expected


def test_urls() -> None:
    assert is_allowed("https://a.example/x/y?z=1", ["https://a.example/x"])
    assert is_allowed("https://a.example", ["https://a.example/"])
    assert not is_allowed("https://a.example/xy", ["https://a.example/x"])
    assert not is_allowed("https://a.example/x", [])
    for bad in ("", "x", "ftp://a/", "http://", "http://a b/", "http://a/\r\nX: y", "http://a/#f", "http://[::1/"):
        assert problem(bad), bad


async def test_nobody_answers() -> None:
    answer = await fetch("http://127.0.0.1:1/", 1.0)
    assert not answer.status and "refused" in answer.text


# ---- counters of agents


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 50), st.integers(0, 5)), max_size=20))
def test_what_is_added_is_what_was_counted(history: list[tuple[bool, int, int]]) -> None:
    """Whenever an agent begins anew, nothing is counted twice or lost but what no report has told."""
    counters, total, expected = Counters(), [0, 0], [0, 0]
    since, opened, failed = 1, 0, 0
    counters.take(said(since, 100, 10))  # where counting starts
    opened, failed = 100, 10
    for restarts, more, bad in history:
        if restarts:
            since, opened, failed = since + 1, 0, 0
        opened, failed = opened + more, failed + bad
        expected[0], expected[1] = expected[0] + more, expected[1] + bad
        added = counters.take(said(since, opened, failed)).get(("ab" * 16, 2), Added(0, 0))
        total[0], total[1] = total[0] + added.opened, total[1] + added.failed
    assert total == expected


def said(since: int, opened: int, failed: int) -> pb.Observed:
    observed = pb.Observed(number=1, since=since)
    network = observed.networks.add(network_uid=bytes.fromhex("ab" * 16))
    network.colors.add(color=2, opened=opened, failed=failed)
    return observed


def test_observing() -> None:
    observing = Observing()
    observing.want(pb.Observe(networks=[b"\xab" * 16]), {"r": 1})
    assert observing.wake.is_set()
    asked = pb.ToAgent.FromString(observing.message()).observe
    observing.want(pb.Observe(networks=[b"\xab" * 16]), {"r": 1})
    assert not observing.wake.is_set(), "it is the same"
    observing.want(pb.Observe(networks=[b"\xab" * 16]), {"r": 2})
    again = pb.ToAgent.FromString(observing.message()).observe
    assert again.number == asked.number + 1
    observing.heard(report(asked.number, epoch=5, applied_at=50))
    assert observing.serials == {"r": 1}
    told: list[int] = []
    observing.on_held = lambda: told.append(observing.epochs["ab" * 16][-1].epoch)
    for _ in range(2):
        observing.heard(report(again.number, epoch=5, applied_at=50, armed=6))
    assert told == [6], "once"
    assert observing.serials == {"r": 2}
    assert [tuple(e) for e in observing.epochs["ab" * 16]] == [(5, 50, False), (6, 0, False)]
    observing.heard(report(again.number, epoch=6, applied_at=60))
    assert [tuple(e) for e in observing.epochs["ab" * 16]] == [(5, 50, False), (6, 60, False)]
    observing.heard(report(asked.number, epoch=1, applied_at=1))
    assert observing.epochs["ab" * 16][-1].epoch == 6, "of a set that is no more wanted"


def report(number: int, *, epoch: int, applied_at: int, armed: int = 0) -> pb.Observed:
    observed = pb.Observed(number=number)
    observed.networks.add(network_uid=b"\xab" * 16, epoch=epoch, applied_at=applied_at, armed_epoch=armed)
    return observed


def test_rounds_of_probes_are_counted_once() -> None:
    observing = Observing()
    observing.want(pb.Observe(), {"r": 1})
    for last_at, failing in ((1, 1), (1, 1), (2, 1), (3, 2)):
        observed = pb.Observed(number=1)
        observed.probes.add(id=9, targets=3, failing=failing, last_at=last_at)
        observing.heard(observed)
    assert observing.failures == {9: 3}
    observing.heard(pb.Observed(number=1, probes=[pb.ProbeObserved(id=9, targets=3, last_at=4)]))
    assert observing.failures == {9: 0}
    observing.heard(pb.Observed(number=1))
    assert not observing.failures


# ---- clocks


@given(st.lists(st.tuples(st.sampled_from(["tick", "move", "pause", "resume"]), st.floats(0, 10)), max_size=30))
def test_clocks_never_read_more_than_has_passed(history: list[tuple[str, float]]) -> None:
    clock, now, unpaused, since = Clock(), 100.0, 0.0, 100.0
    run = Run(State.SHIFTING, spent=7.0)
    for what, seconds in history:
        now += seconds
        if run.state is not State.PAUSED:
            unpaused += seconds
        if what != "tick":
            states = {"pause": State.PAUSED, "resume": State.SHIFTING}
            run, since = replace(run, state=states.get(what, run.state), serial=run.serial + 1), now
        elapsed, total = clock.read(run, now)
        assert elapsed <= now - since + 1e-6 and total <= 7.0 + unpaused + 1e-6


@pytest.mark.parametrize("serial", [0, 5])
def test_a_new_leader_begins_with_what_was_spent(serial: int) -> None:
    clock = Clock()
    assert clock.read(Run(State.SHIFTING, serial=serial, spent=30.0), 1000.0) == (0.0, 30.0)
    assert clock.read(Run(State.SHIFTING, serial=serial, spent=30.0), 1004.0) == (4.0, 34.0)
