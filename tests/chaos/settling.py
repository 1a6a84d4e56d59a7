"""How long a lab takes to be as it is to be after the last fault, what it waited for meanwhile, and whose time it was.

The promise is that of a machine which has processors for it. How short they were is told by the kernel: the share of
the time in which somebody was ready to run and had to wait (pressure stall information, /proc/pressure/cpu).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tealnet.client import ApiError
from tealnet.lab.errors import LabError
from tealnet.lab.wait import wait_for

if TYPE_CHECKING:
    from tealnet.lab.machine import Machine
    from tests.chaos.rig import Rig

PROMISE = 5.0  # seconds after the last fault
VSWITCHD = 8.0  # … more where an ovsdb-server was away: so long vswitchd may wait before it looks for it again
BUSY = 0.5  # share of the time that somebody waited for a processor, from which on a late one is not held against us
LONGEST = 60.0  # seconds until it counts as never
_PRESSURE = Path("/proc/pressure/cpu")
_LINES = 400  # of logs that are shown


@dataclass
class Settling:
    """What came after the last fault; times in seconds from its end."""

    seconds: float = 0.0
    waited: list[tuple[float, str]] = field(default_factory=list)  # from when on it was this that was missing
    pressure: float = 0.0  # see the module
    promise: float = PROMISE

    @property
    def is_late(self) -> bool:
        """The promise was not kept."""
        return self.seconds > self.promise

    @property
    def is_ours(self) -> bool:
        """… and there were processors for it."""
        return self.is_late and self.pressure < BUSY

    def lines(self) -> list[str]:
        """What was missing, for how long."""
        ends = [since for since, _ in self.waited[1:]] + [self.seconds]
        return [
            f"{since:7.2f} to {end:.2f} s: {what}" for (since, what), end in zip(self.waited, ends, strict=True) if what
        ]


def settle(rig: Rig, *, since: float | None = None) -> Settling:
    """Wait until all is up and every host has everything; `since` is the end of the last fault, monotonic.

    Raises AssertionError when it never is.
    """
    began = time.monotonic()
    since = began if since is None else since
    found, stalled = Settling(), _stalled()

    def so() -> bool:
        missing = _missing(rig)
        if not found.waited or found.waited[-1][1] != missing:
            found.waited.append((time.monotonic() - since, missing))
        return not missing

    try:
        wait_for(so, seconds=LONGEST, what="all is as it is to be", every=0.02)
    except LabError as error:
        raise AssertionError("\n".join([str(error), *found.lines()])) from None
    ended = time.monotonic()
    found.seconds = ended - since
    found.pressure = (_stalled() - stalled) / max(ended - began, 0.001)
    return found


def _missing(rig: Rig) -> str:
    """What is not as it is to be; "" if all is."""
    if missing := rig.whole():
        return missing
    try:
        answer = rig.stand.client.sync(timeout=0.5)
    except ApiError as error:
        return f"Sync: {error.code.name} {error.message}"
    if answer.complete:
        return ""
    behind = [f"{host.host} is behind" for host in answer.behind]
    failed = [f"{failure.host}: {failure.object} {failure.reason}" for failure in answer.failed]
    away = [f"{name} has no session" for name in (*answer.disconnected, *answer.lost)]
    return "; ".join([*behind, *failed, *away]) or str(answer)


def _stalled() -> float:
    """Seconds since boot in which somebody had to wait for a processor."""
    try:
        text = _PRESSURE.read_text()
    except OSError:  # a kernel that does not tell: then it is always ours
        return 0.0
    return int(text.split("total=")[1].split()[0]) / 1e6


def logs(machines: Sequence[Machine], *, since: float) -> list[str]:
    """What their daemons have logged from that moment of the monotonic clock on, in order of time, seconds after it."""
    offset = time.time() - time.monotonic()
    found: list[tuple[float, str]] = []
    for machine in machines:
        for name, parse in (("tealnet", _ours), ("openvswitch", _switch)):
            for path in sorted(machine.disk(f"/var/log/{name}").glob("*.log")):
                with suppress(OSError):
                    for line in path.read_text(errors="replace").splitlines()[-_LINES:]:
                        at = parse(line)
                        if at - offset >= since:
                            found.append((at - offset - since, f"{machine.name} {path.stem}: {line}"))
    return [f"{at:8.3f}  {line}" for at, line in sorted(found)[:_LINES]]


def _ours(line: str) -> float:
    """Unix time of a line of our daemons; 0 if it is none."""
    with suppress(ValueError, KeyError, TypeError):
        return datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
    return 0.0


def _switch(line: str) -> float:
    """… of Open vSwitch's."""
    with suppress(ValueError):
        return datetime.strptime(line.partition("|")[0], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()
    return 0.0


def distribution(found: Sequence[Settling], *, say: Callable[[str], None]) -> None:
    """Tell how long it took."""
    if not found:
        return
    times = sorted(one.seconds for one in found)
    late = [one for one in found if one.is_late]
    say(
        f"as it is to be after the last fault, of {len(times)} histories: least {times[0]:.2f}, "
        f"p50 {times[len(times) // 2]:.2f}, p90 {times[int(len(times) * 0.9)]:.2f}, most {times[-1]:.2f} s; "
        f"later than promised: {len(late)}, of these with processors to spare: {sum(o.is_ours for o in late)}"
    )
