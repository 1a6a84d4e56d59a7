"""One host's pipeline on a sandbox: rows in, flows by our own encoder and driver, packets by ofproto/trace."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from ipaddress import ip_address

from agent import names
from agent.devices import flow_place
from agent.features import FEATURES
from agent.inputs import THIS, Inputs, This
from tealnet.core.rows.stream import Attach, Endpoint, HostPeer, LocalPort, Segment
from tealnet.core.tables import Graph
from tests.ovs.sandbox import Sandbox, as_agent


class PipelineHost:
    """Host 1, with a tunnel at ofport 1 and these other hosts: uid → number, VTEP 192.0.2.<number>."""

    def __init__(self, ovs: Sandbox, *, uid: str, others: dict[str, int]) -> None:
        self.ovs = ovs
        self.graph = Graph()
        self.inputs = Inputs(self.graph)
        self.wants = [wants for feature in FEATURES for wants in feature.declare(self.graph, self.inputs)]
        this = This(uid, 1, ip_address("192.0.2.1"), "netdev", "br-int", "vxlan0", 1, 4789)
        self.inputs.this.put(THIS, this)
        for other, number in others.items():
            self.inputs.hostpeers.put(other, HostPeer(other, ip_address(f"192.0.2.{number}"), number))

    def put(self, *, segments: Iterable[Segment] = (), endpoints: Iterable[Endpoint] = ()) -> None:
        """Rows as from the stream."""
        for segment in segments:
            self.inputs.segments.put(segment.vni, segment)
        for row in endpoints:
            self.inputs.endpoints.put(row.uid, row)

    def plug(self, row: Endpoint, *, tenant: str, name: str, ofport: int) -> None:
        """The endpoint's port is here, in place and guarded."""
        port = LocalPort(
            row.uid, row.vni, row.addresses, row.mac, row.identity, (), tenant, name, Attach.NETNS, name, "eth0"
        )
        self.inputs.localports.put(row.uid, port)
        self.inputs.issued.put(row.uid, ofport)
        self.inputs.ofports.put(names.device(port), ofport)
        self.inputs.guarded.put(names.device(port), True)

    def flows(self) -> dict[object, object]:
        """What is wanted on the switch; no two want different things in one place."""
        self.graph.settle()
        assert self.graph.errors() == []
        wanted = {
            key: flow
            for wants in self.wants
            if wants.layer == "flow"
            for row in wants.table.rows.values()
            for key, flow in row
        }
        assert len({flow_place(key, flow) for key, flow in wanted.items()}) == len(wanted)
        return wanted

    def load(self) -> None:
        """Make the switch equal to what is wanted."""

        async def apply() -> None:
            async with as_agent(self.ovs) as driver:
                wanted, there = self.flows(), await driver.read()
                gone = [key for key in there if key not in wanted]
                changed = {key: value for key, value in wanted.items() if there.get(key) != value}  # type: ignore[call-overload]
                assert await driver.apply(changed, gone) == {}  # type: ignore[arg-type]
                assert await driver.read() == wanted
                await driver.revalidated()

        asyncio.run(apply())

    def final(self, packet: str) -> str:
        """The datapath actions of a packet."""
        return last_words(self.ovs.trace("br-int", packet))


def last_words(trace: str) -> str:
    """The datapath actions that a trace ends with."""
    return trace.rpartition("Datapath actions:")[2].strip().splitlines()[0]
