"""TCP connections one after the other: `connections.py server ADDRESS PORT`, `… client ADDRESS PORT SECONDS`.

Runs inside a workload with the standard library only. Each connection carries one byte each way and is reset, so that
no port has to rest. The client prints connections per second.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time

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


def ask(address: str, port: int, seconds: float) -> float:
    """Connections per second."""
    started = time.monotonic()
    count = 0
    while (passed := time.monotonic() - started) < seconds:
        with socket.create_connection((address, port), 5) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            peer.send(b"x")
            if not peer.recv(1):
                raise ConnectionError("the server has gone")
        count += 1
    return count / passed


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        print(f"{ask(sys.argv[2], int(sys.argv[3]), float(sys.argv[4])):.1f}")
