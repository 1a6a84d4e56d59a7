"""A rollout for people: one screen that changes, or a line for each thing that happens. Pure, but for the clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from tealnet.cli import output

OVER = ("SUCCEEDED", "ROLLED_BACK")
_BAR = 24  # columns
_NEWEST = 6  # entries of the history
_RESULTS = {"PASS": ("✓", "green"), "FAIL": ("✗", "red"), "INCONCLUSIVE": ("…", "yellow")}
_TIMES = ("confirm_within", "deadline", "step_timeout", "pause_timeout", "drain_timeout")
_CHOICES = ("on_behind", "on_lost", "on_rollback", "on_open")
_STATES = {"SUCCEEDED": "green", "PAUSED": "yellow", "ROLLING_BACK": "red", "ROLLED_BACK": "red"}


def state(rollout: Any) -> str:
    """SHIFTING."""
    return output.enum_of(rollout, "state")


def is_over(rollout: Any) -> bool:
    """Its weights are final."""
    return state(rollout) in OVER


def headline(rollout: Any) -> str:
    """acme/web-2: blue → green in web, db."""
    networks = ", ".join(output.short(name) for name in rollout.networks)
    return f"{output.named(rollout.name)}: {rollout.origin} → {rollout.target} in {networks}"


def weights(step: Any) -> str:
    """blue 90, green 10."""
    return ", ".join(f"{color} {weight}" for color, weight in sorted(step.weights.items()) if weight)


def seconds(duration: Any) -> str:
    """30 s, 5 min."""
    number = duration.seconds + duration.nanos / 1e9
    return f"{number / 60:g} min" if number >= 120 and not number % 60 else f"{number:g} s"


def skew(step: Any) -> str:
    """Between the first and the last host, by their own clocks."""
    return f"{(step.skew.seconds * 1e9 + step.skew.nanos) / 1e6:.1f} ms" if step.HasField("skew") else ""


def rows(rollout: Any) -> list[tuple[str, str]]:
    """Label and text of what is planned and how it stands."""
    found = [("move", headline(rollout).partition(": ")[2]), ("why", f"{rollout.reason}: {rollout.text}".strip(": "))]
    begun = {step.step: step for step in rollout.status.steps}
    for number, step in enumerate(rollout.steps, 1):
        text = f"{number}: {weights(step)}, hold {seconds(step.hold)}"
        if number in begun and skew(begun[number]):
            text += f" · on {len(begun[number].hosts)} hosts, skew {skew(begun[number])}"
        elif number in begun:
            text += " · begun"
        found.append(("steps" if number == 1 else "", text))
    gates = [f"{gate.gate}: {output.enum_of(gate, 'result')} {gate.text}".rstrip() for gate in rollout.status.gates]
    found += [("gates" if not number else "", text) for number, text in enumerate(gates)]
    found += [(f.replace("_", " "), seconds(getattr(rollout, f))) for f in _TIMES if rollout.HasField(f)]
    found += [(f.replace("_", " "), output.enum_of(rollout, f)) for f in _CHOICES if getattr(rollout, f)]
    if rollout.status.waiting:
        found.append(("now", rollout.status.waiting))
    if rollout.status.behind:
        found.append(("behind", " ".join(map(output.short, rollout.status.behind))))
    return found


# ---- lines


def lines(before: Any | None, now: Any) -> Iterator[str]:
    """What has happened between two looks, oldest first; `before` None: everything up to now."""
    told = {entry.SerializeToString() for entry in before.history} if before else set()
    for entry in now.history:
        if entry.SerializeToString() not in told:
            yield entry_line(entry)
    if before is None:
        return
    head = f"{datetime.now():%T}  {state(now):<13}"
    for text in _differences(before.status, now.status):
        yield f"{head} {text}"


def _differences(before: Any, now: Any) -> Iterator[str]:
    gates = {gate.gate: gate.result for gate in before.gates}
    for gate in now.gates:
        if gates.get(gate.gate) != gate.result:
            yield f"gate {gate.gate}: {output.enum_of(gate, 'result')} {gate.text}".rstrip()
    if list(before.behind) != list(now.behind):
        names = ", ".join(map(output.short, now.behind))
        yield f"without it: {names}" if names else "all hosts have it"
    waiting = now.waiting
    if waiting and not waiting.startswith(("holds", "waits for connections")) and waiting != before.waiting:
        yield waiting


def entry_line(entry: Any) -> str:
    """One transition."""
    word = output.enum_of(entry, "state")
    step = f" step {entry.step}" if word == "SHIFTING" else ""
    actor = f" ({entry.actor})" if entry.actor else ""
    return f"{output.moment(entry.time)[-8:]}  {word + step:<13} {entry.reason}: {entry.text}{actor}".rstrip(": ")


# ---- one screen


def screen(rollout: Any) -> Any:
    """Everything at a glance, for rich."""
    from rich.console import Group
    from rich.text import Text

    word = state(rollout)
    head = Text.assemble(
        (word, f"bold {_STATES.get(word, 'cyan')}"),
        f"  {headline(rollout)}  step {rollout.step} of {len(rollout.steps)}",
    )
    parts: list[Any] = [head]
    if rollout.status.waiting:
        parts.append(Text(f"  {rollout.status.waiting}", style="yellow"))
    parts += [Text(), _shares(rollout), Text(), *_steps(rollout)]
    if rollout.status.gates:
        parts += [Text(), *map(_gate, rollout.status.gates)]
    parts += [Text(), _hosts(rollout)]
    for condition in rollout.status.conditions:
        parts.append(Text(f"! {condition.type}: {condition.text} ({condition.remedy})", style="red"))
    parts += [Text(), *(Text(entry_line(entry), style="dim") for entry in rollout.history[-_NEWEST:])]
    if word == "CONFIRMING":
        parts.append(Text(f"confirm it: teal rollout confirm {output.named(rollout.name)}", style="bold yellow"))
    return Group(*parts)


def _shares(rollout: Any) -> Any:
    """Weights as bars, connections, failures."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2), header_style="bold")
    for title in ("NETWORK", "COLOR", "WEIGHT", "", "OPEN", "NEW", "FAILED"):
        table.add_column(title, justify="right" if title in ("WEIGHT", "OPEN", "NEW", "FAILED") else "left")
    for network in rollout.status.networks:
        total = sum(color.weight for color in network.colors) or 1
        for number, color in enumerate(network.colors):
            filled = round(_BAR * color.weight / total)
            failed = f"{color.failed} ({color.failed / color.opened:.1%})" if color.failed and color.opened else "0"
            table.add_row(
                output.short(network.network) if not number else "",
                Text(color.color, style=color.color if color.color in ("blue", "green", "red") else ""),
                f"{100 * color.weight / total:.0f} %",
                Text("█" * filled + "░" * (_BAR - filled), style="cyan" if color.weight else "dim"),
                str(color.connections),
                str(color.opened),
                Text(failed, style="red" if color.failed else ""),
            )
    return table


def _steps(rollout: Any) -> Sequence[Any]:
    from rich.text import Text

    begun = {step.step: step for step in rollout.status.steps}
    found = []
    for number, step in enumerate(rollout.steps, 1):
        status = begun.get(number)
        current = number == rollout.step and not is_over(rollout)
        mark = "▶" if current else "✓" if status else "·"
        line = f"{mark} step {number}: {weights(step)}, hold {seconds(step.hold)}"
        if status and skew(status):
            line += f"   on {len(status.hosts)} hosts, skew {skew(status)}"
        elif status and current and status.hosts:
            line += f"   on {len(status.hosts)} hosts so far"
        found.append(Text(line, style="bold" if current else "" if status else "dim"))
    return found


def _gate(gate: Any) -> Any:
    from rich.text import Text

    mark, color = _RESULTS.get(output.enum_of(gate, "result"), ("?", ""))
    return Text.assemble((mark, color), f" {gate.gate}: {gate.text}")


def _hosts(rollout: Any) -> Any:
    from rich.text import Text

    hosts, behind = len(rollout.status.hosts), [output.short(name) for name in rollout.status.behind]
    line = Text(f"hosts: {hosts} report")
    if behind:
        line.append(f", without it: {', '.join(behind)}", style="red")
    armed = sum(host.armed for host in rollout.status.hosts)
    if armed:
        line.append(f", {armed} hold the step until its instant")
    return line
