"""Questions from inside a color, asked with real sockets; addresses of loopback stand for the endpoints'."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network

import pytest

from agent import names
from agent.drivers.nssocket import Address, Speaks
from agent.inputs import Inputs
from agent.probe import Prober
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.stream import Attach, Endpoint, LocalPort, Segment, Subnet
from tealnet.core.tables import Graph

GREEN, BLUE = 1002, 1001
TCP, HTTP, ICMP = pb.Probe.KIND_TCP, pb.Probe.KIND_HTTP, pb.Probe.KIND_ICMP


class Inside:
    """Every namespace is this one; remembers from which addresses was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def open_inside(self, path: str, *, speaks: Speaks, source: Address) -> socket.socket:
        self.asked.append((path, str(source)))
        family = socket.AF_INET if source.version == 4 else socket.AF_INET6
        if speaks is Speaks.TCP:
            made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        else:
            made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 1 if source.version == 4 else 58)
        made.bind((str(source), 0))
        return made


class Host:
    """Green endpoints at 127.0.0.<number>; `local` of them are here."""

    def __init__(self, *numbers: int, local: tuple[int, ...], kind: Attach = Attach.NETNS) -> None:
        self.inputs, self.inside = Inputs(Graph()), Inside()
        prefix = ip_network("127.0.0.0/24")
        for vni, color in ((BLUE, 1), (GREEN, 2)):
            self.inputs.segments.put(vni, Segment(vni, 700, color, 11, 1430, (Subnet(prefix, prefix[1]),)))
        for number in numbers:
            uid, address = f"{number:032x}", ip_address(f"127.0.0.{number}")
            self.inputs.endpoints.put(uid, Endpoint(uid, GREEN, (address,), "02:00:00:00:00:01", "h", "", 1, ()))
            if number in local:
                where = f"tap{number}" if kind is Attach.DEVICE else f"p{number}"
                port = LocalPort(uid, GREEN, (address,), "02:00:00:00:00:01", 1, (), "acme", where, kind, where, "eth0")
                self.inputs.localports.put(uid, port)
                self.inputs.ofports.put(names.device(port), number)
        self.prober = Prober(self.inputs, self.inside)

    @asynccontextmanager
    async def asking(self, **fields: object) -> AsyncIterator[pb.ProbeObserved]:
        """One probe's first round."""
        probe = pb.Probe(id=7, vni=GREEN, interval_ms=200, timeout_ms=300, **fields)  # type: ignore[arg-type]
        self.prober.want([probe])
        try:
            yield await self.round()
        finally:
            self.prober.want([])

    async def round(self, *, tries: int = 1) -> pb.ProbeObserved:
        async with asyncio.timeout(10):
            while True:
                (now,) = self.prober.observed()
                if now.tries >= tries:
                    return now
                await asyncio.sleep(0.005)


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def answering(status: str) -> Talk:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert request.startswith(b"GET /health HTTP/1.1\r\nHost: shop.example\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok".encode())
        await writer.drain()
        writer.close()

    return answer


async def test_tcp_tells_who_listens_from_who_does_not() -> None:
    host = Host(2, 3, local=(2,))
    server = await asyncio.start_server(hang_up, "127.0.0.3", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, host.asking(kind=TCP, port=port) as seen:
        assert (seen.targets, seen.tries, seen.failed, seen.failing) == (2, 2, 1, 1)
        assert seen.text == "127.0.0.2: connection refused" and seen.last_at
    assert host.prober.observed() == []


async def test_others_are_asked_by_others() -> None:
    host = Host(2, 3, local=(2, 3))
    async with host.asking(kind=TCP, port=1):
        pass
    assert set(host.inside.asked) >= {("/run/netns/acme.p3", "127.0.0.3"), ("/run/netns/acme.p2", "127.0.0.2")}
    alone = Host(2, local=(2,))
    async with alone.asking(kind=TCP, port=1) as seen:
        assert seen.targets == 1, "nobody else can ask: it asks itself"


@pytest.mark.parametrize(
    ("status", "more", "fails"),
    [
        ("200 OK", {}, ""),
        ("302 Found", {}, ""),
        ("500 Oops", {}, "HTTP status 500"),
        ("404 No", {"status_from": 404, "status_to": 404}, ""),
        ("nonsense", {}, "HTTP status"),
    ],
)
async def test_http(status: str, more: dict[str, int], fails: str) -> None:
    host = Host(2, 3, local=(2,))
    server = await asyncio.start_server(answering(status), "127.0.0.3", 0)
    port = server.sockets[0].getsockname()[1]
    only = [ip_address("127.0.0.3").packed]
    fields = {"kind": HTTP, "port": port, "path": "/health", "host": "shop.example", "addresses": only, **more}
    async with server, host.asking(**fields) as seen:
        assert seen.targets == 1 and (seen.failed > 0) == bool(fails)
        assert fails in seen.text or seen.text.endswith("no HTTP answer")


async def test_no_answer_is_a_failure_in_time() -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    host = Host(2, 3, local=(2,))
    server = await asyncio.start_server(never, "127.0.0.3", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, host.asking(kind=HTTP, port=port, addresses=[ip_address("127.0.0.3").packed]) as seen:
        assert (seen.failed, seen.text) == (1, "127.0.0.3: no answer")


@pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets need root")
async def test_echo() -> None:
    host = Host(2, 3, local=(2,))
    async with host.asking(kind=ICMP) as seen:
        assert (seen.targets, seen.failed) == (2, 0)


@pytest.mark.parametrize("kind", [Attach.NETNS, Attach.DEVICE])
async def test_who_cannot_ask_says_so(kind: Attach) -> None:
    host = Host(2, 3, local=(2,) if kind is Attach.DEVICE else (), kind=kind)
    host.prober.want([pb.Probe(id=7, vni=GREEN, kind=TCP, port=1)])
    await asyncio.sleep(0)
    (seen,) = host.prober.observed()
    assert (seen.targets, seen.tries) == (0, 0)
    host.prober.want([])


async def test_a_probe_that_changes_counts_anew_and_one_that_stays_goes_on() -> None:
    host = Host(2, local=(2,))
    one = pb.Probe(id=7, vni=GREEN, kind=TCP, port=1, interval_ms=200)
    host.prober.want([one])
    tries = (await host.round(tries=2)).tries
    host.prober.want([pb.Probe.FromString(one.SerializeToString())])
    assert host.prober.observed()[0].tries >= tries
    host.prober.want([pb.Probe(id=7, vni=GREEN, kind=TCP, port=2, interval_ms=200)])
    assert host.prober.observed()[0].tries == 0
    host.prober.want([])


async def test_of_many_some_in_each_round() -> None:
    numbers = tuple(range(2, 152))
    host = Host(*numbers, local=(2,))
    async with host.asking(kind=TCP, port=1):
        seen = await host.round(tries=3 * 64)
        assert seen.targets == 150 and seen.failing == 150
