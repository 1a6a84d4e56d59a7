"""TCP connections one after the other: `connections.py server ADDRESS PORT`, `… client ADDRESS PORT SECONDS FIRST`.

Runs inside a workload with the standard library only. Each connection carries one byte each way and is reset, so that
no port has to rest. The client prints connections per second, and the source port that follows its last one.

Source ports are given out in order, from the first on, so that runs which go on where the last one ended use none twice
in 64,000 connections: OVN asks conntrack for address translation with each connection, and Open vSwitch 3.1 aborts
where such a connection takes the place of one that was closed just before (conntrack.c: conn_update_state).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
import time

FIRST, _LAST = 1024, 65535  # source ports
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close by a reset


def serve(address: str, port: int) -> None:
    """Answer one peer after the other until killed."""
    listener = socket.create_server((address, port), backlog=128)
    print("ready", flush=True)
    while True:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            if peer.recv(1):
                peer.send(b"x")
                peer.recv(1)  # its reset


def ask(address: str, port: int, seconds: float, source: int) -> tuple[float, int]:
    """Connections per second, and the next source port."""
    started = time.monotonic()
    count = 0
    while (passed := time.monotonic() - started) < seconds:
        own, source = source, source + 1 if source < _LAST else FIRST
        try:
            peer = socket.create_connection((address, port), 5, ("", own))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:  # a stream of before still rests on it
                continue
            raise
        with peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            peer.send(b"x")
            if not peer.recv(1):
                raise ConnectionError("the server has gone")
        count += 1
    return count / passed, source


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        rate, following = ask(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
        print(f"{rate:.1f} {following}")
