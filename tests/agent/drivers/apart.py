"""Tests marked `isolated` run in a process with network and mount namespaces of its own, never in the machine's.

One helper process per session has imported and collected them; it is told which one to run, and forks for it. So a
test costs a fork and two namespaces (0.05 s), not an interpreter that starts and imports everything (0.6 s). The helper
itself runs no test and starts no thread: it can be forked at any time.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

INSIDE = "TEALNET_TEST_ISOLATED"
"""In the environment of the helper: the number of its end of the socket."""
LIMIT = 90  # seconds for a test
START = 60  # … until the helper has collected all
CLONE_NEWNS, CLONE_NEWNET, PR_SET_PDEATHSIG = 0x00020000, 0x40000000, 1  # sched.h, prctl.h
PREPARE = "mount --make-rprivate / && mount -t tmpfs tmpfs /run && ip link set lo up"
OPTIONS = ("-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-p", "no:hypothesispytest")
HELPER = pytest.StashKey["Helper"]()


# ---- in the session


class Helper:
    """The process that forks; ended with the session, and by the kernel if that is killed."""

    def __init__(self, root: Path, files: Iterable[Path]) -> None:
        ours, theirs = socket.socketpair()
        command = ("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "pytest", *OPTIONS, *map(str, files))
        with theirs:
            self.process = subprocess.Popen(
                command,
                env=os.environ | {INSIDE: str(theirs.fileno())},
                cwd=root,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        ours.settimeout(START + LIMIT)
        self.lines = ours.makefile("rw")
        ours.close()

    def run(self, nodeid: str) -> list[dict[str, Any]]:
        """The reports of one test; raises RuntimeError with what the helper has printed if there are none."""
        try:
            self.lines.write(json.dumps(nodeid) + "\n")
            self.lines.flush()
            answer = self.lines.readline()
        except OSError as error:
            answer = ""
            self.process.kill()
            problem = str(error)
        else:
            problem = "it has ended"
        if not answer:
            raise RuntimeError(f"no answer: {problem}\n{self.process.communicate()[0].decode(errors='replace')}")
        found: list[dict[str, Any]] = json.loads(answer)
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.lines.close()


def run_apart(item: pytest.Item) -> list[pytest.TestReport]:
    """What came of an isolated test."""
    if os.geteuid() != 0:
        reason = (str(item.path), 0, "needs root")
        return [pytest.TestReport(item.nodeid, item.location, {}, "skipped", reason, "call")]
    stash, began = item.session.stash, time.time()
    try:
        if HELPER not in stash:
            isolated = {other.path for other in item.session.items if other.get_closest_marker("isolated")}
            stash[HELPER] = Helper(item.config.rootpath, sorted(isolated))
        reports = stash[HELPER].run(item.nodeid)
    except RuntimeError as error:
        close(item.session)
        took = time.time() - began
        return [pytest.TestReport(item.nodeid, item.location, {}, "failed", str(error), "call", duration=took)]
    return [_report(item, data) for data in reports]


def _report(item: pytest.Item, data: dict[str, Any]) -> pytest.TestReport:
    report: pytest.TestReport = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
    if isinstance(report.longrepr, list):  # why it was skipped: JSON has no tuples
        report.longrepr = tuple(report.longrepr)
    return report


def close(session: pytest.Session) -> None:
    """End the helper, if there is one."""
    if helper := session.stash.get(HELPER, None):
        del session.stash[HELPER]
        helper.close()


# ---- in the helper


def serve(session: pytest.Session) -> None:
    """Fork for each test that is asked for, until nobody asks."""
    items = {item.nodeid: item for item in session.items}
    with socket.socket(fileno=int(os.environ[INSIDE])) as plain, plain.makefile("rw") as lines:
        for line in lines:
            nodeid = json.loads(line)
            lines.write(_forked(items[nodeid]) + "\n")
            lines.flush()


def _forked(item: pytest.Item) -> str:
    """The reports of a test that runs in a child of ours, as JSON."""
    read, write = os.pipe()
    if not (child := os.fork()):
        code = 1
        try:
            os.close(read)
            _unshare()
            with os.fdopen(write, "w") as out:
                out.write(json.dumps(_reports(item)))
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as source:
        text = _all(source.fileno())
    os.kill(child, signal.SIGKILL)  # has ended, or does not
    os.waitpid(child, 0)
    if text:
        return text.decode()
    lost = pytest.TestReport(
        item.nodeid, item.location, {}, "failed", f"its process ended without a result, or not in {LIMIT} s", "call"
    )
    return json.dumps([item.config.hook.pytest_report_to_serializable(config=item.config, report=lost)])


def _all(source: int) -> bytes:
    """What is said before the end, or nothing if that does not come in time."""
    text, end = b"", time.monotonic() + LIMIT
    while select.select([source], [], [], max(0.0, end - time.monotonic()))[0]:
        if not (part := os.read(source, 1 << 16)):
            return text
        text += part
    return b""


def _unshare() -> None:
    """Namespaces of its own; all that is left in them goes with its last process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) or libc.unshare(CLONE_NEWNET | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["sh", "-ec", PREPARE], check=True)


def _reports(item: pytest.Item) -> list[Any]:
    hook = item.config.hook
    found = runtestprotocol(item, log=False, nextitem=None)
    return [hook.pytest_report_to_serializable(config=item.config, report=report) for report in found]
