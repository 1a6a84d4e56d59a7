"""The stream over real gRPC with mutual TLS: sessions begin, end and begin again; units are never taken by half."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.resources import Resources
from agent.stream import Outbox, SessionOver, Stream, Unit
from agent.trust import Credentials
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core import crl
from tealnet.core.pki import Ca, load_certificate
from tests.fakes.agent_server import SERVER_NAME, FakeServer, Guest, save_host
from tests.fakes.controller import hostpeer, uid


class Memory:
    """The least that a stream can talk for."""

    def __init__(self) -> None:
        self.resources = Resources()
        self.sessions: list[str] = []
        self.problems: list[str] = []
        self.observe_numbers: list[int] = []
        self.rule_seconds: list[int] = []
        self.stream: Stream | None = None
        self.begun, self.taken = 0, 0
        self.gate = asyncio.Event()
        self.gate.set()

    def hello(self) -> pb.Hello:
        digests = self.resources.digests().items()
        return pb.Hello(
            instance_uid="i",
            revision=self.resources.revision,
            vtep="192.0.2.1",
            scopes=[pb.ScopeDigest(scope=name, digest=d.bytes(), count=d.count) for name, d in digests],
        )

    async def greeted(self, welcome: pb.Welcome) -> None:
        pass

    async def take(self, unit: Unit) -> pb.Taken:
        self.begun += 1
        await self.gate.wait()
        merged = self.resources.merge(unit.parts)
        self.taken += 1
        return pb.Taken(unit=unit.number, mismatched=merged.mismatched)

    def versions(self, scope: str) -> pb.Versions:
        return pb.Versions(scope=scope)

    def latest(self) -> dict[str, pb.FromAgent]:
        return {"ack": pb.FromAgent(ack=pb.Ack(revision=self.resources.revision))}

    def observe(self, wanted: pb.Observe) -> None:
        self.observe_numbers.append(wanted.number)

    def want_rule_report(self, wanted: pb.WantRuleReport) -> None:
        self.rule_seconds.append(wanted.seconds)

    def session_changed(self, *, server: str, problem: SessionOver | None) -> None:
        if server:
            self.sessions.append(server)
        if problem:
            self.problems.append(problem.reason)


class Rig:
    def __init__(self, directory: Path) -> None:
        self.ca = Ca.create("tealnet.example")
        self.targets = [f"unix:{directory}/{name}.sock" for name in ("one", "two")]
        self.guest = Guest(uid(1), 1, "192.0.2.1")
        save_host(self.ca, "h1", directory)
        self.credentials = Credentials(
            directory / "ca.crt", directory / "host.crt", directory / "host.key", SERVER_NAME
        )

    def revoke(self, *servers: FakeServer) -> None:
        """These certificates are on the list, which from the first call on agents look at."""
        serials = [load_certificate(server.leaf.cert_pem, "leaf").serial_number for server in servers]
        file, _ = crl.revoke(self.credentials.ca.parent, self.ca, serials)
        self.credentials = replace(self.credentials, crl=file)

    def server(self, index: int, ca: Ca | None = None) -> FakeServer:
        server = FakeServer(ca or self.ca, self.targets[index])
        server.guests = {"h1": self.guest}
        return server

    @asynccontextmanager
    async def agent(self, *targets: str) -> AsyncIterator[Memory]:
        memory = Memory()
        stream = memory.stream = Stream(memory, servers=targets or self.targets, credentials=self.credentials)
        task = asyncio.create_task(stream.run())
        try:
            yield memory
        finally:
            memory.gate.set()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


async def test_units_are_taken_and_acks_of_before_told_at_once(rig: Rig) -> None:
    rig.guest.world = {"host": dict([hostpeer(2)])}
    async with rig.server(0) as server, rig.agent(rig.targets[0]) as memory:
        await server.until(lambda: rig.guest.taken, "taken")
        assert memory.resources.versions("host").keys() == {hostpeer(2)[0]}
        assert rig.guest.ack is not None
        rig.guest.world = {"host": dict([hostpeer(2), hostpeer(3)])}
        server.publish()
        await server.until(lambda: len(rig.guest.taken) == 2, "taken")
        assert not any(taken.mismatched for taken in rig.guest.taken)


async def test_a_server_that_goes_is_left_for_another_at_once(rig: Rig) -> None:
    first, second = rig.server(0), rig.server(1)
    await first.start()
    async with rig.agent() as memory:
        await until(lambda: memory.sessions)
        await second.start()
        begin = asyncio.get_running_loop().time()
        await first.stop()
        await until(lambda: memory.sessions[-1] == rig.targets[1], 3)
        assert asyncio.get_running_loop().time() - begin < 2
    await second.stop()


async def test_what_is_to_be_observed_and_how_far_the_clock_is_off(rig: Rig) -> None:
    async with rig.server(0) as server, rig.agent(rig.targets[0]) as memory:
        await server.until(lambda: rig.guest.ack, "a session")
        server.observe("h1", pb.Observe(number=5))
        await until(lambda: memory.observe_numbers == [5])
        assert memory.stream is not None
        await until(lambda: memory.stream and memory.stream.offset().uncertainty)
        offset = memory.stream.offset()  # there is one clock
        assert abs(offset.offset) <= offset.uncertainty < 500_000_000


async def test_silence_ends_a_session(rig: Rig) -> None:
    async with rig.server(0) as server, rig.agent(rig.targets[0]) as memory:
        await until(lambda: memory.sessions)
        server.silent = True
        await until(lambda: "Silent" in memory.problems, 3)
        server.silent = False
        await until(lambda: len(memory.sessions) == 2)


async def test_who_falls_silent_before_a_session_is_accepted_is_left_soon(rig: Rig, tmp_path: Path) -> None:
    """Its process is stopped, or it is cut off: it would be waited for as long as a replica may wait for its tables."""
    welcomed = asyncio.Event()  # never: nothing passes from the moment on at which the connection stands
    way = f"{tmp_path}/way.sock"
    targets = [f"unix:{way}", rig.targets[1]]

    async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            if rig.guest.hellos:
                await welcomed.wait()
            sink.write(data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other, back = await asyncio.open_unix_connection(rig.targets[0].removeprefix("unix:"))
        await asyncio.gather(carry(reader, back), carry(other, writer))

    way_server = await asyncio.start_unix_server(connected, way)
    first, second = rig.server(0), rig.server(1)
    await first.start()
    async with rig.agent(*targets) as memory:
        await until(lambda: rig.guest.hellos)
        begin = asyncio.get_running_loop().time()
        await second.start()
        await until(lambda: memory.sessions == [targets[1]], 5)
        assert asyncio.get_running_loop().time() - begin < 4
    await first.stop()
    await second.stop()
    way_server.close()


async def test_a_unit_is_taken_whole_even_if_its_session_ends(rig: Rig) -> None:
    async with rig.server(0) as server, rig.agent(rig.targets[0]) as memory:
        await until(lambda: memory.taken == 1)
        memory.gate.clear()
        rig.guest.world = {"host": dict([hostpeer(2)])}
        server.publish()
        await until(lambda: memory.begun == 2)
        await server.stop()
        await server.start()
        assert memory.taken == 1
        hellos = len(rig.guest.hellos)
        memory.gate.set()
        await until(lambda: len(rig.guest.hellos) > hellos)
        # The next session's Hello is of after the unit, not of before or in between.
        assert rig.guest.hellos[-1].revision == server.revision
        assert [scope.count for scope in rig.guest.hellos[-1].scopes] == [1]


def test_nobody_waits_long_for_a_controller_that_is_back(rig: Rig) -> None:
    """However long it was away: a host is as it is to be five seconds after the last fault."""
    memory = Memory()
    stream = Stream(memory, servers=rig.targets, credentials=rig.credentials)
    assert max(stream._backoff(failures) for failures in range(2000)) <= 2.0


async def test_a_refusal_sets_the_pace(rig: Rig) -> None:
    server = rig.server(0)
    server.refuse = pb.Refused(reason="Fenced", text="…", retry_after_ms=300)
    async with server, rig.agent(rig.targets[0]) as memory:
        await until(lambda: memory.problems)
        begin = asyncio.get_running_loop().time()
        await until(lambda: len(memory.problems) == 3)
        assert memory.problems == ["Fenced"] * 3
        assert asyncio.get_running_loop().time() - begin > 0.6
        server.refuse = None
        await until(lambda: memory.sessions)


async def test_a_server_of_another_ca_gets_no_word(rig: Rig) -> None:
    async with rig.server(0, Ca.create("tealnet.example")), rig.agent(rig.targets[0]) as memory:
        await until(lambda: memory.problems)
        assert rig.guest.hellos == []


async def test_a_server_whose_certificate_is_revoked_gets_no_word(rig: Rig) -> None:
    first, second = rig.server(0), rig.server(1)
    rig.revoke(first)
    async with first, rig.agent() as memory:
        await until(lambda: memory.problems.count("Distrusted") > 1)
        assert rig.guest.hellos == []
        async with second:
            await until(lambda: memory.sessions)
            assert set(memory.sessions) == {rig.targets[1]} and len(rig.guest.hellos) == 1
            rig.guest.world = {"host": dict([hostpeer(2)])}
            second.publish()
            await second.until(lambda: rig.guest.taken, "a session as any other")


async def test_a_server_whose_certificate_is_revoked_meanwhile_is_left_for_another(rig: Rig) -> None:
    first, second = rig.server(0), rig.server(1)
    rig.revoke()
    async with first, rig.agent() as memory:
        await until(lambda: memory.sessions)
        async with second:
            rig.revoke(first)
            await until(lambda: memory.sessions[-1] == rig.targets[1], 5)
            assert "Distrusted" in memory.problems


async def test_who_shows_one_certificate_and_then_another_gets_no_word(rig: Rig, tmp_path: Path) -> None:
    """It has a revoked one, and lets the first handshake through to a server that is trusted."""
    good, bad = rig.server(0), rig.server(1)
    rig.revoke(bad)
    turn, way = [0], f"{tmp_path}/way.sock"

    async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                sink.write(data)
        sink.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target, turn[0] = rig.targets[turn[0] % 2], turn[0] + 1
        other, back = await asyncio.open_unix_connection(target.removeprefix("unix:"))
        await asyncio.gather(carry(reader, back), carry(other, writer))

    between = await asyncio.start_unix_server(connected, way)
    async with good, bad, rig.agent(f"unix:{way}") as memory:
        await until(lambda: "Unreachable" in memory.problems and turn[0] > 3)
        assert rig.guest.hellos == [] and not memory.sessions
    between.close()


async def test_without_the_list_that_is_named_there_is_no_session(rig: Rig) -> None:
    rig.revoke()
    assert rig.credentials.crl is not None
    hidden = rig.credentials.crl.rename(rig.credentials.crl.with_suffix(".hidden"))
    async with rig.server(0), rig.agent(rig.targets[0]) as memory:
        await until(lambda: "Credentials" in memory.problems)
        assert rig.guest.hellos == []
        hidden.rename(rig.credentials.crl)
        await until(lambda: memory.sessions)


async def test_missing_certificates_are_a_problem_until_they_are_there(rig: Rig) -> None:
    hidden = rig.credentials.cert.with_suffix(".hidden")
    rig.credentials.cert.rename(hidden)
    async with rig.server(0), rig.agent(rig.targets[0]) as memory:
        await until(lambda: "Credentials" in memory.problems)
        hidden.rename(rig.credentials.cert)
        await until(lambda: memory.sessions)


async def test_what_waits_to_be_sent_is_bounded_by_name() -> None:
    outbox = Outbox()
    for number in range(100):
        outbox.put("ack", pb.FromAgent(ack=pb.Ack(revision=number)))
        outbox.put("ping", pb.FromAgent(ping=pb.Ping(number=number)))
    assert (await outbox.get()).ack.revision == 99
    assert (await outbox.get()).ping.number == 99


async def test_what_an_ack_tells_once_is_told_though_another_took_its_place() -> None:
    outbox = Outbox()
    for number in (1, 2):
        told = pb.PortDevice(port_uid=f"{number:032x}", device=f"tn{number:012x}")
        outbox.put("ack", pb.FromAgent(ack=pb.Ack(revision=number, devices=[told], devices_whole=number == 1)))
    ack = (await outbox.get()).ack
    assert ack.revision == 2 and ack.devices_whole
    assert [said.device for said in ack.devices] == ["tn000000000001", "tn000000000002"]
