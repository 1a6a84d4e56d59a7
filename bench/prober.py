"""The moment of the first answer: an ARP request every 2 ms until answered, then echo requests until answered.

A packet socket: independent of the kernel's timers for neighbours, which would round results to a second.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from bench.inside import Card, Inside
from tealnet.probe.frames import checksum

EVERY = 0.002
_IP, _ALL, _OUTGOING = 0x0800, 0x0003, 4


@dataclass(frozen=True, slots=True)
class Where:
    """A workload's place: the namespace's name on the host of `inside`."""

    inside: Inside
    netns: str
    card: str = "eth0"


class Prober:
    """Asks one address. `found` is the monotonic time at which the card was ready, then of both first answers."""

    def __init__(self, sock: socket.socket, mac: bytes, address: bytes, target: str) -> None:
        self.socket, self.mac, self.address = sock, mac, address
        self.target = socket.inet_aton(target)
        self.gateway_mac = b""
        self.found = time.monotonic()
        self.arp_at = self.echo_at = 0.0
        self._number, self._ident = 0, random.randbytes(2)
        sock.setblocking(False)

    @classmethod
    def start(cls, where: Where, target: str, *, seconds: float = 20.0) -> Future[Prober | None]:
        """As soon as the workload has a card with an address; None if that does not come about."""
        return where.inside.start(lambda: cls._wait(where, target, seconds))

    @classmethod
    def _wait(cls, where: Where, target: str, seconds: float) -> Prober | None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                with where.inside.netns(where.netns), Card(where.card) as card:
                    while time.monotonic() < deadline:
                        if (seen := card.look()) is not None:
                            return cls(_packets(where.card), *seen, target)
                        time.sleep(0.0005)
            except OSError:  # not there yet, or not mounted yet
                time.sleep(0.0005)
        return None

    def fileno(self) -> int:
        """To wait for answers."""
        return self.socket.fileno()

    def send(self) -> None:
        """One request of the kind that is due."""
        frame = self._echo() if self.gateway_mac else self._arp()
        with contextlib.suppress(OSError):  # the queue is full, or the card is just being changed: another one in 2 ms
            self.socket.send(frame)

    def receive(self) -> bool:
        """Take in what has come; True once the echo was answered."""
        while not self.echo_at:
            try:
                frame, (_, _, kind, *_) = self.socket.recvfrom(2048)
            except OSError:
                break
            if kind != _OUTGOING:
                self._take(frame)
        return bool(self.echo_at)

    def _take(self, frame: bytes) -> None:
        if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\x02" and frame[28:32] == self.target:
            if not self.gateway_mac:
                self.arp_at, self.gateway_mac = time.monotonic(), frame[22:28]
                self.send()
        elif frame[12:14] == b"\x08\0" and frame[23] == 1 and frame[34] == 0 and frame[38:40] == self._ident:
            self.echo_at = time.monotonic()

    def close(self) -> None:
        """No more."""
        self.socket.close()

    def _arp(self) -> bytes:
        head = b"\xff" * 6 + self.mac + b"\x08\x06" + struct.pack("!HHBBH", 1, _IP, 6, 4, 1)
        return (head + self.mac + self.address + b"\0" * 6 + self.target).ljust(60, b"\0")

    def _echo(self) -> bytes:
        self._number = (self._number + 1) & 0xFFFF
        body = struct.pack("!BBH2sH", 8, 0, 0, self._ident, self._number) + b"x" * 24
        body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), self._number, 0, 64, 1, 0) + self.address + self.target
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        return self.gateway_mac + self.mac + b"\x08\0" + head + body


def _packets(card: str) -> socket.socket:
    # Protocol 0 first: binding a socket that is hooked already waits for an RCU grace period, about 10 ms.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    sock.bind((card, _ALL))
    return sock


def probe_all(probers: Iterable[Prober], *, every: float = EVERY, seconds: float = 20.0) -> list[Prober]:
    """Ask until every one was answered; returns those that were not."""
    poll = select.epoll()
    pending = {prober.fileno(): prober for prober in probers}
    for number in pending:
        poll.register(number, select.EPOLLIN)
    deadline = time.monotonic() + seconds
    due = 0.0
    try:
        while pending and (now := time.monotonic()) < deadline:
            if now >= due:
                for prober in pending.values():
                    prober.send()
                due = now + every
            for number, _ in poll.poll(max(0.0002, due - time.monotonic())):
                if number in pending and pending[number].receive():
                    poll.unregister(number)
                    del pending[number]
    finally:
        poll.close()
    return list(pending.values())


def close_all(probers: Iterable[Prober]) -> None:
    """Close many: each waits for the kernel to let go of the packet socket, so side by side."""
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(Prober.close, probers))
