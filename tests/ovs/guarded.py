"""Guarded ports of one host on a switch without a kernel: real frames, real conntrack, our own flows.

All ports are in one network, so each packet is judged at both its ends.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path

from agent import names
from agent.desired import Pairs
from agent.drivers.openflow import FlowDriver
from agent.drivers.unixctl import unixctl
from agent.features import FEATURES
from agent.inputs import THIS, Inputs, This
from tealnet.core.rows.security import Policy, Rules
from tealnet.core.rows.stream import Attach, Endpoint, LocalPort, Segment, Subnet
from tealnet.core.tables import Graph
from tests.ovs import datagrams
from tests.ovs.datagrams import Address, Ends, Seen
from tests.ovs.sandbox import DEADLINE, Sandbox, as_agent

HOST = f"{1:032x}"
CHUNK = 50  # frames; a dummy port that has 100 waiting loses the next
VNI, DOMAIN = 1000, 0x1000
GATEWAY = ip_address("10.0.0.1")
SEGMENT = Segment(
    VNI,
    DOMAIN,
    0,
    11,
    1430,
    (Subnet(ip_network("10.0.0.0/24"), GATEWAY), Subnet(ip_network("fd00::/64"), ip_address("fd00::1"))),
)


def mac(number: int) -> str:
    return f"02:aa:00:00:00:{number:02x}"


def addresses(number: int) -> tuple[Address, Address]:
    """Of the port with this OpenFlow number."""
    return ip_address(f"10.0.0.{number}"), ip_address(f"fd00::{number:x}")


def ends(source: int, target: int, version: int = 4) -> Ends:
    """From one port to another."""
    which = 0 if version == 4 else 1
    return addresses(source)[which], addresses(target)[which]


class Guarded:
    """`plug` ports, `put` rules, `load`; then `send`."""

    def __init__(self, ovs: Sandbox) -> None:
        self.ovs = ovs
        self.graph = Graph()
        self.inputs = Inputs(self.graph)
        self.wants = [wants for feature in FEATURES for wants in feature.declare(self.graph, self.inputs)]
        this = This(HOST, 1, ip_address("192.0.2.1"), "netdev", "br-int", "vxlan0", 1, 4789)
        self.inputs.this.put(THIS, this)
        self.inputs.segments.put(VNI, SEGMENT)
        self._read: dict[int, int] = {}  # by port: frames of its capture file that have been looked at
        ovs.add_bridge("br-int")

    def plug(self, number: int, *, identity: int, policy: Policy = Policy.ENFORCE) -> None:
        """A port, in place; its OpenFlow number says its MAC and its addresses."""
        self.ovs.add_port("br-int", f"p{number}", number)
        self.ovs.vsctl("set", "Interface", f"p{number}", f"options:tx_pcap={self._file(number)}")
        self._read[number] = 0
        self.change(number, identity=identity, policy=policy)

    def change(self, number: int, *, identity: int, policy: Policy = Policy.ENFORCE) -> None:
        """Another identity or policy for a port."""
        uid, name = f"{number:032x}", f"web-{number}"
        row = LocalPort(
            uid, VNI, addresses(number), mac(number), identity, (), "acme", name, Attach.NETNS, name, "eth0", policy
        )
        self.inputs.localports.put(uid, row)
        self.inputs.endpoints.put(uid, Endpoint(uid, VNI, addresses(number), mac(number), HOST, "", identity, ()))
        self.inputs.issued.put(uid, number)
        self.inputs.ofports.put(names.device(row), number)
        self.inputs.guarded.put(names.device(row), True)

    def put(self, *rules: Rules) -> None:
        """These rules and no others."""
        self.inputs.rules.replace_all({each.identity: each for each in rules})

    def flows(self) -> dict[object, object]:
        """What is wanted on the switch."""
        self.graph.settle()
        rows: Iterable[Pairs] = (row for w in self.wants if w.layer == "flow" for row in w.table.rows.values())
        return {key: flow for row in rows for key, flow in row}

    async def load(self) -> FlowDriver:
        """Make the switch equal to what is wanted, and wait until no packet goes an old way."""
        async with as_agent(self.ovs) as driver:
            wanted, there = self.flows(), await driver.read()
            gone = [key for key in there if key not in wanted]
            new = {key: value for key, value in wanted.items() if key not in there}
            failures = await driver.apply(new, gone)  # type: ignore[arg-type]
            assert failures == {}
            assert (await driver.read()).keys() == wanted.keys()
            await driver.revalidated()
            return driver

    async def forget(self) -> None:
        """Empty conntrack."""
        await self._control("dpctl/flush-conntrack")

    async def send(self, *packets: tuple[int, bytes]) -> dict[int, list[Seen]]:
        """Packets in order, each from a port; returns what came out since the last call, by port."""
        for at in range(0, len(packets), CHUNK):
            chunk = packets[at : at + CHUNK]
            for number, packet in chunk:
                await self._inject(number, datagrams.frame(mac(number), "02:ff:00:00:00:01", packet))
            for number in {number for number, _ in chunk}:
                await self._answered(number)  # what came in there before has been looked at …
                await self._answered(number)  # … and with the next round, sent on
        return {number: found for number in self._read if (found := self._news(number))}

    async def arrived(self, number: int, packet: bytes, *, at: int) -> bool:
        """Whether a packet from one port comes out of another one, and nowhere else."""
        out = await self.send((number, packet))
        assert out.keys() <= {at}
        return at in out

    async def _answered(self, number: int) -> None:
        """Ask for the gateway and wait for the answer."""
        before = len(self._frames(number))
        await self._inject(number, datagrams.who_has(mac(number), addresses(number)[0], GATEWAY))
        async with asyncio.timeout(DEADLINE):
            while not any(data[12:14] == b"\x08\x06" for data in self._frames(number)[before:]):  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def counters(self) -> Mapping[str, tuple[int, int]]:
        """Packets and bytes by cookie (as text), as ovs-ofctl tells them, when the datapath has told them all."""
        for _ in range(2):  # the first round to end may have begun before the last packet
            await self._control("revalidator/wait")
        dump = self.ovs.ofctl("dump-flows", "br-int")
        found = re.findall(r"cookie=(0x[0-9a-f]+),.*?n_packets=(\d+), n_bytes=(\d+)", dump)
        return {cookie: (int(packets), int(size)) for cookie, packets, size in found}

    async def _inject(self, number: int, data: bytes) -> None:
        await self._control("netdev-dummy/receive", f"p{number}", data.hex())

    async def _control(self, command: str, *arguments: str) -> str:
        return await unixctl(self.ovs.vswitchd_ctl(), command, *arguments)

    def _file(self, number: int) -> Path:
        return Path(self.ovs.run_dir, f"p{number}.pcap")

    def _frames(self, number: int) -> list[bytes]:
        return datagrams.pcap(self._file(number).read_bytes())

    def _news(self, number: int) -> list[Seen]:
        frames = self._frames(number)
        new, self._read[number] = frames[self._read[number] :], len(frames)
        return [found for data in new if (found := datagrams.seen(data)) is not None]
