"""TCP request and response of one byte each way: `rr.py server ADDRESS PORT`, `rr.py client ADDRESS PORT SECONDS`.

Runs inside a workload with the standard library only. The client prints exchanges per second.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time


def serve(address: str, port: int) -> None:
    """Answer one peer after the other until killed."""
    listener = socket.create_server((address, port))
    print("ready", flush=True)
    while True:
        peer, _ = listener.accept()
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with peer, contextlib.suppress(OSError):
            while byte := peer.recv(1):
                peer.send(byte)


def ask(address: str, port: int, seconds: float) -> float:
    """Exchanges per second."""
    with socket.create_connection((address, port), 5) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        started = time.monotonic()
        count = 0
        while (passed := time.monotonic() - started) < seconds:
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
