"""Objects as a caller sees them: the stored message, what the server knows about it, and its state now."""

from __future__ import annotations

from typing import Any

from controller.caller import Caller
from controller.decode import MESSAGES
from controller.intents.base import etag_of
from controller.intents.placement import may_use, selected
from controller.members import ports_of_group
from controller.names import field_of, tenant_of
from controller.rollouts.status import RolloutStatus
from controller.rows import Intent, PortSpec, SplitSpec
from controller.rows_policy import TierSpec
from controller.status import Status
from controller.world import World
from tealnet.store.v1 import store_pb2
from tealnet.v1 import host_pb2, network_pb2, port_pb2, security_pb2, split_pb2, system_pb2


class Presenter:
    """Renders rows for callers."""

    def __init__(self, world: World, status: Status) -> None:
        self.world, self.status = world, status

    def message(self, kind: str, row: Intent[Any], caller: Caller) -> Any:
        """The API message of an object. A row that is no more in the tables has no status."""
        stored = store_pb2.Stored.FromString(row.stored)
        message = MESSAGES[kind].FromString(stored.message)
        message.name, message.uid, message.etag, message.revision = row.name, row.uid, etag_of(row), row.mod_revision
        match kind:
            case "host":
                message = self._host(message, row, caller)
            case "network":
                self._network(message, row, caller)
            case "router":
                message.networks[:] = sorted(self.world.networks_by_router.keys(row.name))
            case "port":
                self._port(message, row)
            case "split":
                self._split(message, row)
            case "rollout":
                RolloutStatus(self.world, row).fill(message)
            case "group" if self._is_there("group", row):
                message.status.ports = sum(1 for _ in ports_of_group(self.world, row))
            case "tier":
                self._tier(message, row, caller)
        return message

    def render(self, kind: str, row: Intent[Any], caller: Caller) -> system_pb2.Object:
        """As one of any kind."""
        return system_pb2.Object(**{field_of(kind): self.message(kind, row, caller)})

    def sees(self, kind: str, row: Intent[Any], caller: Caller) -> bool:
        """Whether a caller may know of an object: its own, and the hosts it may place on."""
        own = caller.tenant
        if not own:
            return caller.is_admin
        tenant = self.world.tenants.rows.get(own)
        match kind:
            case "host":
                return tenant is not None and may_use(tenant.spec, row)
            case "tier":
                return tenant is not None and selected(row.spec.selector, tenant.labels)
            case _:
                return tenant_of(row.name) == own

    def _is_there(self, kind: str, row: Intent[Any]) -> bool:
        now = getattr(self.world, f"{kind}s").rows.get(row.name)
        return now is not None and now.uid == row.uid

    def _host(self, message: host_pb2.Host, row: Intent[Any], caller: Caller) -> host_pb2.Host:
        """A tenant sees a host's name, labels and state: no addresses, no counts of other ports (A28)."""
        if self._is_there("host", row):
            message.status.CopyFrom(self.status.host(row.name))
        if caller.is_admin:
            return message
        shown = host_pb2.Host(name=message.name, uid=message.uid, labels=message.labels, revision=message.revision)
        shown.drained, shown.fenced, shown.status.state = message.drained, message.fenced, message.status.state
        return shown

    def _port(self, message: port_pb2.Port, row: Intent[PortSpec]) -> None:
        """Its color is its segment's, and not stored."""
        network = self.world.networks.rows.get(row.spec.network)
        message.color = network.spec.color_of(row.spec.segment_uid) if network else ""
        if self._is_there("port", row):
            message.status.CopyFrom(self.status.port(row.name))

    def _split(self, message: split_pb2.TrafficSplit, row: Intent[SplitSpec]) -> None:
        """All colors that the network has now, also those without weight."""
        message.network = row.spec.network
        if not self._is_there("split", row):
            return
        network = self.world.networks.rows.get(row.spec.network)
        for color in network.spec.colors if network else ():
            message.weights.setdefault(color, 0)
        message.colors.extend(self.status.split(row))

    def _tier(self, message: security_pb2.PolicyTier, row: Intent[TierSpec], caller: Caller) -> None:
        """A tenant sees what binds it, not whom else."""
        if caller.is_admin:
            tenants = self.world.tenants.rows.values()
            message.status.tenants = sum(selected(row.spec.selector, tenant.labels) for tenant in tenants)
        else:
            message.ClearField("tenant_selector")
            message.ClearField("labels")

    def _network(self, message: network_pb2.Network, row: Intent[Any], caller: Caller) -> None:
        del message.segments[:]
        for segment in row.spec.segments:
            vni = segment.vni if caller.is_admin else 0
            message.segments.add(color=segment.color, uid=segment.uid, vni=vni)
        if self._is_there("network", row):
            message.status.CopyFrom(self.status.network(row.name))
