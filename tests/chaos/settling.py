"""How long a lab takes to be as it is to be after the last fault, what it waited for meanwhile, and whose time it was.

The promise is that of a machine which has its processors for itself. How much of them others took meanwhile is added up
from /proc: whatever is neither in a machine of the lab nor a child of this process. What the lab itself takes is ours.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tealnet.client import ApiError
from tealnet.lab.errors import LabError
from tealnet.lab.process import below
from tealnet.lab.wait import wait_for

if TYPE_CHECKING:
    from tealnet.lab.machine import Machine
    from tests.chaos.rig import Rig

PROMISE = 5.0  # seconds after the last fault
VSWITCHD = 8.0  # … more where an ovsdb-server was away: so long vswitchd may wait before it looks for it again
BUSY = 0.25  # share of the processors that others took, from which on a late one is not held against us
LONGEST = 60.0  # seconds until it counts as never
_TICKS = os.sysconf("SC_CLK_TCK")
_LINES = 400  # of logs that are shown


@dataclass
class Settling:
    """What came after the last fault; times in seconds from its end."""

    seconds: float = 0.0
    waited: list[tuple[float, str]] = field(default_factory=list)  # from when on it was this that was missing
    others: float = 0.0  # share of the processors; see the module
    promise: float = PROMISE

    @property
    def is_late(self) -> bool:
        """The promise was not kept."""
        return self.seconds > self.promise

    @property
    def is_ours(self) -> bool:
        """… and it was not for others."""
        return self.is_late and self.others < BUSY

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
    found, taken = Settling(), _taken_by_others(rig)

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
    now = _taken_by_others(rig)
    seconds = sum(max(used - taken.get(process, 0.0), 0.0) for process, used in now.items())
    found.others = seconds / max(ended - began, 0.001) / (os.cpu_count() or 1)
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


def _taken_by_others(rig: Rig) -> dict[tuple[int, int], float]:
    """By process (id, start): seconds of a processor that it has had. Who comes and goes in between is missed."""
    machines: list[Machine] = [*rig.lab.controllers, *rig.lab.members, *rig.lab.hosts]
    inside = {process for machine in machines for name in machine.processes if (process := machine.process(name))}
    spaces = {_pid_space(process.pid) for process in inside} - {_pid_space(os.getpid())}
    own = {os.getpid(), *below(os.getpid())}
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in own and _pid_space(int(entry.name)) not in spaces:
            with suppress(OSError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                found[int(entry.name), int(fields[19])] = sum(map(int, fields[11:13])) / _TICKS
    return found


def _pid_space(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


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
        f"later than promised: {len(late)}, of these not for others: {sum(o.is_ours for o in late)}"
    )
