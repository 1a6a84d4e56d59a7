"""Finds and ends an etcd that an earlier controller left behind.

Normally there is none: the child dies with its parent. It is found by the pid file it wrote, and only if the process
with that pid started when the file says, on this boot: a reused pid is never touched.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
from pathlib import Path

import structlog

from controller.etcd.child import boot_id, start_time

log = structlog.get_logger()


async def end_stale(pid_file: Path, *, patience: float = 5.0) -> int:
    """End the process that `pid_file` names, if it still runs, and remove the file; returns its pid, or 0 if none.

    SIGTERM, after `patience` seconds SIGKILL; returns when the process is gone.
    """
    pid, handle = _open_recorded(pid_file)
    if handle is not None:
        try:
            log.warning("ending an etcd left behind by an earlier controller", pid=pid)
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(handle, number)
                if await asyncio.to_thread(_gone, handle, patience):
                    break
        finally:
            os.close(handle)
    await asyncio.to_thread(pid_file.unlink, missing_ok=True)
    return pid


def _open_recorded(pid_file: Path) -> tuple[int, int | None]:
    """The recorded process and a handle to it, or (0, None).

    The handle is opened before the start time is compared, so that what is compared is what will be signalled.
    """
    try:
        pid, started, boot = pid_file.read_text().split()
        handle = os.pidfd_open(int(pid))
    except (OSError, ValueError):  # no file, half a file, no such process
        return 0, None
    if start_time(pid) == started and boot_id() == boot:
        return int(pid), handle
    os.close(handle)
    return 0, None


def _gone(handle: int, patience: float) -> bool:
    poller = select.poll()
    poller.register(handle, select.POLLIN)  # a pidfd becomes readable when its process ends (pidfd_open(2))
    return bool(poller.poll(patience * 1000))
