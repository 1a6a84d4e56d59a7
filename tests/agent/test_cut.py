"""What leaves a color that is closed: whose connections, at which ends, and when it is done."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from agent.closing import Closing
from agent.connections import Connection, parse
from agent.cut import Cutter
from agent.drivers.base import DeviceUnavailable
from agent.drivers.sockdiag import Ends
from agent.epochs import Epoch
from agent.inputs import Inputs
from tealnet.core.rows.colors import Affinity, ColorWeight, Weights
from tealnet.core.rows.stream import Attach, LocalPort, Segment, Subnet
from tealnet.core.tables import Graph

DOMAIN, OPS, WEB = 700, 30, 11
UID = f"{WEB:032x}"
DUMP = """\
tcp,orig=(src=10.30.0.10,dst=10.11.0.5,sport=1,dport=80),reply=(src=10.11.0.5,dst=10.30.0.10,sport=80,dport=1),zone=10,mark=257,protoinfo=(state=ESTABLISHED)
tcp,orig=(src=10.30.0.10,dst=10.11.0.5,sport=1,dport=80),reply=(src=10.11.0.5,dst=10.30.0.10,sport=80,dport=1),zone=12,mark=1,protoinfo=(state=ESTABLISHED)
tcp,orig=(src=10.30.0.10,dst=10.11.0.7,sport=2,dport=80),reply=(src=10.11.0.7,dst=10.30.0.10,sport=80,dport=2),zone=10,mark=2,protoinfo=(state=ESTABLISHED)
udp,orig=(src=fd30::10,dst=fd11::5,sport=3,dport=53),reply=(src=fd11::5,dst=fd30::10,sport=53,dport=3),zone=10,mark=1,labels=0x7
icmp,orig=(src=10.30.0.10,dst=10.11.0.5,id=9,type=8,code=0),reply=(src=10.11.0.5,dst=10.30.0.10,id=9,type=0,code=0),zone=10,mark=1
tcp,orig=(src=10.11.0.5,dst=10.30.0.10,sport=4,dport=25),reply=(src=10.30.0.10,dst=10.11.0.5,sport=25,dport=4),zone=10,mark=1,protoinfo=(state=ESTABLISHED)
tcp,orig=(src=10.11.0.9,dst=10.11.0.5,sport=5,dport=80),reply=(src=10.11.0.5,dst=10.11.0.9,sport=80,dport=5),zone=12,mark=1,protoinfo=(state=ESTABLISHED)
tcp,orig=(src=10.30.0.10,dst=10.11.0.5,sport=6,dport=80),reply=(src=10.11.0.5,dst=10.30.0.10,sport=80,dport=6),zone=999,mark=1,protoinfo=(state=ESTABLISHED)
"""


@dataclass
class Host:
    """A datapath and namespaces, as far as a cut sees them."""

    rows: list[Connection] = field(default_factory=lambda: parse(DUMP))
    closed: dict[str, set[Ends]] = field(default_factory=dict)
    forgotten: list[Connection] = field(default_factory=list)
    down: bool = False
    closes: bool = True
    looks: int = 0

    async def connections(self, zones: Collection[int] | None = None) -> list[Connection]:
        self.looks += 1
        if self.down:
            raise DeviceUnavailable("vswitchd is down")
        return list(self.rows)

    async def forget(self, connections: list[Connection]) -> None:
        assert self.closed, "forgotten before the ends were told"
        self.forgotten += connections
        self.rows = [row for row in self.rows if row not in connections]

    async def close_connections(self, path: str, ends: Collection[Ends]) -> int:
        self.closed.setdefault(path, set()).update(ends)
        if not self.closes:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return len(ends)


class Epochs:
    """Every row of weights is in force at once."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self.on_applied: list[object] = []

    @property
    def in_force(self) -> dict[str, Epoch]:
        return {uid: Epoch(row, 1, 1, late=False) for uid, row in self._inputs.weights.rows.items()}

    def is_committed(self, uid: str) -> bool:
        return True


def segment(vni: int, color: int, number: int) -> Segment:
    prefixes = ip_network(f"10.{number}.0.0/24"), ip_network(f"fd{number}::/64")
    return Segment(vni, DOMAIN, color, number, 1430, tuple(Subnet(prefix, prefix[1]) for prefix in prefixes))


def port(name: str, vni: int, v4: str, v6: str, kind: Attach = Attach.NETNS) -> LocalPort:
    where = "tap0" if kind is Attach.DEVICE else name
    addresses = ip_address(v4), ip_address(v6)
    return LocalPort(name, vni, addresses, "02:00:00:00:00:01", 300, (), "acme", name, kind, where, "eth0")


class World:
    """ops (a client) in zone 10, blue5 in zone 12."""

    def __init__(self, client: Attach = Attach.NETNS) -> None:
        self.inputs, self.host = Inputs(Graph()), Host()
        for row in (segment(1000, 0, OPS), segment(1001, 1, WEB), segment(1002, 2, WEB)):
            self.inputs.segments.put(row.vni, row)
        ports = port("ops", 1000, "10.30.0.10", "fd30::10", client), port("blue5", 1001, "10.11.0.5", "fd11::5")
        for zone, local in zip((10, 12), ports, strict=True):
            self.inputs.localports.put(local.uid, local)
            self.inputs.issued.put(local.uid, zone)
        self.epochs = Epochs(self.inputs)
        self.cutter = Cutter(self.inputs, self.epochs, Closing(self.inputs, self.host, self.host))  # type: ignore[arg-type]

    def close(self, *colors: int) -> None:
        shares = ColorWeight(1, 0 if 1 in colors else 50), ColorWeight(2, 50)
        self.inputs.weights.put(UID, Weights(UID, DOMAIN, WEB, shares, 1, Affinity.CONNECTION, colors, 0))
        for call in self.epochs.on_applied:
            call()  # type: ignore[operator]


@asynccontextmanager
async def cutting(world: World) -> AsyncIterator[None]:
    task = asyncio.create_task(world.cutter.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_connections_of_senders_without_color_are_closed_at_both_ends_and_forgotten() -> None:
    world = World()
    async with cutting(world):
        world.close(1)
        await world.cutter.settled()
    client, server = ip_address("10.30.0.10"), ip_address("10.11.0.5")
    assert world.host.closed == {
        "/run/netns/acme.ops": {(client, 1, server, 80)},
        "/run/netns/acme.blue5": {(server, 80, client, 1)},
    }
    assert [(row.protocol, row.zone) for row in world.host.forgotten] == [("tcp", 10), ("tcp", 12), ("udp", 10)]
    assert not world.cutter.pending()


async def test_a_virtual_machine_is_only_forgotten() -> None:
    world = World(Attach.DEVICE)
    async with cutting(world):
        world.close(1)
        await world.cutter.settled()
    assert set(world.host.closed) == {"/run/netns/acme.blue5"}
    assert len(world.host.forgotten) == 3


async def test_it_is_done_once_and_again_when_the_color_was_open_meanwhile() -> None:
    world = World()
    async with cutting(world):
        world.close(1)
        await world.cutter.settled()
        looks = world.host.looks
        world.close(1)
        world.close()
        await world.cutter.settled()
        assert world.host.looks == looks
        world.host.rows = parse(DUMP)
        await asyncio.sleep(0)
        world.close(1)
        assert world.cutter.pending()
        await world.cutter.settled()
        assert world.host.looks == looks + 2


async def test_a_failure_is_reported_and_tried_again() -> None:
    world = World()
    world.host.down = True
    async with cutting(world):
        world.close(1)
        await world.cutter.settled()
        assert world.cutter.failures[f"weights/{UID}"].reason == "NotClosed"
        world.host.down, healed = False, asyncio.Event()
        world.cutter.on_done = healed.set
        async with asyncio.timeout(10):
            await healed.wait()
        assert not world.cutter.failures
        assert not world.cutter.pending() and len(world.host.forgotten) == 3


async def test_a_failure_is_forgotten_with_what_was_to_be_closed() -> None:
    world = World()
    world.host.down = True
    async with cutting(world):
        world.close(1)
        await world.cutter.settled()
        healed = asyncio.Event()
        world.cutter.on_done = healed.set
        world.close()
        async with asyncio.timeout(10):
            await healed.wait()
        assert not world.cutter.failures


async def test_a_failure_is_forgotten_with_its_network() -> None:
    """… and the Ack that it stands in is said anew."""
    world = World()
    world.host.down = True
    async with cutting(world):
        world.close(1)
        await world.cutter.settled()
        assert world.cutter.failures
        healed = asyncio.Event()
        world.cutter.on_done = healed.set
        world.inputs.weights.put(UID, None)
        async with asyncio.timeout(10):
            await healed.wait()
        assert not world.cutter.failures


def test_connections_as_conntrack_tells_them() -> None:
    rows = parse(DUMP)
    assert len(rows) == 8
    client, server = ip_address("10.30.0.10"), ip_address("10.11.0.5")
    assert rows[0] == Connection("tcp", client, server, (1, 80), 10, 257, "ESTABLISHED")
    assert rows[3] == Connection("udp", ip_address("fd30::10"), ip_address("fd11::5"), (3, 53), 10, 1, "", 7)
    assert rows[4] == Connection("icmp", client, server, (9, 8 << 8), 10, 1, "")
