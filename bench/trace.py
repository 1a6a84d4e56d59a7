"""Where each millisecond goes: the moments an agent notes in its log at level debug, on the clock of this machine.

Events: `unit taken` and, with a layer, `read` and `applied`; each has `began` (s, monotonic clock) and `ms`.
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
    its last end; `LAYER_busy` is the sum of what lies between, `LAYER_read` what it has spent on reading back.
    """
    found: dict[str, float] = {}
    for event in events:
        begin, took = event.get("began", 0.0), event.get("ms", 0.0)
        if not started <= begin <= ended:
            continue
        begin = (begin - started) * 1000
        match event["event"]:
            case "unit taken":
                found.setdefault("received", begin)
                found.setdefault("taken", begin + took)
            case "read":
                name = f"{event['layer']}_read"
                found[name] = found.get(name, 0.0) + took
            case "applied" if event["write"]:
                layer = event["layer"]
                found.setdefault(f"{layer}_begin", begin)
                found[f"{layer}_end"] = begin + took
                found[f"{layer}_busy"] = found.get(f"{layer}_busy", 0.0) + took
    return found
