"""Three real agents on lab hosts, and a controller's end that says which colors there are: blue and green web servers
with one address, and clients without a color.

    h1: ops1           h2: ops2, blue (10.11.0.5)          h3: ops3, green (10.11.0.5)
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import TypeVar

import yaml

from agent.connections import parse
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.pki import Ca
from tealnet.lab import host as lab_host
from tealnet.lab.errors import LabError
from tealnet.lab.host import Host, Parts
from tealnet.lab.lab import Lab
from tealnet.lab.traffic import Workload
from tests.fakes.agent_server import SERVER_NAME, FakeServer, Guest, save_host
from tests.fakes.controller import uid

T = TypeVar("T")

DOMAIN = 700
OPS, WEB = 30, 11  # network numbers, and the second byte of their addresses
BLUE, GREEN = 1, 2
VNI = {0: 1000, BLUE: 1001, GREEN: 1002}
WEB_KEY = f"weights/{uid(WEB)}"
TWIN = ("10.11.0.5", "fd11::5")
PORT = "8000"
SOON = 20.0  # seconds: TCP asks again after up to some seconds
PLACES = {
    "ops1": ("h1", 0, 11),
    "ops2": ("h2", 0, 12),
    "ops3": ("h3", 0, 13),
    "blue": ("h2", BLUE, 5),
    "green": ("h3", GREEN, 5),
}


def key_of(name: str) -> str:
    """A port's number as a uid."""
    return uid(list(PLACES).index(name) + 11)


class ColorRig:
    """The lab and what its hosts are told. Colors a network has: `colors` (number by name), () = none."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab, self.directory = lab, directory
        self.ca = Ca.create("tealnet.example")
        self.target = f"unix:{directory}/one.sock"
        self.guests = {h.name: Guest(uid(1000 + h.number), h.number, h.vtep) for h in lab.hosts}
        self.revision, self.epoch = 1000, 1
        self.server: FakeServer
        for guest in self.guests.values():
            guest.proofs = {f"localport/{key_of('green')}"}  # it goes with its color
        for host in lab.hosts:
            save_host(self.ca, host.name, host.disk("/etc/tealnet"))
            host.configure_agent(servers=[])
            path = host.disk("/etc/tealnet") / "agent.yaml"
            settings = yaml.safe_load(path.read_text()) | {"servers": [self.target], "server_name": SERVER_NAME}
            path.write_text(yaml.safe_dump(settings))
            host.start(lab_host.AGENT)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ColorRig]:
        """With a controller, and all on blue."""
        self.want({BLUE: 100, GREEN: 0})
        async with FakeServer(self.ca, self.target) as server:
            self.server = server
            server.guests, server.revision = self.guests, self.revision
            for guest in self.guests.values():
                guest.ack = None
            failures = await self.apply()
            assert not any(failures.values()), failures
            yield self
            self.revision = server.revision

    # -- what is wanted

    def want(
        self,
        weights: Mapping[int, int],
        *,
        closed: Sequence[int] = (),
        colors: Sequence[int] = (BLUE, GREEN),
        apply_at: int = 0,
        hosts: Sequence[str] = ("h1", "h2", "h3"),
    ) -> None:
        """What these hosts are to be told: the colors that web has, with weights; without colors blue is its base."""
        self.epoch += 1
        domain = dict([_segment(OPS, 0)])
        domain |= dict(_segment(WEB, color) for color in colors or (0,))
        if colors:
            split = pb.Weights(domain=DOMAIN, network_number=WEB, epoch=self.epoch, closed=closed, apply_at=apply_at)
            split.colors.extend(pb.ColorWeight(color=color, weight=weights.get(color, 0)) for color in colors)
            domain[WEB_KEY] = split.SerializeToString()
        ports = {name: place for name, place in PLACES.items() if place[1] in (0, BLUE, *colors)}
        domain |= {f"endpoint/{key_of(name)}": self._endpoint(*place) for name, place in ports.items()}
        peers = {f"hostpeer/{guest.uid}": _peer(guest) for guest in self.guests.values()}
        for host in hosts:
            local = {
                f"localport/{key_of(name)}": _local(name, *place) for name, place in ports.items() if place[0] == host
            }
            self.guests[host].world = {"host": local | peers, f"domain/{DOMAIN}": domain}

    async def apply(self, *hosts: str) -> dict[str, Mapping[str, str]]:
        """Tell (these) hosts; returns failures when they have said that it is done."""
        return await self.server.applied(self.server.publish(*hosts), *hosts)

    async def split(self, blue: int, green: int, *, closed: Sequence[int] = ()) -> None:
        """New weights, in force on all hosts when this returns."""
        self.want({BLUE: blue, GREEN: green}, closed=closed)
        failures = await self.apply()
        assert not any(failures.values()), failures

    async def observed(
        self,
        host: str,
        network: Callable[[pb.NetworkObserved], bool],
        probe: Callable[[pb.ProbeObserved], bool] = lambda probe: True,
    ) -> pb.Observed:
        """Wait for a report of this host that says so of web, and of each probe."""
        guest = self.guests[host]

        def says() -> bool:
            seen = guest.observed
            return seen is not None and all(map(network, seen.networks)) and all(map(probe, seen.probes))

        await self.server.until(says, f"a report of {host}, not {guest.observed}")
        assert guest.observed is not None and len(guest.observed.networks) == 1
        return guest.observed

    def _endpoint(self, host: str, color: int, last: int) -> bytes:
        body = pb.Endpoint(
            vni=_vni(color), mac=_mac(color, last), host_uid=bytes.fromhex(self.guests[host].uid), identity=300
        )
        body.addresses.extend(address.packed for address in _addresses(color, last))
        return body.SerializeToString()

    # -- looking

    def host(self, name: str) -> Host:
        """A lab host."""
        return self.lab.host(name)

    def pinned(self, name: str) -> Counter[int]:
        """How many TCP connections of each color conntrack knows in a port's zone."""
        host = self.host(PLACES[name][0])
        device = f"external_ids:tealnet={key_of(name)}"
        zone = host.output(["ovs-vsctl", "--bare", "--columns=ofport", "find", "Interface", device]).strip()
        dump = host.output(["ovs-appctl", "dpctl/dump-conntrack", f"zone={zone}"])
        return Counter(row.mark & 0xFF for row in parse(dump) if row.protocol == "tcp" and row.state == "ESTABLISHED")

    async def pins(self, name: str, wanted: Mapping[int, int]) -> None:
        """Wait until it knows so many of each color, and no other ones."""
        async with asyncio.timeout(SOON):
            while await asyncio.to_thread(self._pinned_or_none, name) != wanted:
                pass

    def _pinned_or_none(self, name: str) -> Counter[int] | None:
        try:
            return self.pinned(name)
        except LabError:
            return None  # vswitchd is on its way up

    def workload(self, name: str) -> Workload:
        """A port as traffic needs it."""
        host, color, last = PLACES[name]
        addresses = tuple(str(address) for address in _addresses(color, last))
        return Workload(self.host(host), f"acme.{name}", name, _mac(color, last).hex(":"), addresses)

    @contextmanager
    def serving(self, *names: str) -> Iterator[None]:
        """These workloads answer with their own names."""
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(self.workload(name).running("answer", PORT, name))
            yield


@asynccontextmanager
async def beside(context: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave what blocks in a thread: agents leave a controller that is silent for 1.5 s."""
    value = await asyncio.to_thread(context.__enter__)
    try:
        yield value
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


@contextmanager
def color_rig(name: str) -> Iterator[ColorRig]:
    """A lab of three hosts, gone at the end."""
    Lab.remove(name)
    directory = Path(tempfile.mkdtemp(prefix="tealnet-colors-"))
    try:
        with Lab.up(name, hosts=3, parts=Parts.SWITCH) as lab:
            yield ColorRig(lab, directory)
    finally:
        shutil.rmtree(directory)


def _vni(color: int) -> int:
    return VNI[color]


def _addresses(color: int, last: int) -> list[IPv4Address | IPv6Address]:
    net = WEB if color else OPS
    return [ip_address(f"10.{net}.0.{last}"), ip_address(f"fd{net}::{last}")]


def _mac(color: int, last: int) -> bytes:
    return bytes((2, 0, 0, 0, WEB if color else OPS, last))


def _peer(guest: Guest) -> bytes:
    return pb.HostPeer(vtep=ip_address(guest.vtep).packed, number=guest.number).SerializeToString()


def _segment(number: int, color: int) -> tuple[str, bytes]:
    """`base` is blue: its VNI is that of the network without colors, too."""
    vni = VNI[color or BLUE] if number == WEB else VNI[0]
    body = pb.Segment(
        domain=DOMAIN, color=color, network_number=number, mtu=1430, base=number == WEB and color != GREEN
    )
    for prefix in (ip_network(f"10.{number}.0.0/24"), ip_network(f"fd{number}::/64")):
        address = pb.Prefix(address=prefix.network_address.packed, length=prefix.prefixlen)
        body.subnets.add(prefix=address, gateway=prefix[1].packed)
    return f"segment/{vni}", body.SerializeToString()


def _local(name: str, host: str, color: int, last: int) -> bytes:
    kind = pb.LocalAttachment(kind=pb.LocalAttachment.KIND_NETNS, where=name, interface="eth0")
    body = pb.LocalPort(vni=_vni(color), mac=_mac(color, last), identity=300, tenant="acme", name=name, attachment=kind)
    body.addresses.extend(address.packed for address in _addresses(color, last))
    return body.SerializeToString()
