"""What hosts are told of hosts, segments and ports. Pure.

A body holds what its receiver can't derive itself. It is encoded where the row is computed: equal bytes stop
propagation, and the bytes are what is sent, hashed and compared everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

from controller.messages import mac_bytes, prefix_message
from controller.resources import Resource
from controller.rows import Address, Attach, PortSpec, Prefix
from controller.scopes import Scopes
from controller.world import World
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.colors import FEATURE
from tealnet.core.rows.stream import endpoint_key, hostpeer_key, localport_key, segment_key
from tealnet.core.tables import Derived, Graph, Read

_KIND = {
    Attach.NETNS: pb.LocalAttachment.KIND_NETNS,
    Attach.NETNS_PATH: pb.LocalAttachment.KIND_NETNS_PATH,
    Attach.DEVICE: pb.LocalAttachment.KIND_DEVICE,
}


class EndpointBody(NamedTuple):
    """An endpoint without its scope: a domain that changes encodes nothing anew."""

    vni: int
    body: bytes


class LocalPortBody(NamedTuple):
    """A local port without the host that has it."""

    body: bytes
    requires: tuple[str, ...]


class L2:
    """The derived tables of the room."""

    def __init__(self, graph: Graph, world: World, scopes: Scopes, *, default_mtu: int) -> None:
        self.world, self.scopes, self.default_mtu = world, scopes, default_mtu
        self.hostpeers: Derived[str, Resource] = graph.derive(world.hosts_by_uid, self._hostpeer)
        self.segments: Derived[int, Resource] = graph.derive(world.networks_by_vni, self._segment)
        self.endpoint_bodies: Derived[str, EndpointBody] = graph.derive(world.ports_by_uid, self._endpoint_body)
        self.endpoints: Derived[str, Resource] = graph.derive(self.endpoint_bodies, self._endpoint)
        self.localport_bodies: Derived[str, LocalPortBody] = graph.derive(world.ports_by_uid, self._localport_body)
        self.localports: Derived[tuple[str, str], Resource] = graph.derive(scopes.holdings_by_binding, self._localport)

    def _hostpeer(self, read: Read, uid: str) -> Resource | None:
        """In no scope of its own: `Resources` puts it into that of every host which shares a domain."""
        for host in read.all(self.world.hosts_by_uid, uid):
            if host.spec.fenced or host.spec.vtep is None:
                return None
            message = pb.HostPeer(vtep=host.spec.vtep.packed, number=host.spec.number)
            return Resource("", hostpeer_key(uid), message.SerializeToString())
        return None

    def _segment(self, read: Read, vni: int) -> Resource | None:
        domain = read.get(self.scopes.domain_of_vni, vni)
        if domain is None:
            return None
        for network in read.all(self.world.networks_by_vni, vni):
            spec, segment = network.spec, next(s for s in network.spec.segments if s.vni == vni)
            message = pb.Segment(
                domain=domain,
                color=segment.color_number,
                base=segment.was_base,
                network_number=spec.number,
                mtu=spec.mtu or self.default_mtu,
                subnets=[
                    pb.Subnet(prefix=prefix_message(cidr), gateway=gateway.packed)
                    for cidr, gateway in zip(spec.cidrs, spec.gateways, strict=True)
                ],
            )
            requires = (FEATURE,) if message.color else ()
            return Resource(f"domain/{domain}", segment_key(vni), message.SerializeToString(), requires)
        return None

    def _endpoint_body(self, read: Read, uid: str) -> EndpointBody | None:
        for name in read.keys(self.world.ports_by_uid, uid):
            port, holding = read.get(self.world.ports, name), read.get(self.scopes.holdings, name)
            if port is None or holding is None or not holding.serving:
                return None
            message = pb.Endpoint(
                vni=holding.vni,
                addresses=[a.packed for a in port.spec.addresses],
                mac=mac_bytes(port.spec.mac),
                host_uid=bytes.fromhex(holding.serving),
                previous_host_uid=bytes.fromhex(holding.other),
                identity=port.spec.identity,
                sources=self._sources(read, port.spec),
            )
            return EndpointBody(holding.vni, message.SerializeToString())
        return None

    def _endpoint(self, read: Read, uid: str) -> Resource | None:
        row = read.get(self.endpoint_bodies, uid)
        domain = read.get(self.scopes.domain_of_vni, row.vni) if row else None
        return Resource(f"domain/{domain}", endpoint_key(uid), row.body) if row and domain is not None else None

    def _localport_body(self, read: Read, uid: str) -> LocalPortBody | None:
        for name in read.keys(self.world.ports_by_uid, uid):
            port = read.get(self.world.ports, name)
            vni = read.get(self.scopes.vni_of_segment, port.spec.segment_uid) if port else None
            if port is None or vni is None:
                return None
            _, tenant, _, own = name.split("/")
            spec = port.spec
            interface = "" if spec.kind is Attach.DEVICE else spec.interface
            where = "" if spec.kind is Attach.NETNS and spec.where == own else spec.where
            message = pb.LocalPort(
                vni=vni,
                addresses=[a.packed for a in spec.addresses],
                mac=mac_bytes(spec.mac),
                identity=spec.identity,
                sources=self._sources(read, spec),
                tenant=tenant,
                name=own,
                attachment=pb.LocalAttachment(kind=_KIND[spec.kind], where=where, interface=interface),
            )
            if not read.get(self.scopes.guarded, spec.network):
                return LocalPortBody(message.SerializeToString(), ())
            message.policy = pb.PORT_POLICY_ENFORCE
            return LocalPortBody(message.SerializeToString(), ("security",))  # an agent that knows no rules: closed
        return None

    def _localport(self, read: Read, binding: tuple[str, str]) -> Resource | None:
        host_uid, uid = binding
        row = read.get(self.localport_bodies, uid)
        if row is None or not read.keys(self.scopes.holdings_by_binding, binding):
            return None
        return Resource(f"host/{host_uid}", localport_key(uid), row.body, row.requires)

    def _sources(self, read: Read, spec: PortSpec) -> list[pb.Prefix]:
        """Allowed addresses, and the prefixes of static routes by way of this port (B13); sorted, without doubles."""
        found: set[Prefix] = set(spec.allowed)
        for address in spec.addresses:
            for hops in read.all(self.scopes.hops_by_address, (spec.network, address)):
                found.update(route.prefix for route in hops.routes if route.next_hop == address)
        return [prefix_message(p) for p in sorted(found, key=_order)]


def _order(prefix: Prefix) -> tuple[int, Address, int]:
    return prefix.version, prefix.network_address, prefix.prefixlen
