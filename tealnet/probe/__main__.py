"""What runs inside a workload to make and see traffic: `python -m tealnet.probe WORD …`.

Started hundreds of times by tests, so what takes long to import (asyncio) is imported by the words that need it.
Long-running words print `ready` first and end when standard input is closed, then print one line of JSON: nothing to
clean up, whoever started them.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import select
import socket
import struct
import sys
import time
from ipaddress import ip_address

from tealnet.probe import load, twins

ETH_P_ALL = 3


def _say(word: str) -> None:
    print(word, flush=True)


def _stdin_closed(wait: float, *others: socket.socket) -> tuple[bool, list[socket.socket]]:
    """(standard input has ended, sockets that can be read), after at most `wait` seconds."""
    ready, _, _ = select.select([sys.stdin, *others], [], [], max(0.0, wait))
    closed = sys.stdin in ready and os.read(sys.stdin.fileno(), 4096) == b""
    return closed, [s for s in others if s in ready]


def ping(address: str, *, interval: float, count: int) -> dict[str, object]:
    """Echo requests at a steady pace; after the end it waits for what is still on its way."""
    target = ip_address(address)
    family, protocol = (socket.AF_INET, 1) if target.version == 4 else (socket.AF_INET6, 58)
    sock = socket.socket(family, socket.SOCK_RAW, protocol)
    sock.connect(socket.getaddrinfo(address, None, family, flags=socket.AI_NUMERICHOST)[0][4])  # also fe80::1%eth0
    ident = os.getpid() & 0xFFFF
    sent: dict[int, float] = {}
    seen: dict[int, float] = {}
    request, reply = (8, 0) if target.version == 4 else (128, 129)
    _say("ready")
    started = time.monotonic()
    ending = 0.0
    while True:
        now = time.monotonic()
        if not ending and now >= started + len(sent) * interval:
            number = len(sent)
            sock.send(_echo(request, ident=ident, number=number, ipv4=target.version == 4))
            sent[number] = time.monotonic()
            if count and len(sent) >= count:
                ending = now + 1.0
        due = ending if ending else started + len(sent) * interval
        closed, ready = _stdin_closed(due - time.monotonic(), sock)
        if ready:
            data = sock.recv(2048)
            body = data[(data[0] & 15) * 4 :] if target.version == 4 else data
            kind, _, _, got, number = struct.unpack("!BBHHI", body[:10])
            if kind == reply and got == ident and number in sent and number not in seen:
                seen[number] = time.monotonic()
        if closed and not ending:
            ending = time.monotonic() + 1.0
        if ending and (len(seen) == len(sent) or time.monotonic() >= ending):
            break
    times = sorted(seen[n] - sent[n] for n in seen)
    lost = sorted(set(sent) - set(seen))
    arrivals = sorted(seen.values())
    gap = max((b - a for a, b in itertools.pairwise(arrivals)), default=0.0)
    return {
        "sent": len(sent),
        "received": len(seen),
        "lost": len(lost),
        "lost_numbers": lost[:20],
        "rtt_p50_ms": round(times[len(times) // 2] * 1000, 3) if times else None,
        "rtt_max_ms": round(times[-1] * 1000, 3) if times else None,
        "longest_gap_ms": round(gap * 1000, 1),
    }


def _echo(kind: int, *, ident: int, number: int, ipv4: bool) -> bytes:
    from tealnet.probe.frames import checksum

    body = struct.pack("!BBHHI", kind, 0, 0, ident, number) + b"tealnet-probe"
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:] if ipv4 else body


def sniff(interface: str) -> dict[str, object]:
    """All frames that arrive on an interface (not those that leave), as hex; the first 20,000.

    `any` is every interface, also those that come later, from their first frame on.
    """
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    if interface != "any":
        sock.bind((interface, ETH_P_ALL))
    frames: list[str] = []
    _say("ready")
    ending = 0.0
    while True:
        closed, ready = _stdin_closed(0.2 if ending else 60.0, sock)
        if ready:
            data, (_, _, kind, *_) = sock.recvfrom(65535)
            if kind != socket.PACKET_OUTGOING and len(frames) < 20000:
                frames.append(data.hex())
            continue
        if ending:
            return {"frames": frames}
        if closed:
            ending = 1.0


def send(interface: str, frames: list[str], *, interval: float) -> dict[str, object]:
    """Raw frames (hex), as they are, `interval` seconds apart: a switch that has to think about each loses a burst."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((interface, 0))
    for frame in frames:
        sock.send(bytes.fromhex(frame).ljust(60, b"\0"))
        if interval:
            time.sleep(interval)
    return {"sent": len(frames)}


def repeat(interface: str, frames: list[str], *, interval: float) -> dict[str, object]:
    """Raw frames (hex), one after the other, over and over until the end; an interface that is gone is no error."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((interface, 0))
    raw = [bytes.fromhex(frame).ljust(60, b"\0") for frame in frames]
    sent = failed = 0
    _say("ready")
    for frame in itertools.cycle(raw):
        try:
            sock.send(frame)
            sent += 1
        except OSError:
            failed += 1
        if _stdin_closed(interval)[0]:
            break
    return {"sent": sent, "failed": failed}


def scatter(first: str, count: int, *, rate: float) -> dict[str, object]:
    """One datagram to each of so many addresses."""
    began = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(count):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            sock.sendto(b"", (str(ip_address(first) + number), 9))
    return {"sent": count}


def serve(port: int) -> dict[str, object]:
    """A TCP server on all addresses that answers the SHA-256 of what it was sent, and counts; UDP is counted, too."""
    tcp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    tcp.bind(("::", port))
    tcp.listen(64)
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    udp.bind(("::", port))
    accepted = datagrams = 0
    _say("ready")
    while True:
        closed, ready = _stdin_closed(60.0, tcp, udp)
        if tcp in ready:
            peer, _ = tcp.accept()
            accepted += 1
            _answer(peer)
        if udp in ready:
            data, whence = udp.recvfrom(65535)
            datagrams += 1
            udp.sendto(data, whence)
        if closed:
            return {"accepted": accepted, "datagrams": datagrams}


def _answer(peer: socket.socket) -> None:
    digest = hashlib.sha256()
    peer.settimeout(30)
    try:
        while data := peer.recv(1 << 16):
            digest.update(data)
        peer.sendall(digest.hexdigest().encode())
    except OSError:
        pass
    finally:
        peer.close()


def transfer(address: str, *, port: int, size: int) -> dict[str, object]:
    """Send random bytes over TCP and compare the digest that comes back."""
    data = os.urandom(size)
    started = time.monotonic()
    with socket.create_connection((address, port), timeout=30) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while part := sock.recv(4096):
            answer += part
    took = time.monotonic() - started
    return {"ok": answer.decode() == hashlib.sha256(data).hexdigest(), "bytes": size, "mbit_s": size * 8 / took / 1e6}


def reach(targets: list[str], *, port: int, wait: float) -> dict[str, object]:
    """Try TCP and UDP to addresses ("fe80::1%eth0" with a scope); which of them answered?"""
    reached: list[str] = []
    for target in targets:
        info = socket.getaddrinfo(target, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(info[0], kind) as sock:
                sock.settimeout(wait)
                try:
                    sock.connect(info[4])
                    if kind == socket.SOCK_DGRAM:
                        sock.send(b"hello")
                        sock.recv(100)
                    reached.append(f"{target} {'tcp' if kind == socket.SOCK_STREAM else 'udp'}")
                except OSError:
                    continue
    return {"reached": reached}


def main() -> None:
    """One word, its arguments, one line of JSON."""
    parser = argparse.ArgumentParser()
    words = parser.add_subparsers(dest="word", required=True)
    word = words.add_parser("ping")
    word.add_argument("address")
    word.add_argument("--interval", type=float, default=0.01)
    word.add_argument("--count", type=int, default=0)
    word = words.add_parser("sniff")
    word.add_argument("interface")
    word = words.add_parser("send")
    word.add_argument("interface")
    word.add_argument("frames", nargs="+")
    word.add_argument("--interval", type=float, default=0.0)
    word = words.add_parser("repeat")
    word.add_argument("interface")
    word.add_argument("frames", nargs="+")
    word.add_argument("--interval", type=float, default=0.005)
    word = words.add_parser("scatter")
    word.add_argument("first")
    word.add_argument("count", type=int)
    word.add_argument("--rate", type=float, default=1000.0)
    word = words.add_parser("serve")
    word.add_argument("port", type=int)
    word = words.add_parser("transfer")
    word.add_argument("address")
    word.add_argument("port", type=int)
    word.add_argument("--size", type=int, default=1 << 20)
    word = words.add_parser("reach")
    word.add_argument("port", type=int)
    word.add_argument("targets", nargs="+")
    word.add_argument("--wait", type=float, default=0.5)
    word = words.add_parser("answer")
    word.add_argument("port", type=int)
    word.add_argument("text")
    word.add_argument("--echo", action="store_true")
    word = words.add_parser("ask")
    word.add_argument("address")
    word.add_argument("port", type=int)
    word.add_argument("--count", type=int, default=1)
    word.add_argument("--kind", choices=("tcp", "udp"), default="tcp")
    word = words.add_parser("hold")
    word.add_argument("address")
    word.add_argument("port", type=int)
    word.add_argument("--count", type=int, default=10)
    word.add_argument("--interval", type=float, default=0.05)
    word.add_argument("--patience", type=float, default=twins.WAIT)
    word = words.add_parser("pairs")
    word.add_argument("first")
    word.add_argument("second")
    word.add_argument("port", type=int)
    word = words.add_parser("load")
    word.add_argument("port", type=int)
    word.add_argument("addresses", nargs="+")
    word.add_argument("--rate", type=float, default=100.0)
    word.add_argument("--kind", choices=load.KINDS, default="tcp")
    word = words.add_parser("table")
    word.add_argument("name")
    word.add_argument("--tcp", type=int, nargs="*", default=[])
    word.add_argument("--udp", type=int, nargs="*", default=[])
    word = words.add_parser("steady")
    word.add_argument("address")
    word.add_argument("port", type=int)
    word.add_argument("record")
    word.add_argument("--rate", type=float, default=100.0)
    word.add_argument("--kind", choices=("tcp", "udp"), default="tcp")
    word = words.add_parser("talk")
    word.add_argument("address")
    word.add_argument("port", type=int)
    word.add_argument("--interval", type=float, default=0.05)
    given = parser.parse_args()
    if given.word == "ping":
        result = ping(given.address, interval=given.interval, count=given.count)
    elif given.word == "sniff":
        result = sniff(given.interface)
    elif given.word == "send":
        result = send(given.interface, given.frames, interval=given.interval)
    elif given.word == "repeat":
        result = repeat(given.interface, given.frames, interval=given.interval)
    elif given.word == "scatter":
        result = scatter(given.first, given.count, rate=given.rate)
    elif given.word == "serve":
        result = serve(given.port)
    elif given.word == "transfer":
        result = transfer(given.address, port=given.port, size=given.size)
    elif given.word == "answer":
        result = twins.answer(given.port, given.text, echo=given.echo)
    elif given.word == "ask":
        result = twins.ask(given.address, port=given.port, count=given.count, kind=given.kind)
    elif given.word == "hold":
        result = twins.hold(
            given.address, port=given.port, count=given.count, interval=given.interval, patience=given.patience
        )
    elif given.word == "pairs":
        result = twins.pairs(given.first, given.second, port=given.port)
    elif given.word == "load":
        result = load.load(given.addresses, port=given.port, rate=given.rate, kind=given.kind)
    elif given.word == "table":
        from tealnet.probe.truth import Table

        result = Table(given.name, tcp=given.tcp, udp=given.udp).run()
    elif given.word == "talk":
        from tealnet.probe.steady import talk

        result = talk(given.address, port=given.port, interval=given.interval)
    elif given.word == "steady":
        from tealnet.probe.steady import steady

        result = steady(given.address, port=given.port, rate=given.rate, record=given.record, kind=given.kind)
    else:
        result = reach(given.targets, port=given.port, wait=given.wait)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
