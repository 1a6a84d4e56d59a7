"""State, computed when it is read: nothing here is stored as a word (store.md C).

A port is ACTIVE only if its own host, in session now, has applied exactly the version that is wanted now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b

from controller.admission import FOREIGN_HISTORY, LOST
from controller.features.l2_check import tunnel_room
from controller.hosts import timestamp
from controller.intents.placement import tunnel_version
from controller.keys import mapped
from controller.resources import Resources
from controller.rows import Attach, HostSpec, Intent, NetworkSpec, PortSpec, PortStatusEntry, Prefix, SplitSpec
from controller.world import World
from tealnet.core.rows.colors import slots
from tealnet.core.rows.stream import localport_key
from tealnet.v1 import common_pb2, host_pb2, network_pb2, port_pb2, split_pb2

LOW = 90  # percent of a CIDR's addresses that are taken, from which AddressesLow is set
_MOST = 2**63 - 1
PortState = port_pb2.PortStatus.State
HostState = host_pb2.Host.State


class Status:
    """The state of ports, hosts and networks. `synced_of` knows how far a host in session is (0: not served here)."""

    def __init__(
        self, world: World, resources: Resources, synced_of: Callable[[str], int], *, default_mtu: int
    ) -> None:
        self.world, self.resources, self.synced_of, self.default_mtu = world, resources, synced_of, default_mtu

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
        status = port_pb2.PortStatus(state=state, device=(said and said.device) or device(port))
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
            status.conditions.extend(self._too_large(host, row.underlay_mtu))
        return status

    def _too_large(self, host: Intent[HostSpec], underlay_mtu: int) -> Iterable[common_pb2.Condition]:
        """Networks with ports on a host that came, or changed, later and has no room for their packets."""
        room = tunnel_room(underlay_mtu, tunnel_version(host.spec))
        ports = (self.world.ports.rows[name] for name in self.world.ports_by_host.keys(host.name))
        networks = sorted({port.spec.network for port in ports} & self.world.networks.rows.keys())
        mtus = {name: self.world.networks.rows[name].spec.mtu or self.default_mtu for name in networks}
        large = [name for name in networks if mtus[name] > room]
        if underlay_mtu and large:
            text = (
                f"the underlay (MTU {underlay_mtu}) has room for packets of {room} bytes; {len(large)} networks with "
                f"ports here have a larger MTU, e.g. {large[0]}: {mtus[large[0]]}; their large packets are lost"
            )
            remedy = "raise the MTU of the underlay, or lower that of the networks"
            yield common_pb2.Condition(type="NetworkMtuTooLarge", text=text, remedy=remedy)

    def _synced(self, host_uid: str, replica: str) -> int:
        """Exact where this replica serves the host; else the other replica's low water mark, which is not above it."""
        if own := self.synced_of(host_uid):
            return own
        row = self.world.replicas.rows.get(replica)
        return row.low_water if row else 0

    # ---- networks

    def network(self, name: str) -> network_pb2.NetworkStatus:
        """Of a network, by resource name: address usage per CIDR and color. Raises KeyError."""
        network = self.world.networks.rows[name]
        status = network_pb2.NetworkStatus(ports=len(self.world.ports_by_network.keys(name)))
        quarantined = self._quarantined(network.uid)
        for segment in network.spec.segments:
            ports = [self.world.ports.rows[port] for port in self.world.ports_by_segment.keys(segment.uid)]
            used = {mapped(address) for port in ports for address in port.spec.addresses}
            waiting = quarantined.get(segment.uid, set()) - used
            for cidr in network.spec.cidrs:
                usage = _usage(network.spec, cidr, used=used, waiting=waiting)
                usage.color = segment.color if segment.color_number else ""
                status.addresses.append(usage)
                status.conditions.extend(_low(usage))
        return status

    def _quarantined(self, network_uid: str) -> dict[str, set[int]]:
        """Addresses in quarantine, by segment."""
        rows = self.world.tombstones.rows
        found: dict[str, set[int]] = {}
        for place in self.world.tombstones_by_network.keys(network_uid):
            for key in rows[place].address_keys:
                _, segment, address = key.rsplit("/", 2)
                found.setdefault(segment, set()).add(int(address, 16))
        return found

    def split(self, split: Intent[SplitSpec]) -> list[split_pb2.ColorStatus]:
        """The colors of a split's network, in their order."""
        network = self.world.networks.rows[split.spec.network]
        weights, draining = dict(split.spec.weights), {drain.color for drain in split.spec.drains}
        shares = slots([weights.get(color, 0) for color in network.spec.colors])
        found = []
        for segment, share in zip(network.spec.segments, shares, strict=True):
            ports = self.world.ports_by_segment.keys(segment.uid)
            state = split_pb2.ColorStatus.STATE_OPEN if segment.color in weights else split_pb2.ColorStatus.STATE_IDLE
            if segment.color in split.spec.closed:
                state = split_pb2.ColorStatus.STATE_CLOSED
            elif segment.color in draining:
                state = split_pb2.ColorStatus.STATE_DRAINING
            found.append(
                split_pb2.ColorStatus(
                    color=segment.color,
                    weight=weights.get(segment.color, 0),
                    slots=share,
                    ports=len(ports),
                    active_ports=sum(1 for name in ports if self.port(name).state == PortState.STATE_ACTIVE),
                    state=state,
                )
            )
        return found


def device(port: Intent[PortSpec]) -> str:
    """The host-side device that is called after a port; it has another one if its agent had one ready."""
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


def _low(usage: network_pb2.AddressUsage) -> Iterable[common_pb2.Condition]:
    room, taken = usage.total - usage.reserved, usage.used + usage.quarantined
    free = room - taken
    if 100 * taken >= LOW * room:
        of = f"{usage.cidr} in color {usage.color}" if usage.color else usage.cidr
        text = f"{usage.used} addresses of {of} are in use, {usage.quarantined} in quarantine, {free} are free"
        remedy = "add a CIDR to the network, or delete ports"
        yield common_pb2.Condition(type="AddressesLow", text=text, remedy=remedy)


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
