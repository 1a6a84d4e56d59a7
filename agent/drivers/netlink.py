"""Netlink, the few messages of it that we need, packed by hand (RFC 3549; linux/netlink.h; man 7 netlink).

One workload costs 1.9 ms this way and 10 ms through pyroute2's IPRoute (measured); its event loop per socket would
also be in the way of sockets that are made inside a namespace, used once and closed (7 µs). Blocking: used only on the
namespace thread.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

ROUTE, NETFILTER = 0, 12  # protocols
REQUEST, ACK, DUMP = 0x001, 0x004, 0x300
EXCLUSIVE, CREATE, REPLACE = 0x200, 0x400, 0x100
_MULTI, _INTERRUPTED, _ACK_TLVS = 0x002, 0x010, 0x200
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _ADD_MEMBERSHIP, _CAP_ACK, _EXT_ACK, _STRICT = 270, 1, 10, 11, 12
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_CHUNK = 64  # messages in one datagram: their acks must fit into the receive buffer
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE = 1 << 17
_DUMP_TRIES = 5
_TIMEOUT = 10.0  # seconds; the kernel answers at once, so only a bug of ours can wait


@dataclass(frozen=True, slots=True)
class Message:
    """A request. `flags` beside REQUEST (and ACK or DUMP, which come with the way it is sent)."""

    type: int
    body: bytes
    flags: int = 0


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def u32(kind: int, value: int) -> bytes:
    """A number in the host's byte order."""
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    """A string with its final zero."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by kind; of one that repeats the last."""
    found: dict[int, bytes] = {}
    at, end = 0, len(data)
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


class Netlink:
    """A socket in the network namespace of the thread that makes it; stays in it for life."""

    def __init__(self, protocol: int = ROUTE, *, groups: Sequence[int] = ()) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        try:
            self._socket.bind((0, 0))
            for option in (_EXT_ACK, _CAP_ACK, *((_STRICT,) if protocol == ROUTE else ())):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
            self._socket.settimeout(_TIMEOUT)
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def execute(self, *messages: Message) -> list[OSError | None]:
        """Send them in this order; what failed does not keep later ones from being carried out."""
        results: list[OSError | None] = []
        for start in range(0, len(messages), _CHUNK):
            chunk = messages[start : start + _CHUNK]
            first = self._send(chunk, REQUEST | ACK)
            answers: dict[int, OSError | None] = {}
            while len(answers) < len(chunk):
                for kind, flags, sequence, body in self._receive():
                    if kind == _ERROR and first <= sequence < first + len(chunk):
                        answers[sequence] = _error(flags, body)
            results += [answers[first + n] for n in range(len(chunk))]
        return results

    def check(self, *messages: Message) -> None:
        """Carry them out; raises the first OSError (after having tried them all)."""
        for error in self.execute(*messages):
            if error is not None:
                raise error

    def get(self, message: Message) -> bytes:
        """The body of the one answer. Raises OSError."""
        sequence = self._send([message], REQUEST)
        while True:
            for kind, flags, number, body in self._receive():
                if number != sequence:
                    continue
                if kind != _ERROR:
                    return body
                error = _error(flags, body)
                if error is not None:
                    raise error

    def dump(self, message: Message) -> list[bytes]:
        """The bodies of all answers; repeated while the kernel's tables change meanwhile. Raises OSError."""
        found: list[bytes] = []
        for _ in range(_DUMP_TRIES):
            found, interrupted = self._dump(message)
            if not interrupted:
                break
        return found

    def batch(self, begin: Message, messages: Sequence[Message], end: Message) -> OSError | None:
        """A transaction of nfnetlink: all or nothing; returns the first error.

        Answers wait in the receive buffer until all is decided: only the last message is acknowledged. At most 200
        messages, which may all fail.
        """
        packed = [self._pack(message, REQUEST) for message in (begin, *messages[:-1])]
        packed.append(self._pack(messages[-1], REQUEST | ACK))
        first, last = self._sequence - len(messages) + 1, self._sequence
        self._socket.send(b"".join(packed) + self._pack(end, REQUEST))
        failed: OSError | None = None
        while True:
            for kind, flags, number, body in self._receive():
                error = _error(flags, body) if kind == _ERROR else None
                failed = failed or error
                # An error outside is the transaction's own: no more answers come.
                if number == last or (error is not None and number < first):
                    return failed

    def _dump(self, message: Message) -> tuple[list[bytes], bool]:
        sequence = self._send([message], REQUEST | DUMP)
        found: list[bytes] = []
        interrupted = False
        while True:
            for kind, flags, number, body in self._receive():
                if number != sequence:
                    continue
                interrupted = interrupted or bool(flags & _INTERRUPTED)
                if kind == _DONE:
                    return found, interrupted
                if kind == _ERROR:
                    error = _error(flags, body)
                    if error is not None:
                        raise error
                    return found, interrupted
                found.append(body)

    def _send(self, messages: Sequence[Message], flags: int) -> int:
        """Send them as one datagram; returns the sequence number of the first."""
        data = b"".join([self._pack(message, flags) for message in messages])
        self._socket.send(data)
        return self._sequence - len(messages) + 1

    def _pack(self, message: Message, flags: int) -> bytes:
        self._sequence += 1
        header = _HEADER.pack(16 + len(message.body), message.type, message.flags | flags, self._sequence, 0)
        return header + message.body + bytes(-len(message.body) % 4)

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        return split(self._socket.recv(_RECEIVE))


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The messages of a datagram: type, flags, sequence number, body."""
    at = 0
    while at + 16 <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if length < 16:
            return
        yield kind, flags, sequence, data[at + 16 : at + length]
        at += (length + 3) & ~3


def _error(flags: int, body: bytes) -> OSError | None:
    """An ack's verdict, with the kernel's own words where it has some (NLMSGERR_ATTR_MSG)."""
    code = struct.unpack_from("=i", body)[0]
    if code == 0:
        return None
    words = ""
    if flags & _ACK_TLVS:
        # CAP_ACK: of the request only the header is repeated, before the attributes.
        words = attributes(body[20:]).get(1, b"").rstrip(b"\0").decode(errors="replace")
    return OSError(-code, words or os.strerror(-code))


def listen(protocol: int, groups: Sequence[int]) -> socket.socket:
    """A non-blocking socket that hears of changes in the calling thread's namespace; never requests anything."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        made.bind((0, 0))
        for group in groups:
            made.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError:
        made.close()
        raise
    return made
