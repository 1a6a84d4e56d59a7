"""Becomes etcd. Run as a script by `embedded`, in a fresh interpreter: `child.py PARENT PIDFILE PROGRAM ARGUMENT…`.

Between the fork and the exec three things must happen that the parent can't do from outside without a gap: ask the
kernel to kill us when the parent dies (prctl(2), PR_SET_PDEATHSIG, which survives the exec), see that it has not died
already, and write down who we are before etcd can take the data directory. A `preexec_fn` would do it in the forked
copy of a process with gRPC's threads, which may deadlock. Standard library only: it starts with `-I -S`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def start_time(pid: int | str) -> str:
    """When a process started, in clock ticks since boot: field 22 of /proc/<pid>/stat (proc(5)); "" if it is gone.

    With the pid it names a process for as long as the machine runs.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]  # the name before it may hold spaces and brackets


def boot_id() -> str:
    """Changes at every boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def main(arguments: list[str]) -> None:
    """Never returns."""
    parent, pid_file, program = int(arguments[0]), Path(arguments[1]), arguments[2]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise SystemExit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        raise SystemExit("the controller is gone")
    draft = pid_file.with_suffix(".new")
    draft.write_text(f"{os.getpid()} {start_time('self')} {boot_id()}\n")
    draft.replace(pid_file)
    os.execv(program, arguments[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
