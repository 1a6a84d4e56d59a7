"""The controller's input tables and their indexes: etcd's watched range as rows.

They change only by the watch (`store.py`), also in the process that committed.
"""

from __future__ import annotations

from controller.names import default_group
from controller.rollouts.plan import RolloutSpec
from controller.rows import (
    HostSpec,
    IdentityRow,
    Intent,
    NetworkSpec,
    PortSpec,
    PortStatusEntry,
    RouterSpec,
    SessionEntry,
    SplitSpec,
    TenantSpec,
    Term,
    TombstoneRow,
)
from controller.rows_policy import GroupSpec, TierSpec
from tealnet.core.tables import Graph, Index, Table
from tealnet.store.v1 import store_pb2

ALL = "all"
"""The one key of indexes that hold every row."""


class World:
    """Every table. Intents by resource name, the rest by uid or number."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tenants: Table[str, Intent[TenantSpec]] = graph.table()
        self.hosts: Table[str, Intent[HostSpec]] = graph.table()
        self.routers: Table[str, Intent[RouterSpec]] = graph.table()
        self.networks: Table[str, Intent[NetworkSpec]] = graph.table()
        self.ports: Table[str, Intent[PortSpec]] = graph.table()
        self.splits: Table[str, Intent[SplitSpec]] = graph.table()
        self.rollouts: Table[str, Intent[RolloutSpec]] = graph.table()
        self.groups: Table[str, Intent[GroupSpec]] = graph.table()
        self.tiers: Table[str, Intent[TierSpec]] = graph.table()
        self.identities: Table[int, IdentityRow] = graph.table()  # by number
        self.guards: Table[str, int] = graph.table()  # router uid → mod_revision
        self.tombstones: Table[tuple[str, str, str], TombstoneRow] = graph.table()  # host uid, port uid, address or ""
        self.port_status: Table[str, PortStatusEntry] = graph.table()  # port uid
        self.host_status: Table[str, store_pb2.HostStatusRow] = graph.table()  # host uid; never mutated
        self.rollout_reports: Table[tuple[str, str], store_pb2.RolloutReport] = graph.table()  # rollout uid, replica
        self.rollout_steps: Table[tuple[str, int], store_pb2.RolloutStepRow] = graph.table()  # rollout uid, step
        self.confirmations: Table[str, int] = graph.table()  # rollout uid → create_revision of the key
        self.sessions: Table[str, SessionEntry] = graph.table()  # host uid
        self.replicas: Table[str, store_pb2.ReplicaRow] = graph.table()
        self.lineages: Table[int, str] = graph.table()
        self.terms: Table[str, Term] = graph.table()  # the one key "chores": who does chores
        self.barriers: Table[str, store_pb2.Barrier] = graph.table()  # questions to all replicas, by id
        self.answers: Table[tuple[str, str], store_pb2.BarrierAnswer] = graph.table()  # (barrier id, replica)

        self.hosts_by_uid: Index[Intent[HostSpec]] = self.hosts.index(lambda r: (r.uid,))
        self.tenants_by_uid: Index[Intent[TenantSpec]] = self.tenants.index(lambda r: (r.uid,))
        self.splits_by_tenant: Index[Intent[SplitSpec]] = self.splits.index(lambda r: (r.spec.tenant,))
        self.splits_by_network: Index[Intent[SplitSpec]] = self.splits.index(lambda r: (r.spec.network_uid,))
        self.rollouts_by_uid: Index[Intent[RolloutSpec]] = self.rollouts.index(lambda r: (r.uid,))
        self.rollouts_by_tenant: Index[Intent[RolloutSpec]] = self.rollouts.index(lambda r: (r.spec.tenant,))
        self.rollouts_by_slot: Index[Intent[RolloutSpec]] = self.rollouts.index(lambda r: ((r.spec.tenant, r.slot),))
        self.rollouts_by_network: Index[Intent[RolloutSpec]] = self.rollouts.index(lambda r: r.spec.plan.networks)
        self.routers_by_tenant: Index[Intent[RouterSpec]] = self.routers.index(lambda r: (r.spec.tenant,))
        self.routers_by_domain: Index[Intent[RouterSpec]] = self.routers.index(lambda r: (r.spec.domain,))
        self.networks_by_uid: Index[Intent[NetworkSpec]] = self.networks.index(lambda r: (r.uid,))
        self.networks_by_tenant: Index[Intent[NetworkSpec]] = self.networks.index(lambda r: (r.spec.tenant,))
        self.networks_by_router: Index[Intent[NetworkSpec]] = self.networks.index(lambda r: (r.spec.router,))
        self.networks_by_segment: Index[Intent[NetworkSpec]] = self.networks.index(
            lambda r: tuple(s.uid for s in r.spec.segments)
        )
        self.networks_by_vni: Index[Intent[NetworkSpec]] = self.networks.index(
            lambda r: tuple(s.vni for s in r.spec.segments)
        )
        self.networks_by_domain: Index[Intent[NetworkSpec]] = self.networks.index(lambda r: (r.spec.own_domain,))
        self.ports_by_uid: Index[Intent[PortSpec]] = self.ports.index(lambda r: (r.uid,))
        self.ports_by_tenant: Index[Intent[PortSpec]] = self.ports.index(lambda r: (r.spec.tenant,))
        self.ports_by_network: Index[Intent[PortSpec]] = self.ports.index(lambda r: (r.spec.network,))
        self.ports_by_segment: Index[Intent[PortSpec]] = self.ports.index(lambda r: (r.spec.segment_uid,))
        self.ports_by_host: Index[Intent[PortSpec]] = self.ports.index(lambda r: (r.spec.host,) if r.spec.host else ())
        self.ports_by_address: Index[Intent[PortSpec]] = self.ports.index(
            lambda r: tuple((r.spec.segment_uid, a) for a in r.spec.addresses)
        )
        self.networks_by_slot: Index[Intent[NetworkSpec]] = self.networks.index(lambda r: ((r.spec.tenant, r.slot),))
        self.routers_by_slot: Index[Intent[RouterSpec]] = self.routers.index(lambda r: ((r.spec.tenant, r.slot),))
        self.ports_by_slot: Index[Intent[PortSpec]] = self.ports.index(lambda r: ((r.spec.tenant, r.slot),))
        self.groups_by_uid: Index[Intent[GroupSpec]] = self.groups.index(lambda r: (r.uid,))
        self.groups_by_tenant: Index[Intent[GroupSpec]] = self.groups.index(lambda r: (r.spec.tenant,))
        self.groups_by_slot: Index[Intent[GroupSpec]] = self.groups.index(
            lambda r: () if r.name == default_group(r.spec.tenant) else ((r.spec.tenant, r.slot),)
        )
        self.tiers_by_uid: Index[Intent[TierSpec]] = self.tiers.index(lambda r: (r.uid,))
        self.tiers_all: Index[Intent[TierSpec]] = self.tiers.index(lambda r: (ALL,))
        self.tenants_by_labels: Index[Intent[TenantSpec]] = self.tenants.index(lambda r: (r.labels,))
        self.ports_by_identity: Index[Intent[PortSpec]] = self.ports.index(lambda r: (r.spec.identity,))
        self.hosts_by_number: Index[Intent[HostSpec]] = self.hosts.index(lambda r: (r.spec.number,))
        self.identities_by_group: Index[IdentityRow] = self.identities.index(lambda r: r.groups)
        self.identities_by_members: Index[IdentityRow] = self.identities.index(lambda r: (r.members,))
        self.tombstones_by_host: Index[TombstoneRow] = self.tombstones.index(lambda r: (r.host_uid,))
        self.tombstones_by_network: Index[TombstoneRow] = self.tombstones.index(lambda r: (r.network_uid,))
        self.tombstones_by_domain: Index[TombstoneRow] = self.tombstones.index(lambda r: (r.domain,))
        self.tombstones_by_address: Index[TombstoneRow] = self.tombstones.index(lambda r: r.address_keys)
        self.tombstones_by_port: Index[TombstoneRow] = self.tombstones.index(lambda r: (r.port_uid,))
