"""Who must know what: the tables between intents and resources that all rooms share.

    network ── its router's domain, or its own ──► domain
    port ── its segment's VNI ──► domain        port ── its host, and the one it is leaving ──► hosts
    host ── VNIs of its ports ──► domains ── their hosts ──► peers

Steps are small on purpose: an attached router changes the domain of one VNI and touches no port.
"""

from __future__ import annotations

from typing import NamedTuple

from controller.rows import Intent, PortSpec, StaticRoute, TombstoneRow
from controller.world import World
from tealnet.core.tables import Derived, Graph, Index, Read


class HostPlace(NamedTuple):
    """What placement needs of a host, so that its labels touch nothing else."""

    uid: str
    fenced: bool


class Holding(NamedTuple):
    """Where a port is. `serving` is where packets for it go ("": nowhere), `other` the second host of a move."""

    uid: str
    vni: int
    hosts: tuple[str, ...]  # uids of those that have it as a LocalPort
    serving: str
    other: str


class Presence(NamedTuple):
    """A host has a port of a VNI."""

    vni: int
    host_uid: str


class Hops(NamedTuple):
    """The static routes that lead through addresses of a network."""

    network: str
    routes: tuple[StaticRoute, ...]


class Scopes:
    """The derived tables and their indexes. Declare before rows are put."""

    def __init__(self, graph: Graph, world: World) -> None:
        self.world = world
        self.host_places: Derived[str, HostPlace] = graph.derive(world.hosts, self._host_place)
        self.domain_of_network: Derived[str, int] = graph.derive(world.networks, self._domain_of_network)
        self.vni_of_segment: Derived[str, int] = graph.derive(world.networks_by_segment, self._vni_of_segment)
        self.domain_of_vni: Derived[int, int] = graph.derive(world.networks_by_vni, self._domain_of_vni)
        self.vnis_by_domain: Index[int] = self.domain_of_vni.index(lambda domain: (domain,))
        self.guarded: Derived[str, bool] = graph.derive(world.networks, self._guarded)
        self.hops: Derived[str, Hops] = graph.derive(world.networks, self._hops)
        self.hops_by_address: Index[Hops] = self.hops.index(lambda h: {(h.network, r.next_hop) for r in h.routes})

        self.holdings: Derived[str, Holding] = graph.derive(world.ports, self._holding)
        self.holdings_by_place: Index[Holding] = self.holdings.index(lambda h: [(h.vni, host) for host in h.hosts])
        self.holdings_by_binding: Index[Holding] = self.holdings.index(lambda h: [(host, h.uid) for host in h.hosts])
        self.presence: Derived[tuple[int, str], Presence] = graph.derive(self.holdings_by_place, self._presence)
        self.presence_by_vni: Index[Presence] = self.presence.index(lambda p: (p.vni,))
        self.presence_by_host: Index[Presence] = self.presence.index(lambda p: (p.host_uid,))
        self.hosts_of_domain: Derived[int, frozenset[str]] = graph.derive(self.vnis_by_domain, self._hosts_of_domain)
        self.domains_of_host: Derived[str, frozenset[int]] = graph.derive(self.presence_by_host, self._domains_of_host)
        self.peers_of_host: Derived[str, frozenset[str]] = graph.derive(self.domains_of_host, self._peers_of_host)

    # ---- domains

    def _domain_of_network(self, read: Read, name: str) -> int | None:
        network = read.get(self.world.networks, name)
        if network is None:
            return None
        if not network.spec.router:
            return network.spec.own_domain
        router = read.get(self.world.routers, network.spec.router)
        return router.spec.domain if router else None

    def _vni_of_segment(self, read: Read, uid: str) -> int | None:
        for network in read.all(self.world.networks_by_segment, uid):
            return next(s.vni for s in network.spec.segments if s.uid == uid)
        return None

    def _domain_of_vni(self, read: Read, vni: int) -> int | None:
        for name in read.keys(self.world.networks_by_vni, vni):
            return read.get(self.domain_of_network, name)
        return None

    def _guarded(self, read: Read, name: str) -> bool | None:
        """Whether rules guard the ports of a network; a row of its own, so that nothing else of networks matters."""
        network = read.get(self.world.networks, name)
        return True if network and network.spec.guarded else None

    def _hops(self, read: Read, name: str) -> Hops | None:
        network = read.get(self.world.networks, name)
        router = read.get(self.world.routers, network.spec.router) if network and network.spec.router else None
        if network is None or router is None:
            return None
        through = tuple(r for r in router.spec.routes if any(r.next_hop in cidr for cidr in network.spec.cidrs))
        return Hops(name, through) if through else None

    # ---- hosts

    def _host_place(self, read: Read, name: str) -> HostPlace | None:
        host = read.get(self.world.hosts, name)
        return HostPlace(host.uid, host.spec.fenced) if host else None

    def _holding(self, read: Read, name: str) -> Holding | None:
        """One port's hosts. A host that is fenced holds nothing: its endpoints are withdrawn.

        A move (A20): the host that is left keeps its LocalPort until its tombstone is due. It serves until the new
        host's status says applied; from then on the new one does. Both may send until the tombstone is due.
        """
        port = read.get(self.world.ports, name)
        vni = read.get(self.vni_of_segment, port.spec.segment_uid) if port else None
        if port is None or vni is None or not port.spec.host:
            return None
        place = read.get(self.host_places, port.spec.host)
        here = place.uid if place and not place.fenced else ""
        left = self._hosts_left(read, port, here)
        if not left:
            return Holding(port.uid, vni, (here,) if here else (), here, "")
        status = read.get(self.world.port_status, port.uid)
        at = status.host_uid if status and status.applied else ""
        hosts = tuple(sorted({here, *left} - {""}))
        if at == here and here:
            return Holding(port.uid, vni, hosts, here, left[-1])
        # Without a word from either the first one left is the one that most probably has it.
        return Holding(port.uid, vni, hosts, at if at in left else left[0], here)

    def _hosts_left(self, read: Read, port: Intent[PortSpec], here: str) -> list[str]:
        """Hosts that the port is moving away from, oldest first."""
        tombstones: list[TombstoneRow] = [
            t
            for t in read.all(self.world.tombstones_by_port, port.uid)
            if t.moved_to and not t.due and not t.address and t.host_uid != here
        ]
        return [t.host_uid for t in sorted(tombstones, key=lambda t: t.revision) if self._is_usable(read, t.host_uid)]

    def _is_usable(self, read: Read, host_uid: str) -> bool:
        places = (read.get(self.host_places, name) for name in read.keys(self.world.hosts_by_uid, host_uid))
        return any(place and not place.fenced for place in places)

    def _presence(self, read: Read, place: tuple[int, str]) -> Presence | None:
        return Presence(*place) if read.any(self.holdings_by_place, place) else None

    def _hosts_of_domain(self, read: Read, domain: int) -> frozenset[str] | None:
        vnis = read.keys(self.vnis_by_domain, domain)
        return frozenset(p.host_uid for vni in vnis for p in read.all(self.presence_by_vni, vni)) or None

    def _domains_of_host(self, read: Read, uid: str) -> frozenset[int] | None:
        found = (read.get(self.domain_of_vni, p.vni) for p in read.all(self.presence_by_host, uid))
        return frozenset(domain for domain in found if domain is not None) or None

    def _peers_of_host(self, read: Read, uid: str) -> frozenset[str] | None:
        domains = read.get(self.domains_of_host, uid) or ()
        hosts: set[str] = set()
        for domain in domains:
            if found := read.get(self.hosts_of_domain, domain):
                hosts |= found
        return frozenset(hosts - {uid}) or None
