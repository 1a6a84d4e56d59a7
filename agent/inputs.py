"""What this agent knows: resources from the controller, and facts from its own host.

Tables only; who fills them: `agent.stream` the resources, `agent.facts` the facts. Features declare what they derive
from them. Keys of resources are those of the stream without the kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from agent import names
from tealnet.core.rows.colors import Weights
from tealnet.core.rows.security import Rules
from tealnet.core.rows.stream import Endpoint, HostPeer, LocalPort, Route, Row, Segment
from tealnet.core.tables import Graph, Index, Table

_DIGITS = 10  # of 2^32 - 1, the largest number there is
THIS = "this"  # the only key of the table `this`


@dataclass(frozen=True, slots=True)
class This:
    """This host. Absent until the Host object is known (first contact, or the checkpoint)."""

    host_uid: str
    host_number: int
    vtep: IPv4Address | IPv6Address
    datapath: str  # "netdev" or "system"
    bridge: str  # the integration bridge
    tunnel: str  # name of the tunnel port
    tunnel_ofport: int
    tunnel_port: int  # UDP
    zone_limit: int = 20_000  # connections that a port's conntrack zone may hold


class Inputs:
    """All input tables and their indexes, in one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        # Resources.
        self.segments: Table[int, Segment] = graph.table()  # by VNI
        self.endpoints: Table[str, Endpoint] = graph.table()  # by port uid
        self.hostpeers: Table[str, HostPeer] = graph.table()  # by host uid
        self.localports: Table[str, LocalPort] = graph.table()  # by port uid
        self.routes: Table[str, Route] = graph.table()  # by "<domain>/<prefix>"
        self.weights: Table[str, Weights] = graph.table()  # by network uid
        self.rules: Table[int, Rules] = graph.table()  # by identity
        # Facts.
        self.ofports: Table[str, int] = graph.table()  # by device: what OVS reports
        self.issued: Table[str, int] = graph.table()  # by port uid: ofport and ct zone that this agent issued
        self.guarded: Table[str, bool] = graph.table()  # by device: the guard is confirmed in place
        self.spares: Table[str, int] = graph.table()  # by device: links of nobody, kept ready; their MTU
        self.taken: Table[str, str] = graph.table()  # by port uid: the device, of a port that has taken a spare
        self.uncached: Table[str, Weights] = graph.table()  # by network uid: weights about to end (agent/uncached.py)
        self.this: Table[str, This] = graph.table()  # one row, key THIS
        self._by_kind: dict[str, Table[str, Any]] = {
            "endpoint": self.endpoints,
            "hostpeer": self.hostpeers,
            "localport": self.localports,
            "route": self.routes,
            "weights": self.weights,
        }
        self._by_number: dict[str, Table[int, Any]] = {"segment": self.segments, "rules": self.rules}
        # By property.
        self.segments_of_domain: Index[Segment] = self.segments.index(lambda row: (row.domain,))
        self.segments_of_network: Index[Segment] = self.segments.index(lambda row: (row.network_number,))
        self.endpoints_of_segment: Index[Endpoint] = self.endpoints.index(lambda row: (row.vni,))
        self.endpoints_of_host: Index[Endpoint] = self.endpoints.index(lambda row: (row.host_uid,))
        self.localports_of_segment: Index[LocalPort] = self.localports.index(lambda row: (row.vni,))
        self.localports_of_namespace: Index[LocalPort] = self.localports.index(
            lambda row: ((row.kind, row.tenant, row.where),)
        )
        self.weights_of_network: Index[Weights] = self.weights.index(lambda row: (row.network_number,))
        self.routes_of_domain: Index[Route] = self.routes.index(lambda row: (row.domain,))

    def device(self, port: LocalPort) -> str:
        """The host-side device of a port."""
        return self.taken.rows.get(port.uid) or names.device(port)

    def put(self, key: str, row: Row | None) -> None:
        """Set or remove the row of a resource, by its resource key. A key of no kind we know has no row."""
        kind, _, ident = key.partition("/")
        if kind in self._by_number:
            # Nothing but a number as it is written stands for a row; 05 would be that of 5.
            if len(ident) <= _DIGITS and ident.isdecimal() and str(int(ident)) == ident:
                self._by_number[kind].put(int(ident), row)
        elif (table := self._by_kind.get(kind)) is not None:
            table.put(ident, row)
