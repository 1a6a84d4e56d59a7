"""Processes by identity: a process id together with its start time, so that a number used again is never mistaken."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """One process of this machine. `start` is field 22 of /proc/PID/stat (clock ticks since boot, proc(5))."""

    pid: int
    start: int

    def state(self) -> str:
        """The state letter of proc(5) (`R`, `S`, `T`, …), or nothing if this process has ended."""
        letter = self._letter()
        return "" if letter in "ZX" else letter

    def alive(self) -> bool:
        """Whether this very process runs."""
        return bool(self.state())

    def pidfd(self) -> int | None:
        """A descriptor that stays with this process, or None if it is gone (pidfd_open(2)).

        A first thread that has ended (`Z`) may have others that have not: such a process is not gone yet.
        """
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        # Checked after opening: from here on the number cannot come to mean another process.
        if self._letter():
            return fd
        os.close(fd)
        return None

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to this very process; False if it is gone."""
        fd = self.pidfd()
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True

    def _letter(self) -> str:
        try:
            with open(f"/proc/{self.pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return fields[0] if int(fields[19]) == self.start else ""


def below(pid: int) -> list[int]:
    """Process ids of what a process has started and what these have started, nearest first within a branch."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):  # per thread (proc(5))
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, children.read_text().split()):
                found += [child, *below(child)]
    return found


def child_called(name: str, *, parent: Process) -> Process | None:
    """The process whose command name (comm) is `name` below `parent`, or None."""
    for pid in below(parent.pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            head, tail = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)
            found = Process(pid, int(tail.split()[19]))
            if head.split("(", 1)[1] == name and found.alive() and parent.alive():
                return found
    return None


def end(processes: Iterable[Process], *, seconds: float) -> list[Process]:
    """Kill processes (SIGKILL) and wait until they are gone; returns those that were not within `seconds`."""
    descriptors = {fd: process for process in processes if (fd := process.pidfd()) is not None}
    try:
        for fd in descriptors:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        return wait_gone(descriptors, seconds=seconds)
    finally:
        for fd in descriptors:
            os.close(fd)


def wait_gone(descriptors: dict[int, Process], *, seconds: float) -> list[Process]:
    """Wait until the processes behind pidfds have ended (then they poll readable); returns the rest."""
    poll = select.poll()
    for fd in descriptors:
        poll.register(fd, select.POLLIN)
    left = set(descriptors)
    deadline = time.monotonic() + seconds
    while left and (rest := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(rest * 1000):
            poll.unregister(fd)
            left.discard(fd)
    return [descriptors[fd] for fd in left]


def wait_end(process: Process, *, seconds: float) -> bool:
    """Wait until a process has ended; False if it has not within `seconds`."""
    fd = process.pidfd()
    if fd is None:
        return True
    try:
        return not wait_gone({fd: process}, seconds=seconds)
    finally:
        os.close(fd)
