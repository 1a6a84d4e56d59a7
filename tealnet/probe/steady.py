"""A steady load of short connections, each noted with the time at which it began and the word that came back.

What is noted is written to a file at the end: a line `began took word` for each request, times in microseconds since
1970 and of the request. Whoever knows when what was in force can tell which word each of them should have heard.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

WAIT = 3.0  # seconds for one request
MOST = 400  # requests under way


def steady(address: str, *, port: int, rate: float, record: str, kind: str) -> dict[str, object]:
    """Requests at this rate until standard input ends: a TCP connection or one UDP datagram each.

    Each datagram comes from a port that was not used before: of the same one it would be the same connection.

    The answer: requests, words, failed (no word came) and of these reset; late: how many began more than 50 ms after
    they were due.
    """
    notes: list[tuple[int, int, str]] = []
    result = asyncio.run(_steady(address, port=port, rate=rate, kind=kind, notes=notes))
    Path(record).write_text("".join(f"{at} {took} {word.replace(' ', '-')}\n" for at, took, word in notes))
    return result


async def _steady(
    address: str, *, port: int, rate: float, kind: str, notes: list[tuple[int, int, str]]
) -> dict[str, object]:
    _use_all_ports()
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), lambda: ended.set() if not os.read(sys.stdin.fileno(), 4096) else None)
    under_way: set[asyncio.Task[None]] = set()
    print("ready", flush=True)
    began, sent, late = time.monotonic(), 0, 0
    while not ended.is_set():
        due = began + sent / rate
        while (left := due - time.monotonic()) > 0 and not ended.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await ended.wait()
        if len(under_way) >= MOST:
            await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        late += time.monotonic() - due > 0.05
        own = 1024 + sent % (65536 - 1024) if kind == "udp" else 0
        task = asyncio.create_task(_request(address, port, own, notes))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        sent += 1
    if under_way:
        await asyncio.wait(under_way)
    words = Counter(word for _, _, word in notes)
    failed = {word: count for word, count in words.items() if word.startswith("(")}
    return {
        "requests": len(notes),
        "words": dict(words),
        "failed": sum(failed.values()),
        "reset": sum(count for word, count in failed.items() if "reset" in word or "refused" in word),
        "late": late,
        "seconds": round(time.monotonic() - began, 3),
    }


def talk(address: str, *, port: int, interval: float) -> dict[str, object]:
    """One UDP socket that asks again and again until standard input ends.

    The answer: `runs`, who answered one after the other and how often, as [word, count].
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    runs: list[list[object]] = []
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        print("ready", flush=True)
        due = time.monotonic()
        while True:
            with suppress(ConnectionError):  # somebody has said that nobody listens
                sock.send(b"?")
            due += interval
            while (left := due - time.monotonic()) > 0:
                ready, _, _ = select.select([sys.stdin, sock], [], [], left)
                if sys.stdin in ready and not os.read(sys.stdin.fileno(), 4096):
                    return {"runs": runs}
                if sock in ready:
                    with suppress(ConnectionError):
                        _note(runs, sock.recv(100).decode().strip())


def _note(runs: list[list[object]], word: str) -> None:
    if runs and runs[-1][0] == word:
        runs[-1][1] = int(str(runs[-1][1])) + 1
    else:
        runs.append([word, 1])


def _use_all_ports() -> None:
    """In this namespace: ports of connections that have just ended may be used again after a second."""
    for name, value in (("tcp_tw_reuse", "1"), ("ip_local_port_range", "1024 65535")):
        with suppress(OSError):
            Path("/proc/sys/net/ipv4", name).write_text(value)


async def _request(address: str, port: int, own: int, notes: list[tuple[int, int, str]]) -> None:
    """`own`: UDP, from this port; 0: TCP."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    at, begin = time.time_ns(), time.monotonic_ns()
    word = "(silence)"
    try:
        with socket.socket(family, socket.SOCK_DGRAM if own else socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            if own:
                sock.bind(("", own))
            async with asyncio.timeout(WAIT):
                await loop.sock_connect(sock, (address, port))
                if own:
                    await loop.sock_sendall(sock, b"?")
                word = (await loop.sock_recv(sock, 100)).decode().strip() or "(closed)"
    except TimeoutError:
        word = "(timeout)"
    except OSError as error:
        word = f"({(error.strerror or type(error).__name__).lower()})"
    notes.append((at // 1000, (time.monotonic_ns() - begin) // 1000, word))
