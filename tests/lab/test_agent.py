"""Two real agents on lab hosts with real Open vSwitch, and a controller's end that says what a test wants."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.devices import revalidators
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.pki import Ca
from tealnet.lab import host as lab_host
from tealnet.lab.host import Host, Parts
from tealnet.lab.lab import Lab
from tests.fakes.agent_server import SERVER_NAME, FakeServer, Guest, save_host
from tests.fakes.controller import endpoint, localport, segment, uid
from tests.lab.looks import ERA

pytestmark = pytest.mark.lab

NAME = "agent-tests"
SOON = 10.0  # seconds


class Rig:
    """A lab without a controller, and two places where one may listen."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab, self.directory = lab, directory
        self.ca = Ca.create("tealnet.example")
        self.targets = [f"unix:{directory}/{name}.sock" for name in ("one", "two")]
        self.guests = {h.name: Guest(uid(1000 + h.number), h.number, h.vtep) for h in lab.hosts}
        self.revision = 1000
        for host in lab.hosts:
            save_host(self.ca, host.name, host.disk("/etc/tealnet"))
            host.configure_agent(servers=[])
            path = host.disk("/etc/tealnet") / "agent.yaml"
            settings = yaml.safe_load(path.read_text()) | {"servers": self.targets, "server_name": SERVER_NAME}
            path.write_text(yaml.safe_dump(settings))
            host.start(lab_host.AGENT)

    @property
    def hosts(self) -> list[Host]:
        return self.lab.hosts

    def make_server(self, index: int) -> FakeServer:
        server = FakeServer(self.ca, self.targets[index])
        server.guests, server.revision = self.guests, self.revision
        return server

    @asynccontextmanager
    async def server(self) -> AsyncIterator[FakeServer]:
        """A controller, with both agents in session and their worlds applied."""
        async with self.make_server(0) as server:
            for guest in self.guests.values():
                guest.ack = None
            await server.applied(server.publish())
            yield server
            self.revision = server.revision

    def plug(self, *, h1: Sequence[int] = (), h2: Sequence[int] = ()) -> None:
        """These ports are wanted on the hosts, all in one network."""
        where = {number: name for name, numbers in (("h1", h1), ("h2", h2)) for number in numbers}
        peers = dict(self._peer(host) for host in self.hosts)
        for name, guest in self.guests.items():
            local = dict(localport(number) for number, place in where.items() if place == name)
            endpoints = [endpoint(number, host=self.guests[place].uid) for number, place in where.items()]
            guest.world = (
                {"host": local | peers, "domain/700": dict([segment(), *endpoints])} if local else {"host": {}}
            )

    def _peer(self, host: Host) -> tuple[str, bytes]:
        body = pb.HostPeer(vtep=ip_address(host.vtep).packed, number=host.number)
        return f"hostpeer/{self.guests[host.name].uid}", body.SerializeToString()


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    Lab.remove(NAME)
    directory = Path(tempfile.mkdtemp(prefix="tealnet-rig-"))
    try:
        with Lab.up(NAME, hosts=2, parts=Parts.SWITCH) as lab:
            yield Rig(lab, directory)
    finally:
        shutil.rmtree(directory)


# -- looking


async def run(host: Host, *argv: str, netns: str = "") -> str:
    """What a command prints, whether it succeeds or not."""
    where = host.argv(list(argv), netns=netns)
    process = await asyncio.create_subprocess_exec(
        *where, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return output.decode()


def space(number: int) -> str:
    return f"acme.space-{number}"


async def reaches(host: Host, source: int, target: int) -> bool:
    words = await run(host, "ping", "-c1", "-W1", f"10.5.0.{target}", netns=space(source))
    return "1 received" in words


async def eventually_reaches(host: Host, source: int, target: int, seconds: float = SOON) -> float:
    """Seconds until a ping gets through."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    while not await reaches(host, source, target):
        assert loop.time() - begin < seconds, f"{source} does not reach {target}: {await status(host)}"
    return loop.time() - begin


async def status(host: Host) -> dict[str, Any]:
    words = await run(host, "curl", "-s", "--unix-socket", "/run/tealnet/agent.sock", "http://agent/status")
    answer: dict[str, Any] = json.loads(words)
    return answer


async def repairs(host: Host) -> dict[str, int]:
    return {name: layer["repairs"] for name, layer in (await status(host))["layers"].items()}


async def settled(host: Host, seconds: float = SOON) -> dict[str, Any]:
    """The status once nothing is left to do."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                now = await status(host)
            except json.JSONDecodeError:
                continue  # it is starting
            if now["in_sync"] and not any(layer["pending"] for layer in now["layers"].values()):
                return now


async def cookies(host: Host) -> set[str]:
    flows = await run(host, "ovs-ofctl", "-OOpenFlow15", "dump-flows", "br-int")
    return set(re.findall(r"cookie=(0x[0-9a-f]+)", "\n".join(line for line in flows.splitlines() if ERA not in line)))


async def device(host: Host) -> str:
    """The only port's host-side device."""
    plugged = re.findall(r"\b(tn[0-9a-f]{12})\b(?=@| |\n|$)", await run(host, "ovs-vsctl", "list-ports", "br-int"))
    spares = await run(host, "ls", "-A", "/run/netns")  # … but for those that wait for a port
    (name,) = [device for device in plugged if f".{device}" not in spares]
    return str(name)


# -- the tests


async def test_from_nothing_to_a_ping(rig: Rig) -> None:
    rig.plug(h1=[11], h2=[12])
    async with rig.server() as server:
        assert await reaches(rig.hosts[0], 11, 12)
        for host in rig.hosts:
            now = await settled(host)
            assert now["failures"] == {} and now["applied"] == now["revision"] == server.revision
            guest = rig.guests[host.name]
            await server.until(lambda guest=guest: guest.facts and guest.facts.underlay_mtu, "facts")  # type: ignore[misc]
            assert guest.facts is not None and guest.facts.ovs_version
            assert (guest.facts.datapath, guest.facts.underlay_mtu) == ("netdev", 1500)
            if each := revalidators():
                caches = await run(host, "ovs-appctl", "upcall/show")
                assert len(re.findall(r"^\s+\d+: \(keys \d+\)", caches, re.M)) == each, caches


SABOTAGE = {
    "all flows": ["ovs-ofctl -OOpenFlow15 del-flows br-int"],
    "one flow": ["ovs-ofctl -OOpenFlow15 del-flows br-int table=60"],
    "a flow of somebody": ["ovs-ofctl -OOpenFlow15 add-flow br-int priority=60000,actions=drop"],
    "a port": ["ovs-vsctl del-port {device}"],
    "the tunnel": ["ovs-vsctl del-port vxlan0"],
    "the bridge": ["ovs-vsctl del-br br-int"],
    "the link": ["ip link delete {device}"],
    "the link's state": ["ip link set {device} down"],
    "the guard": ["nft delete table netdev tealnet"],
    "an address": ["ip -n {space} address flush dev eth0 scope global"],
    "the workload's state": ["ip -n {space} link set eth0 down"],
    "the namespace": ["ip netns delete {space}"],
}


async def test_what_somebody_breaks_is_repaired(rig: Rig) -> None:
    rig.plug(h1=[11], h2=[12])
    async with rig.server():
        host = rig.hosts[0]
        await eventually_reaches(host, 11, 12)
        for what, lines in SABOTAGE.items():
            before = await repairs(host)
            names = {"device": await device(host), "space": space(11)}
            for line in lines:
                await run(host, *line.format(**names).split())
            async with asyncio.timeout(SOON):
                while await repairs(host) == before:
                    pass
            await eventually_reaches(host, 11, 12)
            now = await settled(host)
            assert now["failures"] == {}, what
            assert "policy drop" in await run(host, "nft", "list", "table", "netdev", "tealnet"), what


@asynccontextmanager
async def pinging(host: Host, source: int, target: int) -> AsyncIterator[None]:
    """Fails if one packet of a 10 ms ping is lost meanwhile."""
    argv = host.argv(["ping", "-i0.01", "-W1", f"10.5.0.{target}"], netns=space(source))
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        while b"bytes from" not in await process.stdout.readline():
            pass
        yield
    finally:
        await run(host, "kill", "-INT", *await _inside(host, "ping"))
        words = (await process.communicate())[0].decode()
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", words)
    assert counts and int(counts[1]) - int(counts[2]) <= 1, words[-300:]  # the last one may be on its way


async def _inside(host: Host, name: str) -> list[str]:
    return (await run(host, "ps", "-o", "pid=", "-C", name)).split()


async def test_an_agent_killed_under_ping_changes_nothing(rig: Rig) -> None:
    rig.plug(h1=[11], h2=[12])
    async with rig.server():
        host = rig.hosts[0]
        await eventually_reaches(host, 11, 12)
        await settled(host)
        flows = await run(host, "ovs-ofctl", "-OOpenFlow15", "dump-flows", "br-int")
        age = min(float(n) for n in re.findall(r"duration=([0-9.]+)s", flows))
        async with pinging(host, 11, 12):
            await asyncio.to_thread(rig.lab.kill, "h1", "agent")
            await asyncio.to_thread(rig.lab.start, "h1", "agent")
            now = await settled(host)
        flows = await run(host, "ovs-ofctl", "-OOpenFlow15", "dump-flows", "br-int")
        assert min(float(n) for n in re.findall(r"duration=([0-9.]+)s", flows)) > age  # not one was written again
        assert {layer["repairs"] for layer in now["layers"].values()} == {0}


async def test_without_a_controller_the_last_intent_is_served(rig: Rig) -> None:
    rig.plug(h1=[11], h2=[12])
    host = rig.hosts[0]
    async with rig.server():
        await settled(host)
        expected = await cookies(host)
    await asyncio.to_thread(rig.lab.kill, "h1", "agent")
    await run(host, "ovs-ofctl", "-OOpenFlow15", "del-flows", "br-int")
    await run(host, "ip", "link", "delete", await device(host))
    await asyncio.to_thread(rig.lab.start, "h1", "agent")
    await eventually_reaches(host, 11, 12)
    now = await settled(host)
    assert now["session"]["server"] == ""
    assert await cookies(host) == expected


async def test_a_port_goes_with_proof_only(rig: Rig) -> None:
    rig.plug(h1=[11], h2=[12])
    async with rig.server() as server:
        host, guest = rig.hosts[0], rig.guests["h1"]
        await eventually_reaches(host, 11, 12)
        guest.world = {"host": {}}
        async with pinging(host, 11, 12):
            await server.applied(server.publish("h1"), "h1")
        assert guest.ack is not None and list(guest.ack.unaccounted) == [localport(11)[0]]
        await server.applied(server.publish("h1", proofs=[localport(11)[0]]), "h1")
        assert list(guest.ack.unaccounted) == []
        assert space(11) not in await run(host, "ip", "netns", "list")
        guest.proofs.clear()


async def test_when_all_is_gone_nothing_is_left(rig: Rig) -> None:
    rig.plug(h1=[11, 13, 14], h2=[12])
    async with rig.server() as server:
        host = rig.hosts[0]
        await eventually_reaches(host, 13, 12)
        gone = [localport(number)[0] for number in (11, 12, 13, 14)]
        rig.plug()
        await server.applied(server.publish(proofs=gone))
        for host in rig.hosts:
            assert "acme" not in await run(host, "ip", "netns", "list")
            assert not re.search(r"\btn[0-9a-f]{12}", await run(host, "ip", "link", "show"))
            assert not re.search(r"\btn[0-9a-f]{12}", await run(host, "ovs-vsctl", "show"))
            assert "chain" not in await run(host, "nft", "list", "ruleset")
        for guest in rig.guests.values():
            guest.proofs.clear()


async def test_a_poison_port_fails_alone_and_heals(rig: Rig) -> None:
    rig.plug(h1=[11], h2=[12])
    async with rig.server() as server:
        host = rig.hosts[0]
        await run(host, "ip", "netns", "add", space(13))  # somebody's
        rig.plug(h1=[11, 13], h2=[12])
        failures = await server.applied(server.publish())
        assert failures["h1"] == {localport(13)[0]: "NetnsForeign"}
        assert await reaches(host, 11, 12)
        await run(host, "ip", "netns", "delete", space(13))
        await server.until(lambda: rig.guests["h1"].ack and not rig.guests["h1"].ack.failures, "healed", 40)
        assert await reaches(host, 13, 12)


@pytest.mark.parametrize("process", ["ovs-vswitchd", "ovsdb-server"])
async def test_open_vswitch_restarts_and_workloads_go_on(rig: Rig, process: str) -> None:
    rig.plug(h1=[11], h2=[12])
    async with rig.server():
        host = rig.hosts[0]
        await eventually_reaches(host, 11, 12)
        await asyncio.to_thread(rig.lab.kill, "h1", process)
        await asyncio.to_thread(rig.lab.start, "h1", process)
        await eventually_reaches(host, 11, 12)
        now = await settled(host)
        assert now["failures"] == {}
        await eventually_reaches(rig.hosts[1], 12, 11)


async def test_a_silent_controller_is_left_for_another_within_two_seconds(rig: Rig) -> None:
    rig.plug(h1=[11], h2=[12])
    loop = asyncio.get_running_loop()
    async with rig.server() as first, rig.make_server(1) as second:
        second.revision = first.revision
        first.silent = True
        begin = loop.time()
        for guest in rig.guests.values():
            guest.hellos.clear()
        await second.until(lambda: all(guest.hellos for guest in rig.guests.values()), "failover")
        assert loop.time() - begin < 2.5
        await second.applied(second.publish())
        rig.revision = second.revision


async def test_a_refusal_is_shown_and_the_data_plane_stays(rig: Rig) -> None:
    rig.plug(h1=[11], h2=[12])
    async with rig.server():
        await eventually_reaches(rig.hosts[0], 11, 12)
    server = rig.make_server(0)
    server.refuse = pb.Refused(reason="ForeignHistory", text="another store", retry_after_ms=100)
    async with server:
        async with asyncio.timeout(SOON):
            while (await status(rig.hosts[0]))["session"]["problem"] != "ForeignHistory":
                pass
        assert await reaches(rig.hosts[0], 11, 12)
