"""What is written about intents, and what intents say of each other. A row here is of one revision with all others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from controller.check.finding import Finding
from controller.check.stored import breathe, unchanged
from controller.etcd.types import KeyValue, absent, delete, modified, put
from controller.intents.base import issued_of
from controller.names import default_group, split_of
from controller.rows import Intent, NetworkSpec, PortSpec, SplitSpec, TenantSpec
from controller.store import Store
from tealnet.core.tables import Table
from tealnet.store.v1 import store_pb2


def orphans(store: Store) -> dict[bytes, str]:
    """Keys of rows under `w/` whose object is no more → what they are."""
    world, keys = store.world, store.keys
    rollouts = world.rollouts_by_uid.buckets
    found: dict[bytes, str] = {}
    for uid in world.port_status.rows.keys() - world.ports_by_uid.buckets.keys():
        found[keys.port_status(uid)] = "status of a port that is no more"
    for uid in world.host_status.rows.keys() - world.hosts_by_uid.buckets.keys():
        found[keys.host_status(uid)] = "status of a host that is no more"
    for uid, step in world.rollout_steps.rows:
        if uid not in rollouts:
            found[keys.rollout_step(uid, step)] = "step of a rollout that is no more"
    for uid in world.confirmations.rows:
        if uid not in rollouts:
            found[keys.confirmation(uid)] = "confirmation of a rollout that is no more"
    living = {row.uid for row in world.routers.rows.values()}
    for uid in world.guards.rows:
        if uid not in living:
            found[keys.domain_guard(uid)] = "guard of a router that is no more"
    for host_uid, port_uid, address in world.tombstones.rows:
        if not address and _lives_on(store, port_uid, host_uid):
            found[keys.tombstone(host_uid, port_uid)] = "proof that a port must go from the host on which it lives"
    return found


def orphan(store: Store, kv: KeyValue, what: str) -> Finding:
    """A row without object as a finding; its uid is never used again, so only the row itself is compared."""
    subject = store.keys.relative(kv.key)
    return Finding("ORPHAN", subject, what, (modified(kv.key, kv.mod_revision),), (delete(kv.key),), repair="delete it")


def _lives_on(store: Store, port_uid: str, host_uid: str) -> bool:
    ports, hosts = store.world.ports.rows, store.world.hosts.rows
    names = (ports[name].spec.host for name in store.world.ports_by_uid.keys(port_uid))
    return any(name in hosts and hosts[name].uid == host_uid for name in names)


async def intents(store: Store) -> list[Finding]:
    """Intents that can't be read, or that name what is not there: for a person to decide."""
    text = "it counts as absent. Restore or delete the key by hand"
    findings = [Finding("UNREADABLE", key, f"{why}: {text}") for key, why in sorted(store.broken.items())]
    world = store.world
    looks: tuple[tuple[Table[str, Any], Callable[[Store, Any], Iterator[Finding]]], ...] = (
        (world.tenants, _tenant),
        (world.networks, _network),
        (world.splits, _split),
        (world.ports, _port),
        (world.routers, _owned),
        (world.rollouts, _owned),
        (world.groups, _owned),
    )
    for table, look in looks:
        for number, row in enumerate(list(table.rows.values()), 1):
            findings.extend(look(store, row))
            await breathe(number)
    return findings


def _tenant(store: Store, tenant: Intent[TenantSpec]) -> Iterator[Finding]:
    if (name := default_group(tenant.name)) not in store.world.groups.rows:
        text = f"{name} is not there; the elected replica writes it within a minute"
        yield Finding("MISSING_GROUP", tenant.name, text, (unchanged(store, tenant),), object=tenant.name)


def _network(store: Store, network: Intent[NetworkSpec]) -> Iterator[Finding]:
    issued = issued_of(network)
    yield from _named(store, network, "tenant", network.spec.tenant, issued.tenant_uid)
    if network.spec.router:
        yield from _named(store, network, "router", network.spec.router, issued.router_uid)
    split = store.world.splits.rows.get(split_of(network.name))
    if (split is not None) != bool(network.spec.colors):
        colors, there = ", ".join(network.spec.colors) or "none", "" if split else "not "
        text = f"its colors are {colors}, and its split is {there}there"
        yield Finding("SPLIT_MISMATCH", network.name, text, (unchanged(store, network),), object=network.name)


def _split(store: Store, split: Intent[SplitSpec]) -> Iterator[Finding]:
    yield from _named(store, split, "network", split.spec.network, split.spec.network_uid)


def _owned(store: Store, row: Intent[Any]) -> Iterator[Finding]:
    yield from _named(store, row, "tenant", row.spec.tenant, issued_of(row).tenant_uid)


def _port(store: Store, port: Intent[PortSpec]) -> Iterator[Finding]:
    world, spec, issued = store.world, port.spec, issued_of(port)
    yield from _named(store, port, "tenant", spec.tenant, issued.tenant_uid)
    yield from _named(store, port, "network", spec.network, issued.network_uid)
    network = world.networks.rows.get(spec.network)
    if network and spec.segment_uid not in {segment.uid for segment in network.spec.segments}:
        text = f"{spec.network} has no segment {spec.segment_uid}: the port is nowhere. Delete and create it again"
        yield Finding("DANGLING_NAME", port.name, text, (unchanged(store, port),), object=port.name)
    if spec.host:
        yield from _named(store, port, "host", spec.host, issued.host_uid)
    for group in spec.groups:
        yield from _named(store, port, "group", group, "")
    yield from _identity(store, port, (issued.tenant_uid, *issued.group_uids))


def _identity(store: Store, port: Intent[PortSpec], members: tuple[str, ...]) -> Iterator[Finding]:
    number = port.spec.identity
    row, key = store.world.identities.rows.get(number), store.keys.identity(number)
    if row is None:
        value = store_pb2.Identity(tenant_uid=members[0], group_uids=members[1:]).SerializeToString()
        text = f"identity {number} of {port.name} is not there: no rule can guard the port"
        yield Finding(
            "MISSING_IDENTITY", store.keys.relative(key), text, (unchanged(store, port), absent(key)),
            (put(key, value),), port.name, "write it with the groups of the port",
        )  # fmt: skip
    elif row.members != members:
        text = f"identity {number} is of other groups than the port's: give it other groups, and then its own again"
        yield Finding("WRONG_IDENTITY", port.name, text, (unchanged(store, port),), object=port.name)


def _named(store: Store, row: Intent[Any], kind: str, name: str, uid: str) -> Iterator[Finding]:
    found: Any = getattr(store.world, f"{kind}s").rows.get(name)
    if found is not None and (not uid or found.uid == uid):
        return
    what = "is not there" if found is None else "is another one than it was made with"
    holds = [unchanged(store, row)]
    holds.append(unchanged(store, found) if found else absent(store.keys.intent(name)))
    text = f"it names {name}, which {what}: delete it, or restore a backup"
    yield Finding("DANGLING_NAME", row.name, text, tuple(holds), object=row.name)
