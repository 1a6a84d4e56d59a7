"""Questions that are asked from inside a color: does an endpoint answer an echo request, take a connection, serve HTTP?

Asked with sockets in the namespaces of local ports of that color, so they take the way that workloads take. Their
answers are what gates of rollouts go by.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from time import time_ns
from typing import Protocol

from agent import names
from agent.drivers.base import DeviceUnavailable
from agent.drivers.nssocket import Speaks
from agent.inputs import Inputs
from agent.objects import NetnsKind
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.stream import Endpoint, LocalPort

Address = IPv4Address | IPv6Address

TARGETS = 64  # asked in one round at most; the others are asked in the next ones
SHORTEST = 0.2  # seconds between rounds
DEFAULT = 1.0  # seconds between rounds, and for each try
HEAD = 4096  # bytes of an HTTP answer in which the status line ends, or it is none
BODY = 1 << 16  # read and thrown away, so that the server is not told that nobody listened


class Inside(Protocol):
    """Who opens sockets in namespaces (`agent.devices.Devices`)."""

    async def open_inside(self, path: str, *, speaks: Speaks, source: Address) -> socket.socket:
        """A non-blocking socket bound to an address there. Raises OSError, DeviceUnavailable."""
        ...


class Unanswered(Exception):
    """Why a question was not answered as wanted."""


@dataclass(slots=True)
class Asked:
    """What came of one probe so far."""

    targets: int = 0
    tries: int = 0
    failed: int = 0
    text: str = ""
    last_at: int = 0
    failing: set[str] = field(default_factory=set)  # uids of endpoints whose last answer was none
    rounds: int = 0


class Prober:
    """Asks what is wanted, each probe at its own interval."""

    def __init__(self, inputs: Inputs, inside: Inside) -> None:
        self._inputs, self._inside = inputs, inside
        self._probes: dict[int, tuple[bytes, asyncio.Task[None], Asked]] = {}

    def want(self, probes: Iterable[pb.Probe]) -> None:
        """Ask these from now on, and no others; one that has not changed goes on counting."""
        wanted = {probe.id: probe for probe in probes}
        for number, (body, task, _) in list(self._probes.items()):
            if number not in wanted or wanted[number].SerializeToString() != body:
                task.cancel()
                del self._probes[number]
        for number, probe in wanted.items():
            if number not in self._probes:
                asked = Asked()
                task = asyncio.create_task(self._ask_for_ever(probe, asked), name=f"probe-{number}")
                self._probes[number] = probe.SerializeToString(), task, asked

    def observed(self) -> list[pb.ProbeObserved]:
        """What came of them so far."""
        return [
            pb.ProbeObserved(
                id=number,
                targets=asked.targets,
                failing=len(asked.failing),
                tries=asked.tries,
                failed=asked.failed,
                text=asked.text,
                last_at=asked.last_at,
            )
            for number, (_, _, asked) in sorted(self._probes.items())
        ]

    async def _ask_for_ever(self, probe: pb.Probe, asked: Asked) -> None:
        loop = asyncio.get_running_loop()
        interval = max(probe.interval_ms / 1000 or DEFAULT, SHORTEST)
        while True:
            began = loop.time()
            await self._round(probe, asked)
            await asyncio.sleep(max(interval - (loop.time() - began), 0))

    async def _round(self, probe: pb.Probe, asked: Asked) -> None:
        sources, targets = self._sources(probe), self._targets(probe)
        asked.targets = len(targets) if sources else 0
        asked.failing &= {target.uid for target in targets}
        if not asked.targets:
            return
        first = asked.rounds * TARGETS % len(targets)
        turn = [targets[(first + n) % len(targets)] for n in range(min(TARGETS, len(targets)))]
        pairs = [(_source_of(sources, target, asked.rounds), target) for target in turn]
        answers = await asyncio.gather(*(self._ask(probe, source, target) for source, target in pairs))
        for target, why in zip(turn, answers, strict=True):
            asked.tries += 1
            asked.failing.discard(target.uid)
            if why:
                asked.failed += 1
                asked.failing.add(target.uid)
                asked.text = why
        asked.rounds += 1
        asked.last_at = time_ns()

    def _sources(self, probe: pb.Probe) -> list[LocalPort]:
        """Local ports in namespaces, in place, of the target's domain and color; of the target's network first."""
        segments = self._inputs.segments.rows
        target = segments.get(probe.vni)
        if target is None:
            return []
        found = [
            port
            for port in self._inputs.localports.rows.values()
            if (segment := segments.get(port.vni))
            and (segment.domain, segment.color) == (target.domain, target.color)
            and names.netns(port).kind is not NetnsKind.HOST
            and self._inputs.device(port) in self._inputs.ofports.rows
        ]
        return sorted(found, key=lambda port: (port.vni != probe.vni, port.uid))

    def _targets(self, probe: pb.Probe) -> list[Endpoint]:
        uids = self._inputs.endpoints_of_segment.keys(probe.vni)
        rows = [self._inputs.endpoints.rows[uid] for uid in sorted(uids)]
        wanted = set(probe.addresses)
        return [row for row in rows if not wanted or wanted & {address.packed for address in row.addresses}]

    async def _ask(self, probe: pb.Probe, source: LocalPort, target: Endpoint) -> str:
        """Why it was not answered as wanted; "" if it was."""
        wanted = set(probe.addresses)
        pair = next(
            (
                (here, there)
                for there in target.addresses
                for here in source.addresses
                if here.version == there.version and (not wanted or there.packed in wanted)
            ),
            None,
        )
        if pair is None:
            return f"{target.addresses[0]}: the source {source.addresses[0]} has no address of that family"
        here, there = pair
        try:
            async with asyncio.timeout(probe.timeout_ms / 1000 or DEFAULT):
                speaks = Speaks.ECHO if probe.kind == pb.Probe.KIND_ICMP else Speaks.TCP
                with closing(
                    await self._inside.open_inside(names.netns(source).path, speaks=speaks, source=here)
                ) as opened:
                    await _ask_from(opened, probe, there)
        except TimeoutError:
            return f"{there}: no answer"
        except Unanswered as why:
            return f"{there}: {why}"
        except (OSError, DeviceUnavailable) as error:
            number = error.errno if isinstance(error, OSError) else None
            return f"{there}: {os.strerror(number).lower() if number else error}"
        return ""


def _source_of(sources: list[LocalPort], target: Endpoint, turn: int) -> LocalPort:
    """Somebody else if there is anybody; of several, one after the other."""
    others = [port for port in sources if port.uid != target.uid] or sources
    return others[turn % len(others)]


async def _ask_from(opened: socket.socket, probe: pb.Probe, there: Address) -> None:
    loop = asyncio.get_running_loop()
    if probe.kind == pb.Probe.KIND_ICMP:
        await _echo(opened, there)
        return
    await loop.sock_connect(opened, (str(there), probe.port))
    if probe.kind == pb.Probe.KIND_HTTP:
        status = await _get(opened, probe, there)
        first, last = (probe.status_from, probe.status_to) if probe.status_to else (200, 399)
        if not first <= status <= last:
            raise Unanswered(f"HTTP status {status}")


async def _get(opened: socket.socket, probe: pb.Probe, there: Address) -> int:
    loop = asyncio.get_running_loop()
    host = probe.host or (f"[{there}]" if there.version == 6 else str(there))
    lines = (f"GET {probe.path or '/'} HTTP/1.1", f"Host: {host}", "User-Agent: tealnet", "Connection: close", "", "")
    await loop.sock_sendall(opened, "\r\n".join(lines).encode())
    head = b""
    while b"\r\n" not in head and len(head) < HEAD:
        chunk = await loop.sock_recv(opened, HEAD)
        if not chunk:
            break
        head += chunk
    words = head.partition(b"\r\n")[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise Unanswered("no HTTP answer")
    left = BODY
    while left > 0 and (chunk := await loop.sock_recv(opened, left)):
        left -= len(chunk)
    return int(words[1])


async def _echo(opened: socket.socket, there: Address) -> None:
    """One echo request; its reply is recognised by a number that only we know."""
    loop = asyncio.get_running_loop()
    request, reply = (8, 0) if there.version == 4 else (128, 129)
    token = os.urandom(12)
    body = struct.pack("!BBHHH", request, 0, 0, int.from_bytes(token[:2], "big"), 1) + token
    if there.version == 4:  # of ICMPv6 the kernel makes it
        body = body[:2] + struct.pack("!H", _checksum(body)) + body[4:]
    await loop.sock_sendto(opened, body, (str(there), 0))
    while True:
        answer, sender = await loop.sock_recvfrom(opened, 2048)
        message = answer[(answer[0] & 15) * 4 :] if there.version == 4 else answer
        is_reply = message[:1] == bytes([reply]) and message[8:20] == token
        if is_reply and str(sender[0]) == str(there):
            return


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
