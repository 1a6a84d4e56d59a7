"""Constant load from a workload: connections opened at their times, whatever became of those before (open loop).

Each asks a server of `answer` for its word and is closed. What became of it is kept as one record of 13 bytes: when it
was opened (monotonic ns of this machine, taken just before connect), how long it took (µs), and the number of its word.
Words in parentheses are failures: the name of an errno, "closed" (without an answer), "timeout".
"""

from __future__ import annotations

import base64
import errno
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence

RECORD = struct.Struct("<QIB")
WAIT = 3.0  # seconds for one answer: with one lost packet it takes a little more than one


class _Load:
    def __init__(self, addresses: Sequence[str], port: int) -> None:
        self.targets = [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, (address, port)) for address in addresses
        ]
        self.poll = select.epoll()
        self.open: dict[int, tuple[int, socket.socket]] = {}  # by descriptor, in the order in which they were opened
        self.words: dict[str, int] = {}
        self.records = bytearray()

    def start(self, number: int) -> None:
        """Open the next connection."""
        family, target = self.targets[number % len(self.targets)]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        opened = time.monotonic_ns()
        self.open[sock.fileno()] = (opened, sock)
        code = sock.connect_ex(target)
        if code not in (0, errno.EINPROGRESS):
            self.end(sock.fileno(), _failure(code))
            return
        self.poll.register(sock.fileno(), select.EPOLLIN)

    def hear(self, number: int) -> None:
        """This one has an answer, or has failed."""
        try:
            word = self.open[number][1].recv(100).decode().strip() or "(closed)"
        except OSError as error:
            word = _failure(error.errno or 0)
        self.end(number, word)

    def end(self, number: int, word: str) -> None:
        """Keep what became of it."""
        opened, sock = self.open.pop(number)
        took = min((time.monotonic_ns() - opened) // 1000, 0xFFFFFFFF)
        self.records += RECORD.pack(opened, took, self.words.setdefault(word, len(self.words)))
        sock.close()

    def expire(self) -> None:
        """Give up those that have waited for too long."""
        over = time.monotonic_ns() - int(WAIT * 1e9)
        while self.open:
            number, (opened, _) = next(iter(self.open.items()))
            if opened > over:
                return
            self.end(number, "(timeout)")


def _failure(code: int) -> str:
    return f"({errno.errorcode.get(code, str(code))})"


def load(addresses: Sequence[str], *, port: int, rate: float) -> dict[str, object]:
    """Open `rate` connections a second, to one address after the other, until standard input ends."""
    one = _Load(addresses, port)
    stdin = sys.stdin.fileno()
    one.poll.register(stdin, select.EPOLLIN)
    print("ready", flush=True)
    began, period, number, over = time.monotonic_ns(), 1e9 / rate, 0, False
    while not over or one.open:
        now = time.monotonic_ns()
        while not over and began + number * period <= now:
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
    return {"words": list(one.words), "records": base64.b64encode(one.records).decode()}
