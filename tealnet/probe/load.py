"""Constant load from a workload: connections opened at their times, whatever became of those before (open loop).

Each asks a server of `answer` for its word and is closed: a TCP connection, a datagram from a port of its own, or an
echo request with an id of its own. What became of it is kept as one record of 13 bytes: when it was opened (monotonic
ns of this machine, taken just before it is sent), how long it took (µs), and the number of its word. Words in
parentheses are failures: the name of an errno, "closed" (without an answer), "timeout".
"""

from __future__ import annotations

import base64
import errno
import os
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from itertools import cycle

from tealnet.probe.frames import checksum

RECORD = struct.Struct("<QIB")
WAIT = 3.0  # seconds for one answer: with one lost packet TCP takes a little more than one
LATE = 5_000_000  # ns after its time
KINDS = ("tcp", "udp", "icmp")
_OWN = range(1024, 0xFFFF)  # source ports and ids: so many that each meets every address before it is used again


class _Load:
    """What has been opened and not answered yet, and what became of the others."""

    def __init__(self, addresses: Sequence[str], port: int, kind: str) -> None:
        self.targets = [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, (address, port)) for address in addresses
        ]
        self.poll = select.epoll()
        self.open: dict[int, tuple[int, socket.socket | None]] = {}  # by descriptor or id, in order of opening
        self.words: dict[str, int] = {}
        self.records = bytearray()
        self.own = cycle(_OWN)
        self.kind = kind
        self.echo: dict[int, socket.socket] = {}  # by descriptor

    def start(self, number: int) -> None:
        """Open the next connection."""
        family, target = self.targets[number % len(self.targets)]
        if self.kind == "icmp":
            self._ask(family, target[0])
            return
        sock = socket.socket(family, socket.SOCK_DGRAM if self.kind == "udp" else socket.SOCK_STREAM)
        sock.setblocking(False)
        if self.kind == "udp":  # of a port that was used before it would be the same connection still
            sock.bind(("", next(self.own)))
        opened = time.monotonic_ns()
        self.open[sock.fileno()] = (opened, sock)
        code = sock.connect_ex(target)
        if code not in (0, errno.EINPROGRESS):
            self.end(sock.fileno(), _failure(code))
            return
        if self.kind == "udp":
            sock.send(b"?")
        self.poll.register(sock.fileno(), select.EPOLLIN)

    def _ask(self, family: int, address: str) -> None:
        """One echo request."""
        sock = next((one for one in self.echo.values() if one.family == family), None)
        if sock is None:
            sock = socket.socket(
                family, socket.SOCK_RAW, socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
            )
            sock.setblocking(False)
            self.echo[sock.fileno()] = sock
            self.poll.register(sock.fileno(), select.EPOLLIN)
        ident = next(self.own)
        packet = echo_request(ident, ipv4=family == socket.AF_INET)
        self.open[-ident] = (time.monotonic_ns(), None)
        sock.sendto(packet, (address, 0))

    def hear(self, number: int) -> None:
        """This one has an answer, or has failed; or echo replies have come."""
        if number in self.echo:
            self._replies(self.echo[number])
            return
        _, sock = self.open[number]
        assert sock is not None
        try:
            word = sock.recv(100).decode().strip() or "(closed)"
        except OSError as error:
            word = _failure(error.errno or 0)
        self.end(number, word)

    def _replies(self, sock: socket.socket) -> None:
        while True:
            try:
                data = sock.recv(2048)
            except BlockingIOError:
                return
            body = data[(data[0] & 15) * 4 :] if sock.family == socket.AF_INET else data
            kind, _, _, ident = struct.unpack_from("!BBHH", body)
            if kind in (0, 129) and -ident in self.open:
                self.end(-ident, body[8:].decode(errors="replace").strip())

    def end(self, number: int, word: str) -> None:
        """Keep what became of it."""
        opened, sock = self.open.pop(number)
        took = min((time.monotonic_ns() - opened) // 1000, 0xFFFFFFFF)
        self.records += RECORD.pack(opened, took, self.words.setdefault(word, len(self.words)))
        if sock is not None:
            sock.close()

    def expire(self) -> None:
        """Give up those that have waited for too long."""
        over = time.monotonic_ns() - int(WAIT * 1e9)
        while self.open:
            number, (opened, _) = next(iter(self.open.items()))
            if opened > over:
                return
            self.end(number, "(timeout)")


def echo_request(ident: int, *, ipv4: bool) -> bytes:
    """Of ICMP or ICMPv6; of the latter the kernel writes the checksum."""
    body = struct.pack("!BBHHH", 8 if ipv4 else 128, 0, 0, ident, 1)
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:] if ipv4 else body


def _failure(code: int) -> str:
    return f"({errno.errorcode.get(code, str(code))})"


def load(addresses: Sequence[str], *, port: int, rate: float, kind: str = "tcp") -> dict[str, object]:
    """Open `rate` connections a second, to one address after the other, until standard input ends.

    The answer: words and records; late: how many were opened more than 5 ms after their time, because this process did
    not get the processor; cpu: seconds of it that it used.
    """
    one = _Load(addresses, port, kind)
    stdin = sys.stdin.fileno()
    one.poll.register(stdin, select.EPOLLIN)
    print("ready", flush=True)
    began, period, number, over, late = time.monotonic_ns(), 1e9 / rate, 0, False, 0
    while not over or one.open:
        now = time.monotonic_ns()
        while not over and began + number * period <= now:
            late += now - (began + number * period) > LATE
            one.start(number)
            number += 1
        due = began + number * period
        for descriptor, _ in one.poll.poll(0.1 if over else max(0.0, (due - time.monotonic_ns()) / 1e9)):
            if descriptor != stdin:
                one.hear(descriptor)
            elif not os.read(stdin, 4096):
                over = True
                one.poll.unregister(stdin)
        one.expire()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "words": list(one.words),
        "records": base64.b64encode(one.records).decode(),
        "late": late,
        "cpu": round(used.ru_utime + used.ru_stime, 3),
    }
