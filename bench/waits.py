"""Who ran on the processors, and who waited for one: the kernel's own account, thread by thread.

/proc/TID/schedstat tells ns on a processor and ns runnable without one (Documentation/scheduler/sched-stats.rst).
What a machine with too few processors adds to a latency is in the latter.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = {  # a word of the command line → name
    "ovs-vswitchd": "vswitchd",
    "ovsdb-server": "ovsdb",
    "etcd": "etcd",
    "controller": "controller",
    "agent": "agent",
    "load": "load",
    "hold": "held",
    "answer": "servers",
}


@dataclass
class Waits:
    """From its making on. `tasks` is a cgroup's file with the ids of all threads that count."""

    tasks: Path
    began: float = field(default_factory=time.monotonic)
    _before: dict[int, tuple[str, int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self._before = _read(self.tasks)

    def cores(self) -> dict[str, tuple[float, float]]:
        """By program: how many threads of it ran, and waited, at a time."""
        seconds = time.monotonic() - self.began
        sums: dict[str, list[float]] = {}
        for thread, (name, ran, waited) in _read(self.tasks).items():
            _, ran_before, waited_before = self._before.get(thread, (name, 0, 0))
            both = sums.setdefault(name, [0.0, 0.0])
            both[0] += (ran - ran_before) / 1e9
            both[1] += (waited - waited_before) / 1e9
        return {name: (on / seconds, off / seconds) for name, (on, off) in sorted(sums.items())}


def _read(tasks: Path) -> dict[int, tuple[str, int, int]]:
    found = {}
    for thread in map(int, tasks.read_text().split()):
        try:
            ran, waited, _ = Path(f"/proc/{thread}/schedstat").read_text().split()
            command = Path(f"/proc/{thread}/cmdline").read_bytes().decode().split("\0")
        except (OSError, ValueError):
            continue  # it has ended
        found[thread] = (_name(command), int(ran), int(waited))
    return found


def _name(command: Iterable[str]) -> str:
    words = {word.rpartition("/")[2].removeprefix("teal-") for word in command}
    return next((name for word, name in PROGRAMS.items() if word in words), "other")
