"""State, computed when it is read: nothing here is stored as a word (store.md C).

A port is ACTIVE only if its own host, in session now, has applied exactly the version that is wanted now.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from controller.admission import FOREIGN_HISTORY, LOST
from controller.hosts import timestamp
from controller.keys import mapped
from controller.resources import Resources
from controller.rows import Attach, HostSpec, Intent, NetworkSpec, PortSpec, PortStatusEntry, Prefix
from controller.world import World
from tealnet.core.rows.stream import localport_key
from tealnet.v1 import common_pb2, host_pb2, network_pb2, port_pb2

LOW = 0.9  # share of a CIDR's addresses that are taken, from which AddressesLow is set
_MOST = 2**63 - 1
PortState = port_pb2.PortStatus.State
HostState = host_pb2.Host.State


class Status:
    """The state of ports, hosts and networks. `synced_of` knows how far a host in session is (0: not served here)."""

    def __init__(self, world: World, resources: Resources, synced_of: Callable[[str], int]) -> None:
        self.world, self.resources, self.synced_of = world, resources, synced_of

    # ---- ports

    def port(self, name: str) -> port_pb2.PortStatus:
        """Of a port, by resource name. Raises KeyError."""
        port = self.world.ports.rows[name]
        host = self.world.hosts.rows.get(port.spec.host)
        if not port.spec.host:
            return port_pb2.PortStatus(state=port_pb2.PortStatus.STATE_UNBOUND)
        said = self.world.port_status.rows.get(port.uid)
        if said and (host is None or said.host_uid != host.uid):
            said = None
        state = self._applied(port, host, said)
        status = port_pb2.PortStatus(state=state, device=device(port))
        if said:
            status.since.CopyFrom(timestamp(said.since))
            if state == port_pb2.PortStatus.STATE_FAILED:
                status.reason, status.text = said.reason, said.text
            if said.policy:
                remedy = "change the rule that is named (`teal get rules`); until then what it is about is closed"
                status.conditions.add(type="PolicyFailed", text=said.policy, remedy=remedy)
        if host is None or host.uid not in self.world.sessions.rows:
            self._unknown(status, host)
        return status

    def _applied(
        self, port: Intent[PortSpec], host: Intent[HostSpec] | None, said: PortStatusEntry | None
    ) -> PortState:
        chunks = self.resources.scope(f"host/{host.uid}").chunks if host else {}
        wanted = chunks.get(localport_key(port.uid))
        if said and wanted and said.reason and said.tried == wanted.version:
            return port_pb2.PortStatus.STATE_FAILED
        if said is None or not said.applied:
            return port_pb2.PortStatus.STATE_PENDING
        if wanted and said.applied == wanted.version:
            return port_pb2.PortStatus.STATE_ACTIVE
        return port_pb2.PortStatus.STATE_UPDATING

    def _unknown(self, status: port_pb2.PortStatus, host: Intent[HostSpec] | None) -> None:
        status.last, status.state = status.state, port_pb2.PortStatus.STATE_UNKNOWN
        state = self.host_state(host) if host else host_pb2.Host.STATE_UNSPECIFIED
        reasons = {
            host_pb2.Host.STATE_NEW: ("HostNew", "its host has never been seen"),
            host_pb2.Host.STATE_DISCONNECTED: (
                "HostDisconnected",
                "its host has no session; it forwards what it knows",
            ),
            host_pb2.Host.STATE_LOST: ("HostLost", "its host has been silent for long; it may forward still"),
            host_pb2.Host.STATE_FOREIGN_HISTORY: ("HostForeignHistory", "its host has seen another history"),
            host_pb2.Host.STATE_FENCED: ("HostFenced", "its host is fenced"),
        }
        status.reason, status.text = reasons.get(state, ("HostMissing", "its host does not exist"))
        row = self.world.host_status.rows.get(host.uid) if host else None
        if row and row.HasField("since"):
            status.since.CopyFrom(row.since)

    # ---- hosts

    def host_state(self, host: Intent[HostSpec]) -> HostState:
        """Of a host."""
        if host.spec.fenced:
            return host_pb2.Host.STATE_FENCED
        if host.uid in self.world.sessions.rows:
            return host_pb2.Host.STATE_READY
        row = self.world.host_status.rows.get(host.uid)
        if row and row.state == FOREIGN_HISTORY:
            return host_pb2.Host.STATE_FOREIGN_HISTORY
        if row and row.state == LOST:
            return host_pb2.Host.STATE_LOST
        return host_pb2.Host.STATE_DISCONNECTED if row and row.instance_uid else host_pb2.Host.STATE_NEW

    def host(self, name: str) -> host_pb2.HostStatus:
        """Of a host, by resource name. Raises KeyError."""
        host = self.world.hosts.rows[name]
        row = self.world.host_status.rows.get(host.uid)
        session = self.world.sessions.rows.get(host.uid)
        ports = self.world.ports_by_host.keys(name)
        status = host_pb2.HostStatus(state=self.host_state(host), ports=len(ports))
        if session:
            status.replica = session.replica
            status.synced_revision = max(0, self._synced(host.uid, session.replica))
        said = (self.world.port_status.rows.get(self.world.ports.rows[port].uid) for port in ports)
        status.failed = sum(1 for s in said if s and s.reason and s.host_uid == host.uid)
        if row:
            status.vtep_seen, status.underlay_mtu = row.vtep_seen, row.underlay_mtu
            status.agent_version, status.ovs_version = row.agent_version, row.ovs_version
            status.datapath, status.unaccounted = row.datapath, len(row.unaccounted)
            if row.HasField("since"):
                status.since.CopyFrom(row.since)
            status.conditions.extend(
                common_pb2.Condition(type=c.type, text=c.text, remedy=c.remedy, since=c.since) for c in row.conditions
            )
        return status

    def _synced(self, host_uid: str, replica: str) -> int:
        """Exact where this replica serves the host; else the other replica's low water mark, which is not above it."""
        if own := self.synced_of(host_uid):
            return own
        row = self.world.replicas.rows.get(replica)
        return row.low_water if row else 0

    # ---- networks

    def network(self, name: str) -> network_pb2.NetworkStatus:
        """Of a network, by resource name: address usage per CIDR. Raises KeyError."""
        network = self.world.networks.rows[name]
        ports = [self.world.ports.rows[port] for port in self.world.ports_by_network.keys(name)]
        used = {mapped(address) for port in ports for address in port.spec.addresses}
        waiting = self._quarantined(network.uid) - used
        status = network_pb2.NetworkStatus(ports=len(ports))
        for cidr in network.spec.cidrs:
            usage = _usage(network.spec, cidr, used=used, waiting=waiting)
            status.addresses.append(usage)
            free = usage.total - usage.reserved - usage.used - usage.quarantined
            if free <= (1 - LOW) * (usage.total - usage.reserved):
                text = (
                    f"{usage.used} addresses of {cidr} are in use, {usage.quarantined} in quarantine, {free} are free"
                )
                remedy = "add a CIDR to the network, or delete ports"
                status.conditions.append(common_pb2.Condition(type="AddressesLow", text=text, remedy=remedy))
        return status

    def _quarantined(self, network_uid: str) -> set[int]:
        rows = self.world.tombstones.rows
        found = (rows[key].address_keys for key in self.world.tombstones_by_network.keys(network_uid))
        return {int(key.rsplit("/", 1)[1], 16) for keys in found for key in keys}


def device(port: Intent[PortSpec]) -> str:
    """The host-side device of a port, as its agent names it."""
    if port.spec.kind is Attach.DEVICE:
        return port.spec.where
    return "tn" + blake2b(port.uid.encode(), digest_size=6).hexdigest()


def reserved_ranges(spec: NetworkSpec, cidr: Prefix) -> list[tuple[int, int]]:
    """What is never given out automatically: inclusive ranges of v4-mapped numbers inside the CIDR, joined."""
    first, last = mapped(cidr.network_address), mapped(cidr.broadcast_address)
    gateway = next(mapped(g) for c, g in zip(spec.cidrs, spec.gateways, strict=True) if c == cidr)
    ranges = [(first, first), (gateway, gateway)]
    if cidr.version == 4:
        ranges.append((last, last))
    ranges += [(mapped(a), mapped(b)) for a, b in spec.reserved if a.version == cidr.version]
    joined: list[tuple[int, int]] = []
    for low, high in sorted((max(a, first), min(b, last)) for a, b in ranges if b >= first and a <= last):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return joined


def _usage(spec: NetworkSpec, cidr: Prefix, *, used: set[int], waiting: set[int]) -> network_pb2.AddressUsage:
    first, last = mapped(cidr.network_address), mapped(cidr.broadcast_address)
    reserved = reserved_ranges(spec, cidr)
    inside = [a for a in used if first <= a <= last]
    asked = sum(1 for a in inside if any(low <= a <= high for low, high in reserved))
    return network_pb2.AddressUsage(
        cidr=str(cidr),
        total=min(_MOST, cidr.num_addresses),
        used=len(inside),
        # A reserved address that a port asked for is used, not reserved.
        reserved=min(_MOST, sum(high - low + 1 for low, high in reserved) - asked),
        quarantined=sum(1 for a in waiting if first <= a <= last),
    )
