"""A host's pipeline with real packets: frames into dummy ports, frames out of them, real conntrack in between."""

from __future__ import annotations

from pathlib import Path

from agent.connections import Connection, parse
from agent.pipeline import ROUTER_MAC
from tealnet.core.rows.stream import Endpoint
from tests.ovs import packets
from tests.ovs.host import PipelineHost
from tests.ovs.packets import Packet
from tests.ovs.sandbox import Sandbox, wait_until

UNDERLAY_MAC, PEER_MAC = "02:00:00:00:01:01", "02:00:00:00:01:02"
UNDERLAY = "phy"  # the port of the other hosts


class Wire(PipelineHost):
    """`send` a packet from a port or from another host; `got` is where packets have come out since, by port name."""

    def __init__(self, ovs: Sandbox, *, uid: str, others: dict[str, int]) -> None:
        super().__init__(ovs, uid=uid, others=others)
        self._seen: dict[str, int] = {}
        self._rows: dict[str, Endpoint] = {}
        ovs.add_bridge("br-int")
        ovs.add_bridge("br-phy")
        ovs.add_tunnel("br-int", "vxlan0", 1)
        self._add_port("br-phy", UNDERLAY, 1)
        ovs.vsctl("set", "Bridge", "br-phy", f'other-config:hwaddr="{UNDERLAY_MAC}"')
        ovs.appctl("netdev-dummy/ip4addr", "br-phy", "192.0.2.1/24")
        ovs.appctl("ovs/route/add", "192.0.2.0/24", "br-phy")
        for number in others.values():
            ovs.appctl("tnl/neigh/set", "br-phy", f"192.0.2.{number}", PEER_MAC)
        ovs.ofctl("add-flow", "br-phy", "actions=normal")

    def _add_port(self, bridge: str, name: str, ofport: int) -> None:
        self.ovs.add_port(bridge, name, ofport)
        self.ovs.vsctl("set", "Interface", name, f"options:tx_pcap={self._file(name)}")
        wait_until(lambda: self._file(name).exists(), "a capture file")

    def _file(self, name: str) -> Path:
        return Path(self.ovs.run_dir, f"{name}.pcap")

    def plug_wire(self, row: Endpoint, *, name: str, ofport: int) -> None:
        """A local port and its dummy device."""
        self._add_port("br-int", name, ofport)
        self.plug(row, tenant="acme", name=name, ofport=ofport)
        self._rows[name] = row

    def send(self, port: str, packet: bytes, *, routed: bool = True) -> dict[str, list[Packet]]:
        """From a local port, by way of the router; returns what came out where, when all is done."""
        row = self._rows[port]
        target = ROUTER_MAC if routed else self._owner(packet)
        self._inject(port, packets.frame(row.mac, target, packet))
        return self._done(port, row)

    def send_all(self, port: str, sent: list[bytes]) -> dict[str, list[Packet]]:
        """Several from a local port, one after the other."""
        row = self._rows[port]
        for packet in sent:
            self._inject(port, packets.frame(row.mac, ROUTER_MAC, packet))
        return self._done(port, row)

    def arrive(self, number: int, vni: int, source: Endpoint, packet: bytes) -> dict[str, list[Packet]]:
        """From another host."""
        inner = packets.frame(source.mac, ROUTER_MAC, packet)
        outer = packets.tunnelled((f"192.0.2.{number}", "192.0.2.1"), (PEER_MAC, UNDERLAY_MAC), vni, inner)
        self._inject(UNDERLAY, outer)
        port, row = next(iter(self._rows.items()))
        # Both devices are served by one thread in turn; the second round begins when the first one is over.
        self._done(port, row, keep=True)
        return self._done(port, row)

    def _owner(self, packet: bytes) -> str:
        frame = packets.read(packets.frame(PEER_MAC, PEER_MAC, packet))
        assert frame is not None
        return next(row.mac for row in self.inputs.endpoints.rows.values() if frame.target in row.addresses)

    def _inject(self, port: str, data: bytes) -> None:
        self.ovs.inject(port, data.hex())

    def _done(self, port: str, row: Endpoint, *, keep: bool = False) -> dict[str, list[Packet]]:
        """Ask for the gateway and wait for the answer: what came before has been dealt with."""
        before = len(self._frames(port))
        gateway = next(s.gateway for s in self.inputs.segments.rows[row.vni].subnets if s.prefix.version == 4)
        self._inject(port, packets.who_has(row.mac, row.addresses[0], gateway))

        def answered() -> bool:
            return any(data[12:14] == b"\x08\x06" for data in self._frames(port)[before:])

        wait_until(answered, "an answer to ARP")
        return {} if keep else self._news()

    def _frames(self, name: str) -> list[bytes]:
        return packets.pcap(self._file(name).read_bytes())

    def _news(self) -> dict[str, list[Packet]]:
        out: dict[str, list[Packet]] = {}
        for name in (*self._rows, UNDERLAY):
            frames = self._frames(name)
            found = [packet for data in frames[self._seen.get(name, 0) :] if (packet := packets.read(data)) is not None]
            self._seen[name] = len(frames)
            if found:
                out[name] = found
        return out

    def marks(self, zone: int) -> list[int]:
        """The colors that connections of a zone remember, sorted."""
        return sorted(row.mark & 0xFF for row in self.connections(zone))

    def connections(self, zone: int) -> list[Connection]:
        """What a zone knows."""
        return parse(self.ovs.appctl("dpctl/dump-conntrack", f"zone={zone}"))

    def forget(self) -> None:
        """As when vswitchd has been started: conntrack is empty."""
        self.ovs.appctl("dpctl/flush-conntrack")
