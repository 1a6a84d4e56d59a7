"""SystemService: Sync, Watch, status, events, version; Plan is `plan`'s."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from google.protobuf.duration_pb2 import Duration

from controller.api.filters import selector
from controller.api.plan import Planner
from controller.api.present import Presenter
from controller.caller import current_caller
from controller.decode import tenant_of
from controller.errors import NotFound, PermissionDenied, invalid
from controller.etcd import StoreError
from controller.events import Events
from controller.hosts import timestamp
from controller.keys import COLLECTIONS
from controller.members import ports_of_group
from controller.names import kind_of, network_of, split_of, word_of
from controller.status import Status
from controller.store import Store
from controller.sync import Domains, Outcome, Sync, number_in
from controller.watch import Interest, Watches
from tealnet.v1 import port_pb2, system_pb2, system_pb2_grpc

_TIMEOUT = 10.0  # seconds, if a Sync does not say
_LONGEST = 3600.0
_STATUS_PATIENCE = 0.5  # seconds that a status waits for hosts that are behind
_KINDS = {word_of(kind): kind for kind in COLLECTIONS}
_EVENTS = 1000


class Parts(NamedTuple):
    """What the service speaks for."""

    store: Store
    status: Status
    sync: Sync
    watches: Watches
    events: Events
    presenter: Presenter
    planner: Planner
    members: Callable[[], Awaitable[list[system_pb2.EtcdMember]]]
    version: str
    cluster: str


class System(system_pb2_grpc.SystemServiceServicer):
    """The methods; raise ApiError."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.store, self.world = parts.store, parts.store.world

    # ---- Sync

    async def Sync(self, request: system_pb2.SyncRequest, context: Any) -> system_pb2.SyncResponse:
        """Wait until the data plane has a revision, or say who has not."""
        given = request.timeout.seconds + request.timeout.nanos / 1e9
        timeout = given if request.HasField("timeout") else _TIMEOUT
        if not 0 <= timeout <= _LONGEST:
            raise invalid("timeout", f"between 0 and {_LONGEST:.0f} seconds")
        if request.revision < 0:
            raise invalid("revision", "not negative")
        domains = self._domains(request.parent)
        outcome = await self.parts.sync.ask(revision=request.revision, domains=domains, timeout=timeout)
        return self._sync_response(outcome)

    def _domains(self, parent: str) -> Domains:
        """The domains that a parent is about; all hosts for an admin who names none."""
        own = current_caller().tenant
        parent = parent or own
        if not parent:
            return None
        if kind_of(parent) in ("", "host", "tier"):
            what = "a tenant, network, router, port, split or security group"
            raise invalid("parent", f"{parent[:200]!r} is not {what}")
        if own and tenant_of(parent) != own:
            raise NotFound(parent, field="parent")
        world, of_network = self.world, self.parts.sync.sessions.resources.of_hosts.domain_of_network.rows
        match parent.split("/"):
            case ["tenants", _] if parent in world.tenants.rows:
                networks = world.networks_by_tenant.keys(parent)
                routers = (world.routers.rows[name] for name in world.routers_by_tenant.keys(parent))
                known = {of_network[n] for n in networks if n in of_network} | {r.spec.domain for r in routers}
                # Those of networks that are gone, as long as a host has not let go of their ports.
                left = {t.domain for t in world.tombstones.rows.values() if t.port_name.startswith(f"{parent}/")}
                return frozenset(known | left) - {0}
            case ["tenants", _, "networks", _] if parent in world.networks.rows:
                return frozenset({of_network[parent]} if parent in of_network else ())
            case ["tenants", _, "networks", _, _] if parent in world.splits.rows:
                network = world.splits.rows[parent].spec.network
                return frozenset({of_network[network]} if network in of_network else ())
            case ["tenants", _, "routers", _] if parent in world.routers.rows:
                return frozenset({world.routers.rows[parent].spec.domain})
            case ["tenants", _, "ports", _] if parent in world.ports.rows:
                network = world.ports.rows[parent].spec.network
                return frozenset({of_network[network]} if network in of_network else ())
            case ["tenants", _, "securityGroups", _] if parent in world.groups.rows:
                ports = ports_of_group(world, world.groups.rows[parent])
                return frozenset(of_network[p.spec.network] for p in ports if p.spec.network in of_network)
            case _:
                raise NotFound(parent, field="parent")

    def _sync_response(self, outcome: Outcome) -> system_pb2.SyncResponse:
        took = Duration()
        took.FromNanoseconds(int(outcome.took * 1e9))
        return system_pb2.SyncResponse(
            complete=outcome.complete,
            revision=outcome.revision,
            hosts=len(outcome.hosts),
            synced=len(outcome.synced),
            behind=[system_pb2.HostLag(host=self._host(h), revision=at) for h, at in outcome.behind.items()],
            failed=[
                system_pb2.SyncFailure(
                    host=self._host(f.host_uid), object=self._object(f.key), reason=f.reason, text=f.text
                )
                for f in outcome.failed
            ],
            disconnected=sorted(map(self._host, outcome.disconnected)),
            lost=sorted(map(self._host, outcome.lost)),
            slowest_host=self._host(outcome.slowest) if outcome.slowest else "",
            took=took,
        )

    def _host(self, uid: str) -> str:
        """A host's name: who has ports in a domain may know which hosts carry it."""
        return next(iter(self.world.hosts_by_uid.keys(uid)), uid)

    def _object(self, key: str) -> str:
        """The resource name behind a key of the stream, where the caller may see it."""
        kind, _, ident = key.partition("/")
        names: list[str] = []
        if kind in ("endpoint", "localport"):
            names = self.world.ports_by_uid.keys(ident)
        elif kind == "segment":
            names = self.world.networks_by_vni.keys(number_in(ident))
        elif kind == "weights":
            names = [split_of(name) for name in self.world.networks_by_uid.keys(ident)]
        elif kind == "rules":
            names = sorted(self.world.ports_by_identity.keys(number_in(ident)))
        return next((name for name in names if self._sees(name)), key)

    def _sees(self, name: str) -> bool:
        caller = current_caller()
        return caller.is_admin or (bool(caller.tenant) and tenant_of(name) == caller.tenant)

    # ---- Watch

    async def Watch(self, request: system_pb2.WatchRequest, context: Any) -> AsyncIterator[system_pb2.WatchResponse]:
        """What there is, then what changes."""
        caller, presenter = current_caller(), self.parts.presenter
        unknown = sorted(set(request.kinds) - _KINDS.keys())
        if unknown:
            raise invalid("kinds", f"unknown: {', '.join(unknown)[:200]}; known are {', '.join(_KINDS)}")
        parent = "" if request.parent in ("", "-", "tenants/-") else request.parent
        if parent and not kind_of(parent):
            raise invalid("parent", f"{parent[:200]!r} is not a resource name like tenants/TENANT")
        if parent and not self._sees(parent):
            raise NotFound(parent, field="parent")
        if request.resume_revision < 0:
            raise invalid("resume_revision", "not negative")
        interest = Interest(
            parent=parent,
            kinds=frozenset(_KINDS[word] for word in request.kinds),
            matches=selector(request.filter),
            sees=lambda kind, row: presenter.sees(kind, row, caller),
            spec_only=request.spec_only,
        )
        responses = self.parts.watches.watch(
            interest, request.resume_revision, lambda kind, row: presenter.render(kind, row, caller)
        )
        async with contextlib.aclosing(responses):
            async for response in responses:
                yield response

    # ---- one screen

    async def GetStatus(self, request: system_pb2.GetStatusRequest, context: Any) -> system_pb2.GetStatusResponse:
        """Store, replicas, hosts and counts; a tenant sees the counts of its own objects."""
        caller = current_caller()
        world, own = self.world, caller.tenant
        response = system_pb2.GetStatusResponse(
            cluster=self.parts.cluster,
            cluster_uid=self.store.keys.cluster_uid,
            revision=self.store.revision,
            tenants=1 if own else len(world.tenants.rows),
            networks=len(world.networks_by_tenant.keys(own) if own else world.networks.rows),
            routers=len(world.routers_by_tenant.keys(own) if own else world.routers.rows),
            ports=len(world.ports_by_tenant.keys(own) if own else world.ports.rows),
            security_groups=len(world.groups_by_tenant.keys(own) if own else world.groups.rows),
        )
        if stale := self.store.stale_since:
            response.stale_since.CopyFrom(timestamp(stale))
        response.port_states.extend(self._port_states(own))
        if own:
            return response
        response.etcd.extend(await self.parts.members())
        response.replicas.extend(self._replicas())
        reached = await self._reached()
        for name in sorted(world.hosts.rows):
            host = self.parts.presenter.message("host", world.hosts.rows[name], caller)
            host.status.synced_revision = reached.get(host.uid, host.status.synced_revision)
            response.hosts.append(host)
        response.revision = max((response.revision, *reached.values()))
        return response

    async def _reached(self) -> dict[str, int]:
        """How far each host in session is, by uid, also of those that other replicas serve; nothing without a store."""
        try:
            outcome = await self.parts.sync.ask(revision=0, domains=None, timeout=_STATUS_PATIENCE)
        except StoreError:
            return {}
        return dict.fromkeys(outcome.synced, outcome.revision) | outcome.behind

    def _port_states(self, tenant: str) -> list[system_pb2.PortCount]:
        names = self.world.ports_by_tenant.keys(tenant) if tenant else list(self.world.ports.rows)
        counts: dict[port_pb2.PortStatus.State, int] = {}
        for name in names:
            state = self.parts.status.port(name).state
            counts[state] = counts.get(state, 0) + 1
        return [system_pb2.PortCount(state=state, count=counts[state]) for state in sorted(counts)]

    def _replicas(self) -> list[system_pb2.Replica]:
        term = self.world.terms.rows.get("chores")
        return [
            system_pb2.Replica(
                id=replica,
                chores=bool(term and term.replica == replica),
                sessions=row.sessions,
                low_water=row.low_water,
                version=row.version,
            )
            for replica, row in sorted(self.world.replicas.rows.items())
        ]

    # ---- events, version

    async def ListEvents(self, request: system_pb2.ListEventsRequest, context: Any) -> system_pb2.ListEventsResponse:
        """Newest last; of an object that is gone by its name."""
        name, own = request.name, current_caller().tenant
        if own and not name:
            name = own
        if name and not kind_of(name):
            raise invalid("name", f"{name[:200]!r} is not a resource name like tenants/TENANT")
        if request.page_size < 0:
            raise invalid("page_size", "not negative; 0 means the default")
        if name and not self._sees(name):
            raise NotFound(name, field="name")
        if not name and not current_caller().is_admin:
            raise PermissionDenied("events of all objects are for admins")
        found = await self.parts.events.read(self._uid(name) if name else "")
        if name:
            found = [event for event in found if event.name == name or event.name.startswith(name + "/")]
        if own:  # a tenant that had the name before is another
            tenant = self.world.tenants.rows.get(own)
            found = [event for event in found if tenant and event.revision >= tenant.create_revision]
        return system_pb2.ListEventsResponse(events=found[-(request.page_size or _EVENTS) :])

    def _uid(self, name: str) -> str:
        """The uid whose events are to be read; "" (all) for tenants and for objects that are gone.

        A split's are its network's.
        """
        if kind_of(name) == "split":
            name = network_of(name)
        world = self.world
        for table in (
            world.hosts, world.networks, world.routers, world.ports, world.rollouts, world.groups, world.tiers,
        ):  # fmt: skip
            if row := table.rows.get(name):
                return str(row.uid)
        return ""

    async def GetVersion(self, request: system_pb2.GetVersionRequest, context: Any) -> system_pb2.GetVersionResponse:
        """Of this program and its API."""
        return system_pb2.GetVersionResponse(version=self.parts.version, api="tealnet.v1")

    # ---- Plan

    async def Plan(self, request: system_pb2.PlanRequest, context: Any) -> system_pb2.PlanResponse:
        """What a list of documents would do."""
        return await self.parts.planner.plan(request)
