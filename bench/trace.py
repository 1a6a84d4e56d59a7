"""Where each millisecond goes: the moments an agent notes in its log at level debug, on the clock of this machine.

Events: `unit taken` (received_ns, taken_ns) and `applied` (layer, write, delete, begin_ns, end_ns), monotonic clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAYERS = ("netns", "link", "guard", "ovsdb", "address", "flow")


@dataclass(slots=True)
class Trace:
    """Reads what a log says from now on."""

    log: Path
    _offset: int = field(init=False)

    def __post_init__(self) -> None:
        self._offset = self.log.stat().st_size

    def events(self) -> list[dict[str, Any]]:
        """What was written since the last call."""
        with self.log.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        return list(_parsed(data[:whole].splitlines()))


def _parsed(lines: Iterable[bytes]) -> Iterable[dict[str, Any]]:
    for line in lines:
        if line.startswith(b"{"):
            yield json.loads(line)


def moments(events: Iterable[dict[str, Any]], *, started: float, ended: float) -> dict[str, float]:
    """Ms from `started` at which each step of one attachment began and ended; `started`, `ended` monotonic seconds.

    A layer that wrote more than once (flows of the endpoint, then of the opened port) counts from its first begin to
    its last end; `busy_LAYER` is the sum of what lies between.
    """
    found: dict[str, float] = {}
    for event in events:
        if event.get("event") == "unit taken" and _within(event["received_ns"], started, ended):
            found.setdefault("received", event["received_ns"] / 1e6 - started * 1000)
            found.setdefault("taken", event["taken_ns"] / 1e6 - started * 1000)
        elif event.get("event") == "applied" and event["write"] and _within(event["begin_ns"], started, ended):
            layer, begin, end = event["layer"], event["begin_ns"] / 1e6, event["end_ns"] / 1e6
            found.setdefault(f"{layer}_begin", begin - started * 1000)
            found[f"{layer}_end"] = end - started * 1000
            found[f"{layer}_busy"] = found.get(f"{layer}_busy", 0.0) + end - begin
    return found


def _within(ns: int, started: float, ended: float) -> bool:
    return started <= ns / 1e9 <= ended
