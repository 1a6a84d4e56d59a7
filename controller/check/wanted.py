"""Which keys under `k/` an intent must have: what creating it writes and deleting it takes away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from controller.intents.base import holder, issued_of
from controller.intents.port import place_key, referents
from controller.keys import Keys
from controller.names import default_group
from controller.rollouts.plan import Claims, RolloutSpec, claims
from controller.rows import HostSpec, Intent, NetworkSpec, PortSpec, RouterSpec
from controller.rows_policy import GroupSpec
from controller.world import World


class Wanted(NamedTuple):
    """A key that an intent must have, with its name and uid in it."""

    key: bytes
    by: Intent[Any]

    @property
    def value(self) -> bytes:
        """What stands in the key."""
        return holder(self.by.name, self.by.uid)


def wanted(world: World, keys: Keys) -> Iterator[Wanted]:
    """All of them. Two intents that want one key are both here."""
    makers: tuple[tuple[Any, Any], ...] = (
        (world.hosts, _host),
        (world.routers, _router),
        (world.networks, _network),
        (world.ports, _port),
        (world.rollouts, _rollout),
        (world.groups, _group),
    )
    for table, make in makers:
        for row in list(table.rows.values()):  # rows may change before the next one is asked for
            for key in make(row, keys):
                yield Wanted(key, row)


def _owned(row: Intent[Any], kind: str, keys: Keys) -> Iterator[bytes]:
    tenant_uid = issued_of(row).tenant_uid
    yield keys.slot(tenant_uid=tenant_uid, kind=kind, slot=row.slot)
    if kind != "port":
        yield keys.reference(kind="tenant", uid=tenant_uid, by_kind=kind, by_uid=row.uid)


def _host(row: Intent[HostSpec], keys: Keys) -> Iterator[bytes]:
    yield keys.host_number(row.spec.number)
    if row.spec.vtep:
        yield keys.vtep(row.spec.vtep)


def _router(row: Intent[RouterSpec], keys: Keys) -> Iterator[bytes]:
    yield from _owned(row, "router", keys)
    yield keys.domain(row.spec.domain)


def _network(row: Intent[NetworkSpec], keys: Keys) -> Iterator[bytes]:
    yield from _owned(row, "network", keys)
    yield keys.domain(row.spec.own_domain)
    yield keys.network_number(row.spec.number)
    for segment in row.spec.segments:
        yield keys.vni(segment.vni)
    if router_uid := issued_of(row).router_uid:
        yield keys.reference(kind="router", uid=router_uid, by_kind="network", by_uid=row.uid)


def _port(row: Intent[PortSpec], keys: Keys) -> Iterator[bytes]:
    spec, issued = row.spec, issued_of(row)
    yield from _owned(row, "port", keys)
    for address in spec.addresses:
        yield keys.ip(spec.segment_uid, address)
    yield keys.mac(spec.segment_uid, spec.mac)
    if place := place_key(keys, spec, issued.host_uid, tenant_uid=issued.tenant_uid):
        yield place
    for kind, uid in referents(issued):
        yield keys.reference(kind=kind, uid=uid, by_kind="port", by_uid=row.uid)


def _rollout(row: Intent[RolloutSpec], keys: Keys) -> Iterator[bytes]:
    yield from _owned(row, "rollout", keys)
    kept = claims(row.spec.run)
    for network in row.spec.run.networks:
        if kept is Claims.ALL:
            yield keys.rollout_of(network.uid)
            yield keys.reference(kind="network", uid=network.uid, by_kind="rollout", by_uid=row.uid)
        if kept is not Claims.NONE:
            for _, segment in network.segments:
                yield keys.reference(kind="segment", uid=segment, by_kind="rollout", by_uid=row.uid)


def _group(row: Intent[GroupSpec], keys: Keys) -> Iterator[bytes]:
    if row.name != default_group(row.spec.tenant):
        yield from _owned(row, "group", keys)
    for uid in issued_of(row).group_uids:
        yield keys.reference(kind="group", uid=uid, by_kind="group", by_uid=row.uid)
