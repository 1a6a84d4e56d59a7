"""Is the store whole? Every object has exactly the keys that it must have, and no key is without its object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controller.etcd.types import prefix_end
from controller.features.colors_check import BASE
from controller.keys import Keys
from controller.names import short, split_of
from controller.rollouts.plan import Claims, RolloutSpec, claims
from controller.rows import Attach, HostSpec, Intent, NetworkSpec, PortSpec, RouterSpec
from controller.rows_policy import GroupSpec
from controller.store import Store
from controller.world import World
from tealnet.core.rows.colors import COLORS
from tealnet.store.v1 import store_pb2
from tealnet.v1 import security_pb2


async def inconsistencies(store: Store) -> list[str]:
    """What is wrong, one line each; empty if the store is whole."""
    await store.barrier()
    prefix = store.keys.watched[:-2] + b"k/"
    _, found = await store.etcd.scan(prefix, prefix_end(prefix))
    actual: dict[bytes, str] = {}
    for kv in found:
        relative = store.keys.relative(kv.key)
        if relative.startswith(("k/u/identity/", "k/i/", "k/j/")):
            continue
        holder = store_pb2.Holder.FromString(kv.value)
        if not holder.released:
            actual[kv.key] = holder.uid
    wanted = dict(_wanted(store.world, store.keys))
    lines = [f"missing: {store.keys.relative(key)}" for key in wanted.keys() - actual.keys()]
    lines += [f"without object: {store.keys.relative(key)}" for key in actual.keys() - wanted.keys()]
    lines += _colors(store.world)
    both = wanted.keys() & actual.keys()
    lines += [f"of another: {store.keys.relative(key)}" for key in both if wanted[key] != actual[key]]
    lines += [f"broken: {key}: {why}" for key, why in store.broken.items()]
    lines += [f"identity {members} has the numbers {numbers}" for members, numbers in _twice(store.world)]
    lines += [f"not derived: {key}: {error!r}" for key, error in store.graph.errors()]
    return sorted(lines)


def _twice(world: World) -> Iterator[tuple[Any, list[int]]]:
    """Sets of groups with more than one identity."""
    for members, numbers in world.identities_by_members.buckets.items():
        if len(numbers) > 1:
            yield members, list(world.identities_by_members.keys(members))


def _colors(world: World) -> Iterator[str]:
    """A split for each network with colors, weights for colors that there are, and one number per name in a domain."""
    numbers: dict[str, dict[str, int]] = {}
    for network in world.networks.rows.values():
        split, colors = world.splits.rows.get(split_of(network.name)), network.spec.colors
        if (split is not None) != bool(colors) or (split and split.spec.network_uid != network.uid):
            yield f"{network.name} has the colors {colors}, its split is {split and split.spec}"
        if split and not {color for color, _ in split.spec.weights} <= set(colors):
            yield f"{network.name} has the colors {colors}, the weights are {split.spec.weights}"
        domain = numbers.setdefault(network.spec.router or network.name, {})
        for segment in network.spec.segments:
            if (segment.color == BASE) != (segment.color_number == 0):
                yield f"{network.name}: {segment}"
            if segment.color_number and domain.setdefault(segment.color, segment.color_number) != segment.color_number:
                yield f"{network.name}: {segment.color} is {segment.color_number}, elsewhere {domain[segment.color]}"
    for name, domain in numbers.items():
        if len(set(domain.values())) != len(domain) or not set(domain.values()) <= set(range(1, COLORS + 1)):
            yield f"numbers of colors in the domain of {name}: {domain}"
    for split in world.splits.rows.values():
        if split.spec.network not in world.networks.rows:
            yield f"{split.name} without a network"


def _wanted(world: World, keys: Keys) -> Iterator[tuple[bytes, str]]:
    for host in world.hosts.rows.values():
        yield from _host(host, keys)
    for router in world.routers.rows.values():
        yield from _router(router, world, keys)
    for network in world.networks.rows.values():
        yield from _network(network, world, keys)
    for port in world.ports.rows.values():
        yield from _port(port, world, keys)
    for rollout in world.rollouts.rows.values():
        yield from _rollout(rollout, world, keys)
    for group in world.groups.rows.values():
        yield from _group(group, world, keys)


def _host(host: Intent[HostSpec], keys: Keys) -> Iterator[tuple[bytes, str]]:
    yield keys.host_number(host.spec.number), host.uid
    if host.spec.vtep:
        yield keys.vtep(host.spec.vtep), host.uid


def _owned(row: Intent[Any], kind: str, world: World, keys: Keys) -> Iterator[tuple[bytes, str]]:
    tenant = world.tenants.rows[row.spec.tenant]
    yield keys.slot(tenant_uid=tenant.uid, kind=kind, slot=row.slot), row.uid
    if kind != "port":
        yield keys.reference(kind="tenant", uid=tenant.uid, by_kind=kind, by_uid=row.uid), row.uid


def _router(router: Intent[RouterSpec], world: World, keys: Keys) -> Iterator[tuple[bytes, str]]:
    yield from _owned(router, "router", world, keys)
    yield keys.domain(router.spec.domain), router.uid


def _network(network: Intent[NetworkSpec], world: World, keys: Keys) -> Iterator[tuple[bytes, str]]:
    yield from _owned(network, "network", world, keys)
    yield keys.domain(network.spec.own_domain), network.uid
    yield keys.network_number(network.spec.number), network.uid
    for segment in network.spec.segments:
        yield keys.vni(segment.vni), network.uid
    if network.spec.router:
        router = world.routers.rows[network.spec.router]
        yield keys.reference(kind="router", uid=router.uid, by_kind="network", by_uid=network.uid), network.uid


def _rollout(rollout: Intent[RolloutSpec], world: World, keys: Keys) -> Iterator[tuple[bytes, str]]:
    yield from _owned(rollout, "rollout", world, keys)
    kept = claims(rollout.spec.run)
    for network in rollout.spec.run.networks:
        if kept is Claims.ALL:
            yield keys.rollout_of(network.uid), rollout.uid
            yield keys.reference(kind="network", uid=network.uid, by_kind="rollout", by_uid=rollout.uid), rollout.uid
        if kept is not Claims.NONE:
            for _, segment in network.segments:
                yield keys.reference(kind="segment", uid=segment, by_kind="rollout", by_uid=rollout.uid), rollout.uid


def _group(group: Intent[GroupSpec], world: World, keys: Keys) -> Iterator[tuple[bytes, str]]:
    assert group.spec.tenant in world.tenants.rows, f"{group.name} has no tenant"
    if short(group.name) != "default":
        yield from _owned(group, "group", world, keys)
    message = security_pb2.SecurityGroup.FromString(store_pb2.Stored.FromString(group.stored).message)
    named = {rule.remote_group for rule in (*message.ingress, *message.egress)} - {"", group.name}
    for name in named:
        other = world.groups.rows[name]
        yield keys.reference(kind="group", uid=other.uid, by_kind="group", by_uid=group.uid), group.uid


def _port(port: Intent[PortSpec], world: World, keys: Keys) -> Iterator[tuple[bytes, str]]:
    spec = port.spec
    assert spec.network in world.networks.rows, f"{port.name} has no network"
    yield from _owned(port, "port", world, keys)
    for address in spec.addresses:
        yield keys.ip(spec.segment_uid, address), port.uid
    yield keys.mac(spec.segment_uid, spec.mac), port.uid
    referents = [("segment", spec.segment_uid), ("identity", str(spec.identity))]
    referents += [("group", world.groups.rows[name].uid) for name in spec.groups]
    members = world.identities.rows[spec.identity].members
    tenant = world.tenants.rows[spec.tenant]
    assert members == (tenant.uid, *sorted(world.groups.rows[name].uid for name in spec.groups)), port.name
    if spec.host:
        host = world.hosts.rows[spec.host]
        referents.append(("host", host.uid))
        if spec.kind is Attach.DEVICE:
            yield keys.device(host.uid, spec.where), port.uid
        else:
            own = spec.kind is Attach.NETNS
            where = f"{short(spec.tenant)}.{spec.where}" if own else spec.where
            tenant_uid = world.tenants.rows[spec.tenant].uid
            nic = keys.nic(host_uid=host.uid, namespace=where, tenant_uid=tenant_uid, interface=spec.interface)
            yield nic, port.uid
    for kind, uid in referents:
        yield keys.reference(kind=kind, uid=uid, by_kind="port", by_uid=port.uid), port.uid
