"""Histories of the simulation in forked children, a few at a time: each has its own clocks and its own chance."""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict

from tests.chaos.simulation import Verdict, directory_of, run

LIMIT = 120.0  # seconds of a processor for one history, however many others want it; most take one
_NO_RANDOM_ADDRESSES = 0x0040000  # ADDR_NO_RANDOMIZE of personality(2)
_TAIL = 400  # lines of the trace that are kept


def repeatable() -> None:
    """Start this program anew without what differs from run to run: hashes of strings, addresses of objects."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        ctypes.CDLL(None).personality(_NO_RANDOM_ADDRESSES)
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONHASHSEED": "0"})


def verdicts(seeds: Iterator[int], *, workers: int, more: Callable[[], bool]) -> Iterator[Verdict]:
    """Of as many seeds as there is time for: `more` is asked before each."""
    live: dict[int, tuple[int, int]] = {}  # descriptor → process id, seed
    try:
        while True:
            while len(live) < workers and more() and (seed := next(seeds, None)) is not None:
                descriptor, pid = _begin(seed)
                live[descriptor] = pid, seed
            if not live:
                return
            for descriptor in select.select(list(live), [], [])[0]:
                pid, seed = live.pop(descriptor)
                yield _end(descriptor, pid, seed)
    finally:
        for descriptor, (pid, _) in live.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(descriptor)
            shutil.rmtree(directory_of(pid), ignore_errors=True)


def _begin(seed: int) -> tuple[int, int]:
    sys.stdout.flush()
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return ours, pid
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        os.close(ours)
        try:
            verdict = run(seed)
        except BaseException:
            verdict = Verdict(seed, [traceback.format_exc()])
        verdict.trace = [line[:300] for line in verdict.trace[-_TAIL:]] if verdict.wrong else []
        verdict.wrong = [str(line)[:3000] for line in verdict.wrong[:20]]
        data = json.dumps(asdict(verdict)).encode()
        while data:
            data = data[os.write(theirs, data) :]
    finally:
        os._exit(0)


def _end(descriptor: int, pid: int, seed: int) -> Verdict:
    data = b""
    while part := os.read(descriptor, 1 << 16):
        data += part
    os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    shutil.rmtree(directory_of(pid), ignore_errors=True)  # of one that was killed
    try:
        return Verdict(**json.loads(data))
    except ValueError:
        how = "took too long" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF else f"died: {status}"
        return Verdict(seed, [f"the process of this history {how}"])
