"""Who gets through to whom: one process per workload that answers everybody, and asks when it is told to.

    > {"ask": [["tcp", "10.0.0.5", 80], ["icmp", "fd00::5", 0], …], "expect": [0], "wait": 2, "number": 7}
    < {"answers": {"0": "acme/db"}}
    > {"arrived": true}
    < {"arrived": [["udp", "acme/web", 53], …]}

Everything is sent at once, and what should be answered and is not again, every half second, as TCP does by itself: a
switch whose cache is cold may lose a first packet. An ask ends when those that are expected have answered, but not
before what is not expected has had its time, and at the latest after `wait` seconds. What has arrived is told apart
from what was answered: a packet that gets in and whose answer does not get out has got in.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Any

from tealnet.probe.frames import checksum

QUIET = 0.25  # seconds that what should not answer has for doing it
_AGAIN = 0.5  # seconds until what should have been answered is sent again
_FIRST_SOURCE, _SOURCES = 10_000, 20_000  # UDP ports below those that the kernel gives out
_LINGER = struct.pack("ii", 1, 0)  # closed by a reset: no TIME_WAIT keeps a port


@dataclass
class Ask:
    """One round of questions: [protocol, address, port]; a number is the IP protocol of a raw packet."""

    targets: list[Any]
    expect: set[int]
    until: float
    number: int
    began: float = field(default_factory=time.monotonic)
    answers: dict[int, str] = field(default_factory=dict)
    sockets: dict[int, socket.socket] = field(default_factory=dict)
    sent: float = field(default_factory=time.monotonic)

    def is_over(self, now: float) -> bool:
        """Whether to go on waiting."""
        return now >= self.until or (now >= self.began + QUIET and self.expect <= self.answers.keys())


class Table:
    """The process. `name` is what it answers with."""

    def __init__(self, name: str, *, tcp: list[int], udp: list[int]) -> None:
        self.name, self.selector = name, selectors.DefaultSelector()
        self.arrived: list[list[Any]] = []
        self.ask: Ask | None = None
        self.raw: dict[tuple[int, int], socket.socket] = {}  # (IP version, protocol)
        self.input = b""
        self.is_open = True
        for port in tcp:
            self._watch(_bound(socket.SOCK_STREAM, port), partial(self._accept, port=port))
        for port in udp:
            self._watch(_bound(socket.SOCK_DGRAM, port), partial(self._datagram, port=port))
        for version in (4, 6):
            self._watch(self._raw(version, 1 if version == 4 else 58), partial(self._echo_reply, version=version))
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._read_input)

    def run(self) -> dict[str, object]:
        """Until standard input is closed."""
        print("ready", flush=True)
        while self.is_open:
            wait = 60.0
            if self.ask is not None:
                now = time.monotonic()
                if self.ask.is_over(now):
                    self._finish()
                    continue
                if now >= self.ask.sent + _AGAIN:
                    self._send_again(self.ask)
                wait = max(
                    0.0, min(self.ask.until, self.ask.sent + _AGAIN, max(self.ask.began + QUIET, now + 0.005)) - now
                )
            for key, _ in self.selector.select(wait):
                key.data()
        return {}

    # ---- being told

    def _read_input(self) -> None:
        data = os.read(sys.stdin.fileno(), 1 << 20)
        if not data:
            self.is_open = False
            return
        self.input += data
        while b"\n" in self.input:
            line, _, self.input = self.input.partition(b"\n")
            command = json.loads(line)
            if "listen" in command:
                for version in (4, 6):
                    self._listen(version, command["listen"])
                print("{}", flush=True)
            elif "arrived" in command:
                print(json.dumps({"arrived": self.arrived}), flush=True)
                self.arrived = []
            else:
                until = time.monotonic() + command["wait"]
                self.ask = Ask(command["ask"], set(command["expect"]), until, command["number"])
                self._send(self.ask)

    def _finish(self) -> None:
        assert self.ask is not None
        for sock in self.ask.sockets.values():
            self._drop(sock)
        print(json.dumps({"answers": self.ask.answers}), flush=True)
        self.ask = None

    # ---- asking

    def _send(self, ask: Ask) -> None:
        for index, (protocol, address, port) in enumerate(ask.targets):
            if protocol in ("tcp", "udp"):
                family = socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6
                sock = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
                sock.setblocking(False)
                ask.sockets[index] = sock
                if protocol == "udp":  # never a port that a round before has used: that would be its connection still
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind(("", _FIRST_SOURCE + ask.number % _SOURCES))
                sock.connect_ex((address, port))
                if protocol == "tcp":
                    self._watch(sock, partial(self._connected, index=index), events=selectors.EVENT_WRITE)
                    continue
                self._watch(sock, partial(self._answered, index=index))
            self._packet_out(ask, index)

    def _send_again(self, ask: Ask) -> None:
        ask.sent = time.monotonic()
        for index in ask.expect - ask.answers.keys():
            if ask.targets[index][0] != "tcp":
                self._packet_out(ask, index)

    def _packet_out(self, ask: Ask, index: int) -> None:
        protocol, address, _ = ask.targets[index]
        version = ip_address(address).version
        if protocol == "udp":
            ask.sockets[index].send(self.name.encode())
        elif protocol == "icmp":
            echo = _echo(8 if version == 4 else 128, ident=ask.number, number=index)
            self.raw[version, 1 if version == 4 else 58].sendto(echo, (address, 0))
        else:
            self._listen(version, protocol).sendto(b"?" + self.name.encode(), (address, 0))

    def _connected(self, sock: socket.socket, index: int) -> None:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.selector.unregister(sock)
            return
        sock.send(self.name.encode())
        self.selector.modify(sock, selectors.EVENT_READ, partial(self._answered, sock, index=index))

    def _answered(self, sock: socket.socket, index: int) -> None:
        try:
            name = sock.recv(1000).decode()
        except OSError:  # refused: something has answered, but not who should
            name = "?"
        self.selector.unregister(sock)
        if self.ask is not None and name:
            self.ask.answers[index] = name

    def _echo_reply(self, sock: socket.socket, version: int) -> None:
        data = sock.recv(2048)
        body = data[(data[0] & 15) * 4 :] if version == 4 else data
        kind, _, _, ident, number = struct.unpack("!BBHHI", body[:10])
        if kind == (0 if version == 4 else 129) and self.ask is not None and ident == self.ask.number:
            self.ask.answers[number] = ""

    # ---- answering

    def _accept(self, server: socket.socket, port: int) -> None:
        peer, _ = server.accept()
        peer.setblocking(False)
        self._watch(peer, partial(self._greet, port=port))

    def _greet(self, peer: socket.socket, port: int) -> None:
        try:
            who = peer.recv(1000).decode()
            if who:
                self.arrived.append(["tcp", who, port])
                peer.send(self.name.encode())
                return
        except OSError:
            pass
        self._drop(peer)

    def _datagram(self, sock: socket.socket, port: int) -> None:
        who, whence = sock.recvfrom(1000)
        self.arrived.append(["udp", who.decode(), port])
        sock.sendto(self.name.encode(), whence)

    def _packet(self, sock: socket.socket, version: int, protocol: int) -> None:
        data, whence = sock.recvfrom(2000)
        body = data[(data[0] & 15) * 4 :] if version == 4 else data
        mark, who = body[:1], body[1:].decode()
        if mark == b"?":
            self.arrived.append([protocol, who, 0])
            sock.sendto(b"!" + self.name.encode(), (whence[0], 0))
        elif self.ask is not None:
            for index, (asked, address, _) in enumerate(self.ask.targets):
                if asked == protocol and ip_address(address) == ip_address(whence[0]):
                    self.ask.answers[index] = who

    # ---- sockets

    def _listen(self, version: int, protocol: int) -> socket.socket:
        """A raw socket of a protocol, opened when it is first needed."""
        if (version, protocol) not in self.raw:
            sock = self._raw(version, protocol)
            self._watch(sock, partial(self._packet, version=version, protocol=protocol))
        return self.raw[version, protocol]

    def _raw(self, version: int, protocol: int) -> socket.socket:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self.raw[version, protocol] = sock = socket.socket(family, socket.SOCK_RAW, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        return sock

    def _watch(
        self, sock: socket.socket, handler: Callable[[socket.socket], None], *, events: int = selectors.EVENT_READ
    ) -> None:
        self.selector.register(sock, events, partial(handler, sock))

    def _drop(self, sock: socket.socket) -> None:
        if sock.fileno() in self.selector.get_map():
            self.selector.unregister(sock)
        if sock.type == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        sock.close()


def _bound(kind: socket.SocketKind, port: int) -> socket.socket:
    """A dual-stack socket on all addresses."""
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        sock.listen(64)
    sock.setblocking(False)
    return sock


def _echo(kind: int, *, ident: int, number: int) -> bytes:
    body = struct.pack("!BBHHI", kind, 0, 0, ident, number) + b"truth"
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:] if kind == 8 else body
