"""Traffic between two workloads: TCP and small UDP packets by iperf3, round trips by ping and by one-byte TCP."""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from bench.common import BenchError
from tealnet.lab import Host
from tealnet.lab.host import stop
from tealnet.lab.wait import wait_for

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

    tcp: int = 2
    udp: int = 2
    rr: float = 1.0
    pings: int = 100


def tcp(source: End, target: End, times: Times) -> dict[str, float]:
    """tcp_gbps, and tcp_cpu_s_per_gb: processor time of the vswitchds for 10^9 bytes."""
    before = _cpu(source, target)
    found = _iperf(source, target, ["-t", str(times.tcp)], seconds=times.tcp)["end"]["sum_received"]
    used = _cpu(source, target) - before
    return {"tcp_gbps": found["bits_per_second"] / 1e9, "tcp_cpu_s_per_gb": used / (found["bytes"] / 1e9)}


def udp(source: End, target: End, times: Times) -> dict[str, float]:
    """udp_pps (received), and udp_cpu_us_per_packet: processor time of the vswitchds."""
    before = _cpu(source, target)
    words = ["-u", "-b", "0", "-l", _SMALL, "-t", str(times.udp)]
    total = _iperf(source, target, words, seconds=times.udp)["end"]["sum"]
    used = _cpu(source, target) - before
    arrived = total["packets"] - total["lost_packets"]
    return {"udp_pps": arrived / total["seconds"], "udp_cpu_us_per_packet": used * 1e6 / max(1, arrived)}


def ping(source: End, target: End, times: Times) -> dict[str, float]:
    """rtt_us: the median of pings every 10 ms, both ways.

    vswitchd asks its ports in turn. An answer that comes in at a port whose turn is yet to come passes at once, else a
    round of its main loop later: 220 or 350 µs for the same two ports of one bridge, by who asks whom.
    """
    return {"rtt_us": statistics.mean((_rtt(source, target, times), _rtt(target, source, times)))}


def _rtt(source: End, target: End, times: Times) -> float:
    text = source.run(["ping", "-c", str(times.pings), "-i", "0.01", "-W", "1", target.address], seconds=30)
    rtts = [float(word) * 1000 for word in re.findall(r"time=([0-9.]+) ms", text)]
    if len(rtts) < times.pings * 0.9:
        raise BenchError(f"only {len(rtts)} of {times.pings} pings came back")
    return statistics.median(rtts)


def rr(source: End, target: End, times: Times) -> dict[str, float]:
    """rr_per_s: TCP exchanges of one byte each way."""
    answer = source.run([*_RR, "client", target.address, _RR_PORT, str(times.rr)], seconds=times.rr + 20)
    return {"rr_per_s": float(answer)}


KINDS: tuple[Callable[[End, End, Times], dict[str, float]], ...] = (ping, rr, tcp, udp)


def _cpu(*ends: End) -> float:
    """Seconds of processor time that the vswitchds of these hosts have used."""
    return sum(cpu_of(host, "ovs-vswitchd") for host in {end.host.name: end.host for end in ends}.values())


def cpu_of(host: Host, process: str) -> float:
    """Seconds of processor time that a process of a host has used (schedstat of all its threads)."""
    row = host.record()["processes"].get(process)
    if row is None:
        raise BenchError(f"{host.name} has no {process}")
    total = 0
    for task in Path(f"/proc/{row['pid']}/task").iterdir():
        with suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _iperf(source: End, target: End, words: Sequence[str], *, seconds: int) -> dict[str, Any]:
    command = ["iperf3", "-c", target.address, "-J", "--connect-timeout", "3000", *words]
    answer: dict[str, Any] = json.loads(source.run(command, seconds=seconds + 20))
    if "error" in answer:
        raise BenchError(f"iperf3: {answer['error']}")
    return answer


@contextmanager
def serving(target: End) -> Iterator[None]:
    """Both servers, listening; they end here. What they say goes to files: nobody reads on, and a pipe would fill."""
    with ExitStack() as stack:
        for words in (
            ["iperf3", "-s", "--forceflush", "-B", target.address],
            [*_RR, "server", target.address, _RR_PORT],
        ):
            said = stack.enter_context(tempfile.TemporaryFile())
            server = target.host.popen(words, netns=target.netns, out=said)
            stack.callback(stop, server)
            wait_for(partial(ready, said), seconds=10, what=f"{words[0]} in {target.netns}")
        yield


def ready(said: IO[bytes]) -> bool:
    """Whether a server has said that it listens."""
    text = os.pread(said.fileno(), 4096, 0)
    return b"listening" in text or b"ready" in text
