"""Traffic from and to workloads of a lab: what the demo, tests and benchmarks say in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tealnet.lab.errors import LabError
from tealnet.lab.host import Host, python_env

_START = 15.0


@dataclass(frozen=True, slots=True)
class Workload:
    """A port as traffic needs it: its host, namespace and addresses."""

    host: Host
    netns: str
    name: str
    mac: str
    addresses: tuple[str, ...]
    interface: str = "eth0"

    @property
    def v4(self) -> str:
        """Its first v4 address."""
        return next(a for a in self.addresses if ":" not in a)

    @property
    def v6(self) -> str:
        """Its first v6 address."""
        return next(a for a in self.addresses if ":" in a)

    def argv(self, word: str, *rest: str) -> list[str]:
        """A probe inside the workload."""
        return probe_argv(self.host, word, *rest, netns=self.netns)

    def probe(self, word: str, *rest: str, seconds: float = 60.0) -> dict[str, Any]:
        """Run a probe to its end and take its answer."""
        done = subprocess.run(
            self.argv(word, *rest), capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
        )
        return _answer(done.stdout, done.stderr, what=f"{word} in {self.name}")

    def ping(self, address: str, *, count: int = 3, interval: float = 0.05) -> dict[str, Any]:
        """Echo requests; the answer has sent, received, lost, rtt_p50_ms."""
        with self.running("ping", address, "--count", str(count), "--interval", str(interval)) as probe:
            probe.wait()
        return probe.result

    def running(self, word: str, *rest: str, ends: float = _START) -> AbstractContextManager[Running]:
        """A long-running probe: ready at entry, ended at exit within `ends` seconds, its answer in `.result`."""
        return probing(self.argv(word, *rest), f"{word} in {self.name}", ends=ends)


def capture(host: Host, interface: str) -> AbstractContextManager[Running]:
    """All frames that arrive on a device of the host itself; `.result["frames"]` after the end, as hex."""
    return probing(probe_argv(host, "sniff", interface), f"capture on {interface} of {host.name}")


def probe_argv(host: Host, word: str, *rest: str, netns: str = "") -> list[str]:
    """The command line of a probe on a host, or in one of its namespaces."""
    env = [f"{key}={value}" for key, value in python_env().items()]
    return host.argv(["env", *env, sys.executable, "-m", "tealnet.probe", word, *rest], netns=netns)


@contextmanager
def probing(argv: list[str], what: str, *, ends: float = _START) -> Iterator[Running]:
    """Any long-running probe by its command line: ready at entry, ended at exit."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # so that what readline leaves is still there for communicate
    )
    running = Running(process, what, ends=ends)
    try:
        running.ready()
        yield running
    finally:
        running.end()


@dataclass
class Running:
    """A probe under way."""

    process: subprocess.Popen[bytes]
    what: str
    result: dict[str, Any] = field(default_factory=dict)
    ends: float = _START  # seconds

    def ready(self) -> None:
        """Wait until it says so."""
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != b"ready":
            _, errors = self.process.communicate(timeout=_START)
            raise LabError(f"{self.what} did not start: {errors.decode().strip()[-300:]}")

    def wait(self) -> None:
        """Until it ends by itself (a ping with a count)."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.result = _answer(line.decode(), "", what=self.what)

    def end(self) -> None:
        """Close its standard input, take the answer; it never outlives this."""
        try:
            out, errors = self.process.communicate(input=b"", timeout=self.ends)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise LabError(f"{self.what} did not end") from None
        if not self.result:
            self.result = _answer(out.decode(), errors.decode(), what=self.what)


def _answer(out: str, errors: str, *, what: str) -> dict[str, Any]:
    lines = out.strip().splitlines()
    try:
        answer: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        raise LabError(f"{what} gave no answer: {(errors or out).strip()[-300:]}") from None
    return answer
