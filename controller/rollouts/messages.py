"""Rollouts between messages and rows: the plan with its defaults, the run, and what a transition makes of it."""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from controller.rollouts.plan import (
    Before,
    Endpoints,
    External,
    FailedConnections,
    Gate,
    OnBehind,
    OnLost,
    OnRollback,
    Plan,
    Probe,
    ProbeKind,
    RolloutSpec,
    Run,
    Shares,
    Span,
    State,
    Step,
    Weights,
)
from controller.rollouts.transition import QUIET, Transition
from controller.rows import OnOpen
from tealnet.store.v1 import store_pb2
from tealnet.v1 import rollout_pb2, split_pb2

HOUR = 3600.0
STEP_TIMEOUT = 30.0
LEAD, OFFSET = 2.0, 0.01
INTERVAL, TIMEOUT, FAILURES = 1.0, 1.0, 3
EXTERNAL_INTERVAL, EXTERNAL_TIMEOUT = 5.0, 3.0
SHARE, SAMPLES = 0.01, 20
KEPT = 50  # entries of the history
_FIRST = 5  # … of which the oldest

E = TypeVar("E", bound=Enum)


def spec_of(name: str, message: rollout_pb2.Rollout, issued: store_pb2.Issued) -> RolloutSpec:
    """The spec of a stored rollout. Raises ValueError for what only a newer build knows."""
    return RolloutSpec("/".join(name.split("/")[:2]), plan_of(message), run_of(issued.run))


# ---- the plan


def plan_of(message: rollout_pb2.Rollout) -> Plan:
    """What is to be done, with all defaults filled in. Raises ValueError."""
    held = message.HasField("apply_at")
    return Plan(
        networks=tuple(message.networks),
        target=message.target,
        origin=message.origin,
        steps=tuple(Step(weights_of(step.weights), seconds(step.hold)) for step in message.steps),
        gates=tuple(gate_of(gate) for gate in message.gates) or (Endpoints(),),
        confirm_within=seconds(message.confirm_within),
        deadline=_given(message, "deadline", HOUR),
        step_timeout=_given(message, "step_timeout", STEP_TIMEOUT),
        pause_timeout=seconds(message.pause_timeout),
        on_behind=_enum(OnBehind, rollout_pb2.Rollout.OnBehind, message.on_behind, default=OnBehind.ROLLBACK),
        on_lost=_enum(OnLost, rollout_pb2.Rollout.OnLost, message.on_lost, default=OnLost.WAIT),
        on_rollback=_enum(
            OnRollback, rollout_pb2.Rollout.OnRollback, message.on_rollback, default=OnRollback.BY_REASON
        ),
        on_open=_enum(OnOpen, split_pb2.OnOpen, message.on_open, default=OnOpen.KEEP),
        drain_timeout=seconds(message.drain_timeout),
        lead=_given(message.apply_at, "lead", LEAD) if held else 0.0,
        max_offset=_given(message.apply_at, "max_offset", OFFSET) if held else 0.0,
    )


def gate_of(message: rollout_pb2.RolloutGate) -> Gate:
    """One gate. Raises ValueError."""
    match message.WhichOneof("gate"):
        case "endpoints":
            return Endpoints()
        case "probe":
            probe = message.probe
            return Probe(
                kind=_enum(ProbeKind, rollout_pb2.ProbeGate.Kind, probe.kind, default=ProbeKind.ICMP),
                port=probe.port,
                path=probe.path or "/",
                host=probe.host,
                status=Span(probe.status_from or 200, probe.status_to or 399),
                interval=_given(probe, "interval", INTERVAL),
                timeout=_given(probe, "timeout", TIMEOUT),
                failures=probe.failures or FAILURES,
                network=probe.network,
                ports=probe.ports,
            )
        case "failed_connections":
            failed = message.failed_connections
            share = failed.max_percent / 100 if failed.HasField("max_percent") else SHARE
            return FailedConnections(share, failed.min_samples or SAMPLES)
        case "external":
            external = message.external
            return External(
                url=external.url,
                status=Span(external.status_from or 200, external.status_to or 299),
                interval=_given(external, "interval", EXTERNAL_INTERVAL),
                timeout=_given(external, "timeout", EXTERNAL_TIMEOUT),
                failures=external.failures or FAILURES,
            )
        case _:
            raise ValueError("a gate that this build does not know")


def weights_of(weights: Any) -> Weights:
    """A map field without zeros, sorted."""
    return tuple(sorted((color, weight) for color, weight in weights.items() if weight))


def seconds(duration: Duration) -> float:
    """As a number."""
    return float(duration.seconds + duration.nanos / 1e9)


def _given(message: Any, field: str, default: float) -> float:
    return seconds(getattr(message, field)) if message.HasField(field) else default


def _enum(kind: type[E], described: Any, number: int, *, default: E) -> E:
    """The row's enum of a message's, whose names end in the same words. Raises ValueError."""
    if not number:
        return default
    name: str = described.Name(number)
    return next(value for value in kind if name.endswith(f"_{value.value}"))


# ---- the run


def state_of(number: rollout_pb2.Rollout.State) -> State:
    """Raises ValueError."""
    return State(rollout_pb2.Rollout.State.Name(number).removeprefix("STATE_"))


def state_number(state: State) -> rollout_pb2.Rollout.State:
    """The API's value."""
    number: rollout_pb2.Rollout.State = getattr(rollout_pb2.Rollout, f"STATE_{state.value}")
    return number


def run_of(message: store_pb2.RolloutRun) -> Run:
    """How far it is. Raises ValueError."""
    return Run(
        state=state_of(message.state),
        step=message.step,
        applied=message.applied,
        serial=message.serial,
        spent=message.spent_ms / 1000,
        advance=message.advance,
        paused=state_of(message.paused) if message.paused else None,
        armed=message.armed,
        closing=message.closing,
        apply_at=message.apply_at,
        without=tuple(message.without),
        settled=message.settled,
        reason=message.reason,
        text=message.text,
        networks=tuple(_before(network) for network in message.networks),
    )


def _before(message: store_pb2.RolloutNetwork) -> Before:
    shares = Shares(weights_of(message.weights), tuple(sorted(message.closed)))
    return Before(message.name, message.uid, shares, tuple(sorted(message.segments.items())))


def write(message: store_pb2.RolloutRun, transition: Transition, *, now: Timestamp, actor: str) -> None:
    """Make of a stored run what a transition says; fields that this build does not know stay."""
    run = transition.run
    message.state, message.step, message.applied = state_number(run.state), run.step, run.applied
    message.serial, message.spent_ms, message.advance = run.serial, int(run.spent * 1000), run.advance
    message.paused = state_number(run.paused) if run.paused else rollout_pb2.Rollout.STATE_UNSPECIFIED
    message.armed, message.closing, message.apply_at = run.armed, run.closing, run.apply_at
    message.without[:], message.settled = run.without, run.settled
    if transition.reason in QUIET:
        return
    message.reason, message.text = transition.reason.value, transition.text
    message.history.add(
        time=now, state=message.state, step=run.step, reason=message.reason, text=transition.text, actor=actor
    )
    if len(message.history) > KEPT:
        del message.history[_FIRST]
