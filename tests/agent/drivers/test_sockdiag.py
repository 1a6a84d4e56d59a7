"""Sockets of workloads are closed from outside, and both ends notice."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from typing import Any

import pytest

from agent.drivers.kernel import Kernel
from agent.drivers.nsthread import NetnsThread
from agent.drivers.sockdiag import Ends, close_connections

pytestmark = pytest.mark.isolated
Shell = Callable[[str], str]

PAIR = """
for n in a b; do ip netns add acme.$n; ip -n acme.$n link set lo up; done
ip -n acme.a link add eth0 type veth peer name eth0 netns acme.b
ip -n acme.a addr add 10.0.0.1/24 dev eth0; ip -n acme.b addr add 10.0.0.2/24 dev eth0
ip -n acme.a addr add fd00::1/64 dev eth0 nodad; ip -n acme.b addr add fd00::2/64 dev eth0 nodad
ip -n acme.a link set eth0 up; ip -n acme.b link set eth0 up
"""
A, B = "/run/netns/acme.a", "/run/netns/acme.b"
BOTH = {"10.0.0.2": "10.0.0.1", "fd00::2": "fd00::1", "::ffff:10.0.0.2": "::ffff:10.0.0.1"}


@pytest.fixture
def thread(sh: Shell) -> Iterator[NetnsThread]:
    sh(PAIR)
    made = NetnsThread()
    made.start()
    yield made
    made.close()


@contextmanager
def connection(server: str, port: int) -> Iterator[tuple[socket.socket, socket.socket, socket.socket]]:
    """Listener, accepted and client socket; made in the namespaces by a thread of its own."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    made: list[socket.socket] = []

    def inside(path: str, job: Callable[[socket.socket], Any]) -> None:
        def work() -> None:
            from agent.drivers import syscalls

            with open(path) as file:
                syscalls.unshare_net()
                syscalls.setns(file.fileno())
            made.append(socket.socket(family, socket.SOCK_STREAM))
            job(made[-1])

        run = threading.Thread(target=work)
        run.start()
        run.join()

    def listen(made: socket.socket) -> None:
        made.bind(("::" if family == socket.AF_INET6 else server, port))
        made.listen()

    with ExitStack() as stack:
        inside(B, listen)
        inside(A, lambda client: client.connect((server, port)))
        listener, client = made
        listener.settimeout(5)
        accepted, _ = listener.accept()
        for each in (listener, client, accepted):
            stack.enter_context(each)
            each.settimeout(5)
        yield listener, accepted, client


def ends(sock: socket.socket) -> Ends:
    def plain(text: str) -> Any:
        address = ip_address(text)
        return getattr(address, "ipv4_mapped", None) or address

    local, remote = sock.getsockname(), sock.getpeername()
    return plain(local[0]), local[1], plain(remote[0]), remote[1]


@pytest.mark.parametrize("server", BOTH)
async def test_both_ends_notice_and_others_do_not(thread: NetnsThread, server: str) -> None:
    with connection(server, 8000) as (_, accepted, client), connection(server, 8001) as (_, beside, other):
        count = await thread.run(lambda kernel: close_connections(kernel, A, {ends(client)}))
        assert count == 1
        with pytest.raises(ConnectionAbortedError):
            client.recv(1)
        with pytest.raises(ConnectionResetError):
            accepted.recv(1)
        other.sendall(b"x")
        assert beside.recv(1) == b"x"
        assert await thread.run(lambda kernel: close_connections(kernel, A, {ends(other), ends(beside)})) == 1


async def test_a_listener_is_never_closed(thread: NetnsThread) -> None:
    with connection("10.0.0.2", 8000) as (listener, accepted, client):
        there = ends(accepted)
        assert await thread.run(lambda kernel: close_connections(kernel, B, {there})) == 1
        assert await thread.run(lambda kernel: close_connections(kernel, B, {there})) == 0
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with connection("10.0.0.2", 8001):
            pass
        assert listener.fileno() >= 0
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_many_at_once(thread: NetnsThread) -> None:
    with ExitStack() as stack:
        made = [stack.enter_context(connection("fd00::2", 9000 + n)) for n in range(200)]
        wanted = {ends(client) for _, _, client in made}
        assert await thread.run(lambda kernel: close_connections(kernel, A, wanted)) == 200
        for _, accepted, _ in made:
            with pytest.raises(ConnectionResetError):
                accepted.recv(1)


async def test_a_namespace_that_is_gone_or_not_a_workloads(thread: NetnsThread) -> None:
    wanted: set[Ends] = {(ip_address("10.0.0.1"), 1, ip_address("10.0.0.2"), 2)}
    for path in ("/run/netns/nobody", "/proc/self/ns/net"):

        def job(kernel: Kernel, path: str = path) -> int:
            return close_connections(kernel, path, wanted)

        assert await thread.run(job) == 0
