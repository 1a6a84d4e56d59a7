"""Rollouts: what is wrong with a plan by itself. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from google.protobuf.duration_pb2 import Duration

from controller import fields
from controller.errors import Invalid
from controller.features.colors_check import weight_fields
from controller.fields import NAME, NAME_HELP, Violations, distinct
from controller.names import kind_of
from controller.rollouts.external import is_allowed, problem
from controller.rollouts.messages import plan_of, seconds
from controller.rollouts.plan import Plan
from controller.rows import OnOpen
from controller.selectors import parse_filter
from tealnet.v1 import rollout_pb2, split_pb2

MOST_NETWORKS, MOST_STEPS, MOST_GATES = 16, 32, 16
DAY = 86_400
_SHORTEST_STEP = 1
_LONGEST_LEAD, _LARGEST_OFFSET = 60, 10
PLAN = frozenset(
    {
        "networks", "target", "origin", "steps", "gates", "confirm_within", "deadline", "step_timeout", "pause_timeout",
        "on_behind", "on_lost", "on_rollback", "on_open", "drain_timeout", "apply_at",
    }
)  # fmt: skip
"""The fields that never change."""


def rollout_fields(message: rollout_pb2.Rollout, urls: Collection[str], found: Violations) -> None:
    """Each field by itself, and the times against each other."""
    fields.common(message, found)
    if len(message.networks) > MOST_NETWORKS:
        found.add("networks", f"at most {MOST_NETWORKS}")
    for i, network in enumerate(message.networks):
        if kind_of(network) != "network":
            found.add(f"networks[{i}]", f"{network[:200]!r} is not a name like tenants/TENANT/networks/NETWORK")
    distinct(message.networks, "networks", found)
    for field in ("target", "origin"):
        if (color := getattr(message, field)) and not NAME.fullmatch(color):
            found.add(field, f"{color[:80]!r} is not a color's name: {NAME_HELP}")
    if message.target and message.target == message.origin:
        found.add("origin", f"{message.origin} is the target")
    _steps(message, found)
    _gates(message, urls, found)
    _times(message, found)
    for field, kind in (
        ("on_behind", rollout_pb2.Rollout.OnBehind),
        ("on_lost", rollout_pb2.Rollout.OnLost),
        ("on_rollback", rollout_pb2.Rollout.OnRollback),
        ("on_open", split_pb2.OnOpen),
    ):
        if getattr(message, field) not in kind.values():
            found.add(field, f"{getattr(message, field)} is not known")


def rollout_shape(message: rollout_pb2.Rollout, found: Violations) -> None:
    """What a new one must have."""
    for field in ("networks", "target", "steps"):
        if not getattr(message, field):
            found.add(field, "is missing")
    if found.found:
        return
    plan = plan_of(message)
    if plan.target not in dict(plan.steps[-1].weights):
        found.add(f"steps[{len(plan.steps) - 1}].weights", f"the last step gives nothing to {plan.target}, the target")
    if plan.on_open is OnOpen.DRAIN and not plan.drain_timeout:
        found.add("drain_timeout", "is missing: how long open connections may stay")
    for i, gate in enumerate(message.gates):
        if (network := gate.probe.network) and network not in plan.networks:
            found.add(f"gates[{i}].probe.network", f"{network} is not one of the rollout's networks")
    if (least := _least(plan)) > plan.deadline:
        text = f"{plan.deadline:g} s is too short: holds, drain and confirmation alone take {least:g} s"
        found.add("deadline", text)


def _least(plan: Plan) -> float:
    drain = plan.drain_timeout if plan.on_open is OnOpen.DRAIN else 0.0
    return sum(step.hold + plan.lead for step in plan.steps) + drain + plan.confirm_within


def _steps(message: rollout_pb2.Rollout, found: Violations) -> None:
    if len(message.steps) > MOST_STEPS:
        found.add("steps", f"at most {MOST_STEPS}")
    for i, step in enumerate(message.steps):
        if not step.weights:
            found.add(f"steps[{i}].weights", "is missing: for example blue: 90, green: 10")
        weight_fields(step.weights, f"steps[{i}].weights", found)
        _span(step, "hold", f"steps[{i}].hold", (0, 7 * DAY), found)


def _times(message: rollout_pb2.Rollout, found: Violations) -> None:
    _span(message, "confirm_within", "confirm_within", (0, DAY), found)
    _span(message, "deadline", "deadline", (1, 30 * DAY), found)
    _span(message, "step_timeout", "step_timeout", (_SHORTEST_STEP, DAY), found)
    _span(message, "pause_timeout", "pause_timeout", (0, 30 * DAY), found)
    _span(message, "drain_timeout", "drain_timeout", (0, 7 * DAY), found)
    if message.HasField("drain_timeout") and message.on_open != split_pb2.ON_OPEN_DRAIN:
        found.add("drain_timeout", "is for on_open DRAIN; leave it out")
    _span(message.apply_at, "lead", "apply_at.lead", (0.1, _LONGEST_LEAD), found)
    _span(message.apply_at, "max_offset", "apply_at.max_offset", (0.0001, _LARGEST_OFFSET), found)


def _span(message: Any, field: str, path: str, allowed: tuple[float, float], found: Violations) -> None:
    if message.HasField(field):
        value: Duration = getattr(message, field)
        if value.nanos < 0 or value.nanos >= 10**9 or not allowed[0] <= seconds(value) <= allowed[1]:
            found.add(path, f"not within {allowed[0]:g} s … {allowed[1]:g} s")


def _gates(message: rollout_pb2.Rollout, urls: Collection[str], found: Violations) -> None:
    if len(message.gates) > MOST_GATES:
        found.add("gates", f"at most {MOST_GATES}")
    for i, gate in enumerate(message.gates):
        path = f"gates[{i}]"
        match gate.WhichOneof("gate"):
            case "probe":
                _probe(gate.probe, f"{path}.probe", found)
            case "failed_connections":
                percent = gate.failed_connections.max_percent
                if not 0 <= percent <= 100:
                    found.add(f"{path}.failed_connections.max_percent", "not within 0 … 100")
            case "external":
                _external(gate.external, f"{path}.external", urls, found)
            case None:
                found.add(path, "is empty: endpoints, probe, failed_connections or external")


def _probe(probe: rollout_pb2.ProbeGate, path: str, found: Violations) -> None:
    kind = probe.kind
    if kind not in rollout_pb2.ProbeGate.Kind.values() or not kind:
        found.add(f"{path}.kind", "ICMP, TCP or HTTP")
        return
    http, icmp = kind == rollout_pb2.ProbeGate.KIND_HTTP, kind == rollout_pb2.ProbeGate.KIND_ICMP
    if icmp and probe.port:
        found.add(f"{path}.port", "is for TCP and HTTP; leave it out")
    elif not icmp and not 1 <= probe.port <= 65_535:
        found.add(f"{path}.port", "is missing, or not within 1 … 65535")
    for field in ("path", "host", "status_from", "status_to"):
        if getattr(probe, field) and not http:
            found.add(f"{path}.{field}", "is for HTTP; leave it out")
    for field in ("path", "host"):
        value: str = getattr(probe, field)
        # It goes into a request line as it is: nothing in it may end the line.
        if len(value) > 1024 or not value.isascii() or any(not "!" <= c <= "~" for c in value):
            found.add(f"{path}.{field}", "at most 1024 visible ASCII characters without spaces")
    if probe.path and not probe.path.startswith("/"):
        found.add(f"{path}.path", "begins with /")
    try:
        parse_filter(probe.ports)
    except Invalid as error:
        found.add(f"{path}.ports", error.violations[0].text)
    _statuses(probe, path, found)
    _span(probe, "interval", f"{path}.interval", (0.2, 60), found)
    _span(probe, "timeout", f"{path}.timeout", (0.1, 30), found)
    if probe.failures > 1000:
        found.add(f"{path}.failures", "at most 1000")


def _external(external: rollout_pb2.ExternalGate, path: str, urls: Collection[str], found: Violations) -> None:
    if text := problem(external.url):
        found.add(f"{path}.url", f"{external.url[:200]!r} {text}")
    elif not is_allowed(external.url, urls):
        there = ", ".join(sorted(urls)) or "none"
        found.add(f"{path}.url", f"{external.url} is not among what this site allows ({there}); ask its admin")
    _statuses(external, path, found)
    _span(external, "interval", f"{path}.interval", (1, 3600), found)
    _span(external, "timeout", f"{path}.timeout", (0.1, 60), found)
    if external.failures > 1000:
        found.add(f"{path}.failures", "at most 1000")


def _statuses(gate: Any, path: str, found: Violations) -> None:
    first, last = gate.status_from, gate.status_to
    if any(status and not 100 <= status <= 599 for status in (first, last)):
        found.add(f"{path}.status_from", "statuses are 100 … 599")
    elif bool(first) != bool(last) or first > last:
        found.add(f"{path}.status_from", "give both status_from and status_to, the lower one first")
