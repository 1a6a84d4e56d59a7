"""Traffic between two workloads: TCP and small UDP packets by iperf3, round trips by ping and by one-byte TCP."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import BenchError
from tealnet.lab import Host
from tealnet.lab.host import stop

_RR = [sys.executable, "-I", "-S", str(Path(__file__).with_name("rr.py"))]
_RR_PORT = "7001"
_SMALL = "18"  # bytes of UDP payload: frames of 60 bytes


@dataclass(frozen=True, slots=True)
class End:
    """A workload as traffic needs it."""

    host: Host
    netns: str
    address: str
    mac: str

    def run(self, words: Sequence[str], *, seconds: float) -> str:
        """A command inside to its end. Raises BenchError with its words."""
        done = self.host.run_in_netns(self.netns, words, seconds=seconds)
        if done.returncode:
            raise BenchError(f"{self.netns}: {words[0]}: {(done.stderr or done.stdout).strip()[-300:]}")
        return done.stdout


@dataclass(frozen=True, slots=True)
class Times:
    """How long each measurement lasts, in seconds, and how many pings at 10 ms."""

    tcp: int = 5
    udp: int = 3
    rr: float = 2.0
    pings: int = 200


def measure(source: End, target: End, times: Times) -> dict[str, float]:
    """tcp_gbps, udp_pps (received), rtt_us (median), rr_per_s."""
    with _serving(target):
        text = source.run(["ping", "-c", str(times.pings), "-i", "0.01", "-W", "1", target.address], seconds=30)
        rtts = [float(word) * 1000 for word in re.findall(r"time=([0-9.]+) ms", text)]
        if len(rtts) < times.pings * 0.9:
            raise BenchError(f"only {len(rtts)} of {times.pings} pings came back")
        rr = float(source.run([*_RR, "client", target.address, _RR_PORT, str(times.rr)], seconds=times.rr + 20))
        tcp = _iperf(source, target, ["-t", str(times.tcp)], seconds=times.tcp)
        udp = _iperf(source, target, ["-u", "-b", "0", "-l", _SMALL, "-t", str(times.udp)], seconds=times.udp)
    total = udp["end"]["sum"]
    return {
        "tcp_gbps": tcp["end"]["sum_received"]["bits_per_second"] / 1e9,
        "udp_pps": (total["packets"] - total["lost_packets"]) / total["seconds"],
        "rtt_us": statistics.median(rtts),
        "rr_per_s": rr,
    }


def _iperf(source: End, target: End, words: Sequence[str], *, seconds: int) -> dict[str, Any]:
    command = ["iperf3", "-c", target.address, "-J", "--connect-timeout", "3000", *words]
    answer: dict[str, Any] = json.loads(source.run(command, seconds=seconds + 20))
    if "error" in answer:
        raise BenchError(f"iperf3: {answer['error']}")
    return answer


@contextmanager
def _serving(target: End) -> Iterator[None]:
    """Both servers, listening; they end here."""
    started: list[subprocess.Popen[str]] = []
    try:
        for words in (
            ["iperf3", "-s", "--forceflush", "-B", target.address],
            [*_RR, "server", target.address, _RR_PORT],
        ):
            server = target.host.popen(words, netns=target.netns)
            started.append(server)
            _wait_ready(server)
        yield
    finally:
        for server in started:
            stop(server)


def _wait_ready(server: subprocess.Popen[str]) -> None:
    assert server.stdout is not None
    for line in server.stdout:
        if "listening" in line or "ready" in line:
            return
    raise BenchError("a server has not started")
