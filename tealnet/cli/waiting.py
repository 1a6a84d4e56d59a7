"""--wait and `teal sync`: has it reached the data plane, and if not, whose fault is it and what to do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tealnet.cli import output
from tealnet.cli.progress import Progress
from tealnet.cli.session import Failure, Session, lab_command

DISCONNECTED, BEHIND, FAILED = 3, 4, 5  # exit codes


class SyncFailure(Failure):
    """A Sync that is not complete: names who is behind, failed, disconnected or lost."""

    def __init__(self, answer: Any, *, context: dict[str, Any]) -> None:
        known = f"{answer.synced} of {answer.hosts} hosts know it (revision {answer.revision})"
        count = len(answer.failed)
        lines = [f"{count} failure{'s' if count > 1 else ''} on hosts; {known}" if count else known]
        lines += [f"  {_short(f.host)}: {_object(f.object)} failed: {_reason(f)}" for f in answer.failed]
        lines += [
            f"  {_short(lag.host)} is behind: it has revision {lag.revision} on its devices" for lag in answer.behind
        ]
        for host in map(output.short, answer.disconnected):
            look = lab_command(context, f"logs {host} agent") or f"ssh {host} systemctl status tealnet-agent"
            lines.append(f"  {host} is disconnected: its agent has no session and goes on with what it knew.")
            lines.append(f"    Why: `{look}`. If it is gone for good: `teal host fence {host}`")
        for host in map(output.short, answer.lost):
            lines.append(f"  {host} is lost: silent for long; it may still forward.")
            lines.append(f"    If it is gone for good: `teal host fence {host}`")
        code = FAILED if answer.failed else BEHIND if answer.behind else DISCONNECTED
        super().__init__("\n".join(lines), code=code)


def wait_for(
    session: Session, *, parents: Sequence[str] = ("",), timeout: float, revision: int = 0, only: Sequence[str] = ()
) -> str:
    """Wait until the data plane has everything up to `revision` (0: now) of the parents; says who knows it.

    With `only` (resource names) failures of other objects do not count. Raises SyncFailure.
    """
    deadline = time.monotonic() + timeout
    said = []
    with Progress("waiting for the hosts") as progress:
        for parent in parents:
            if len(parents) > 1:
                progress.step(f"waiting for the hosts of {output.short(parent)}")
            left = max(0.1, deadline - time.monotonic())
            answer = session.client.sync(revision, parent=parent, timeout=left)
            if not _is_well(answer, only):
                raise SyncFailure(answer, context=session.settings())
            prefix = f"{output.short(parent)}: " if len(parents) > 1 else ""
            said.append(prefix + in_words(answer))
    return "; ".join(said)


def in_words(answer: Any) -> str:
    """3 of 3 hosts know it (212 ms)"""
    if not answer.hosts:
        return "no host needs to know it"
    hosts = "host knows" if answer.hosts == 1 else "hosts know"
    return f"{answer.synced} of {answer.hosts} {hosts} it ({answer.took.ToMicroseconds() / 1000:.0f} ms)"


def _is_well(answer: Any, only: Sequence[str]) -> bool:
    if answer.complete:
        return True
    concerned = [f for f in answer.failed if not only or f.object in only or not f.object.startswith("tenants/")]
    return bool(only) and not (concerned or answer.behind or answer.disconnected or answer.lost)


def _short(host: str) -> str:
    return output.short(host)


def _object(name: str) -> str:
    return output.title(name) if name.startswith(("tenants/", "hosts/")) else name


def _reason(failure: Any) -> str:
    return f"{failure.reason}: {failure.text}" if failure.text else str(failure.reason)
