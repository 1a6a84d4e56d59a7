"""Which of two twins answers? A server that says its word, and clients that count the words they hear.

`answer` tells its word on TCP (at once, and again for every byte it is sent), on UDP (for every datagram) and, if it is
to do that in place of the kernel, to echo requests. `ask` opens connections one after the other; `hold` keeps some open
and asks again and again on each.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tealnet.probe.frames import checksum

WAIT = 2.0  # seconds for one answer


_KERNEL_ECHO = (Path("/proc/sys/net/ipv4/icmp_echo_ignore_all"), Path("/proc/sys/net/ipv6/icmp/echo_ignore_all"))


def answer(port: int, word: str, *, echo: bool = False) -> dict[str, object]:
    """Serve until standard input ends; with `echo` this namespace's kernel answers no echo request meanwhile."""
    if not echo:
        return _answer(port, word, [])
    with _echo_sockets() as raw:
        return _answer(port, word, raw)


@contextmanager
def _echo_sockets() -> Iterator[list[socket.socket]]:
    try:
        for path in _KERNEL_ECHO:
            path.write_text("1")
        kinds = ((socket.AF_INET, socket.IPPROTO_ICMP), (socket.AF_INET6, socket.IPPROTO_ICMPV6))
        yield [socket.socket(family, socket.SOCK_RAW, protocol) for family, protocol in kinds]
    finally:
        for path in _KERNEL_ECHO:
            path.write_text("0")


def _echo(sock: socket.socket, said: bytes) -> None:
    """Answer an echo request with what came with it, and the word (RFC 792, RFC 4443)."""
    data, whence = sock.recvfrom(2048)
    ipv4 = sock.family == socket.AF_INET
    body = data[(data[0] & 15) * 4 :] if ipv4 else data
    if body[0] != (8 if ipv4 else 128):
        return
    reply = struct.pack("!BBH", 0 if ipv4 else 129, 0, 0) + body[4:] + said
    if ipv4:  # of ICMPv6 the kernel writes the checksum
        reply = reply[:2] + struct.pack("!H", checksum(reply)) + reply[4:]
    sock.sendto(reply, whence)


def _answer(port: int, word: str, raw: list[socket.socket]) -> dict[str, object]:
    tcp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    tcp.bind(("::", port))
    tcp.listen(1024)
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    udp.bind(("::", port))
    said, peers, accepted = f"{word}\n".encode(), set[socket.socket](), 0
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([sys.stdin, tcp, udp, *raw, *peers], [], [])
        for one in ready:
            if one in raw:
                _echo(one, said)
            elif one is sys.stdin:
                if not os.read(sys.stdin.fileno(), 4096):
                    return {"accepted": accepted, "open": len(peers)}
            elif one is tcp:
                peer, _ = tcp.accept()
                accepted += 1
                peers.add(peer)
                _say(peer, said, peers)
            elif one is udp:
                _, whence = udp.recvfrom(2048)
                udp.sendto(said, whence)
            elif isinstance(one, socket.socket):
                _hear(one, said, peers)


def _hear(peer: socket.socket, said: bytes, peers: set[socket.socket]) -> None:
    try:
        heard = peer.recv(4096)
    except OSError:
        heard = b""
    if heard:
        _say(peer, said * len(heard), peers)
    else:
        peers.discard(peer)
        peer.close()


def _say(peer: socket.socket, said: bytes, peers: set[socket.socket]) -> None:
    try:
        peer.sendall(said)
    except OSError:
        peers.discard(peer)
        peer.close()


def ask(address: str, *, port: int, count: int, kind: str) -> dict[str, object]:
    """Open `count` connections (udp: sockets), each of its own source port; whose words came back, how often?"""
    words: Counter[str] = Counter()
    began = time.monotonic()
    for _ in range(count):
        try:
            words[_asked(address, port, kind)] += 1
        except OSError as error:
            words[f"({error.strerror or type(error).__name__})"] += 1
    return {"words": dict(words), "seconds": round(time.monotonic() - began, 3)}


def _asked(address: str, port: int, kind: str) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT)
        sock.connect((address, port))
        if kind == "udp":
            sock.send(b"?")
        return sock.recv(100).decode().strip()


def pairs(first: str, second: str, *, port: int) -> dict[str, object]:
    """Until standard input ends: a new connection to `first`, and after its word one to `second`, again and again.

    The answer: `pairs`, each [when the first was opened, when the second was answered, word, word]; times in monotonic
    ns of this machine.
    """
    found: list[tuple[int, int, str, str]] = []
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], 0.001)
        if ready and not os.read(sys.stdin.fileno(), 4096):
            return {"pairs": found}
        began = time.monotonic_ns()
        words = _word(first, port), _word(second, port)
        found.append((began, time.monotonic_ns(), *words))


def _word(address: str, port: int) -> str:
    try:
        return _asked(address, port, "tcp")
    except OSError as error:
        return f"({error.strerror or type(error).__name__})"


class _Held:
    """One connection that stays open."""

    def __init__(self, address: str, port: int) -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        self.sock.settimeout(WAIT)
        self.sock.connect((address, port))
        self.word = self.sock.recv(100).decode().strip()
        self.sock.setblocking(False)
        self.changed, self.ended, self.unanswered = False, 0.0, 0

    def ask(self) -> None:
        """One question, of one byte."""
        try:
            self.sock.send(b"?")
            self.unanswered += 1
        except OSError:
            self._end()

    def hear(self) -> None:
        """What has come."""
        try:
            heard = self.sock.recv(4096)
        except OSError:
            heard = b""
        if not heard:
            self._end()
        for word in heard.decode().split():
            self.unanswered -= 1
            self.changed = self.changed or word != self.word

    def _end(self) -> None:
        self.ended, self.unanswered = time.time(), 0
        self.sock.close()


def hold(address: str, *, port: int, count: int, interval: float, patience: float = WAIT) -> dict[str, object]:
    """Keep `count` connections open and ask on each of them once per `interval` seconds.

    The answer: words at the beginning; how many connections heard another word later; how many ended, and when (Unix
    time); how many were silent at last, for `patience` seconds after the last question.
    """
    all_ = [_Held(address, port) for _ in range(count)]
    print("ready", flush=True)
    closed = False
    while not closed:
        began = time.monotonic()
        for held in all_:
            if not held.ended and held.unanswered < 10:
                held.ask()
        while not closed and (left := began + interval - time.monotonic()) > 0:
            closed = _heard(all_, left, sys.stdin)
    deadline = time.monotonic() + patience
    while any(held.unanswered for held in all_) and time.monotonic() < deadline:
        _heard(all_, deadline - time.monotonic())
    ends = [held.ended for held in all_ if held.ended]
    return {
        "words": dict(Counter(held.word for held in all_)),
        "changed": sum(held.changed for held in all_),
        "ended": len(ends),
        "first_end": min(ends, default=None),
        "last_end": max(ends, default=None),
        "silent": sum(bool(held.unanswered) for held in all_),
    }


def _heard(all_: list[_Held], wait: float, *others: TextIO) -> bool:
    """Hear what comes, for at most `wait` seconds; whether one of the others has ended."""
    by_sock = {held.sock: held for held in all_ if not held.ended}
    watched: list[socket.socket | TextIO] = [*by_sock, *others]
    ready, _, _ = select.select(watched, [], [], max(0.0, wait))
    for sock in ready:
        if isinstance(sock, socket.socket):
            by_sock[sock].hear()
    return any(one in ready and not os.read(one.fileno(), 4096) for one in others)
