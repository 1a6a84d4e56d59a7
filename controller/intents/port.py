"""Ports: T3 create, T4 update and move, T5 delete."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import NamedTuple

from controller import decode
from controller.draft import Draft
from controller.errors import Blocker, FailedPrecondition, NotFound, invalid
from controller.etcd.types import KeyValue, Page, prefix_end
from controller.features import l2_check as check
from controller.features.colors_check import segment_of
from controller.features.security_check import port_groups, port_groups_default
from controller.fields import Violations
from controller.intents import addresses
from controller.intents.addresses import NOWHERE
from controller.intents.base import (
    Context,
    Quota,
    holder,
    holder_of,
    issued_of,
    living_tenant,
    new_uid,
    stamp,
    stored,
    take_slot,
)
from controller.intents.identity import identity_of
from controller.intents.placement import check_kind, check_room, place
from controller.intents.references import existing_group, refer
from controller.keys import Keys
from controller.masks import OUTPUT, Policy
from controller.names import short, tenant_of
from controller.rows import Address, Attach, Intent, NetworkSpec, PortSpec
from tealnet.store.v1 import store_pb2
from tealnet.v1 import port_pb2


class Own(NamedTuple):
    """A port as keys name it."""

    name: str
    uid: str

    @property
    def value(self) -> bytes:
        """What stands in the keys it holds."""
        return holder(self.name, self.uid)


class Ports:
    """Writer of ports."""

    kind = "port"
    policy = Policy(output=OUTPUT | {"status"}, fixed=frozenset({"network"}), chosen=frozenset({"addresses", "mac"}))

    def __init__(self, context: Context) -> None:
        self.context = context

    def fields(self, message: port_pb2.Port, found: Violations) -> None:
        """Each field by itself; puts the message into canonical form."""
        check.port_fields(message, found)
        port_groups(message, found)

    # ---- T3

    def create(self, draft: Draft, name: str, message: port_pb2.Port) -> None:
        """T3. The network's row is compared whole: CIDRs, gateways and segments hold when the port comes into being."""
        if not message.network:
            raise invalid("port.network", "is missing: every port is of a network, tenants/TENANT/networks/NETWORK")
        check.port_defaults(message, short(name))
        port_groups_default(message, name)
        found = Violations("port")
        check.same_tenant(message.network, name, "network", found)
        _own_groups(message, name, found)
        found.finish()
        tenant = living_tenant(draft, tenant_of(name))
        network = draft.reading.row("network", message.network)
        if network is None:
            raise NotFound(message.network, field="port.network")
        segment = segment_of(network, message.color)
        message.color = ""  # the segment's, whose name may change
        spec = self._shape(name, message, network.spec, store_pb2.Issued(segment_uid=segment.uid))
        check_kind(tenant, spec.kind)
        host = place(draft, tenant, host=message.host)
        if host:
            check_room(draft, host, network, default_mtu=self.context.settings.default_mtu)
        own = Own(name, new_uid())
        limit = tenant.spec.max_ports or self.context.settings.quota_ports
        quota = Quota("port", limit, draft.reading.world.ports_by_slot)
        slot = take_slot(draft, tenant, quota, uid=own.uid, name=name, rng=self.context.rng)
        self._addresses(draft, network, message, spec=spec, own=own)
        groups = _groups(draft, message)
        issued = store_pb2.Issued(
            identity=identity_of(draft, tenant.uid, groups, rng=self.context.rng),
            group_uids=groups,
            segment_uid=segment.uid,
            network_uid=network.uid,
            host_uid=host.uid if host else "",
            tenant_uid=tenant.uid,
        )
        if host:
            self._bind(draft, spec, own, host_uid=host.uid, tenant_uid=tenant.uid)
        self._refer(draft, issued, own)
        message.name = name
        stamp(message, draft.now, created=draft.now)
        draft.create("port", name, stored(message, uid=own.uid, issued=issued, slot=slot))

    def _addresses(
        self, draft: Draft, network: Intent[NetworkSpec], message: port_pb2.Port, *, spec: PortSpec, own: Own
    ) -> None:
        """Claim what was asked for, choose the rest, and write it into the message."""
        given, segment = list(spec.addresses), spec.segment_uid
        for address in given:
            addresses.claim(draft, network, address, segment=segment, name=own.name, uid=own.uid)
        chosen = given or addresses.choose(draft, network, segment=segment, value=own.value, context=self.context)
        message.addresses[:] = [str(address) for address in chosen]
        if message.mac:
            self._claim_mac(draft, segment, message.mac, own)
        else:
            message.mac = addresses.choose_mac(draft, network, chosen[0], segment=segment, value=own.value)

    # ---- T4

    def update(self, draft: Draft, row: Intent[PortSpec], message: port_pb2.Port) -> None:
        """T4. A host that is left keeps a tombstone: the proof by which it removes the port."""
        issued, old, own = issued_of(row), row.spec, Own(row.name, row.uid)
        network = draft.reading.row("network", old.network)
        if network is None:  # only in a store that was edited by hand
            raise NotFound(old.network, field="port.network")
        check.port_defaults(message, short(row.name))
        self._same_color(row, message, network)
        spec = self._shape(row.name, message, network.spec, issued)
        moved = spec.host != old.host
        host_uid = issued.host_uid
        if moved or (spec.kind, spec.where, spec.interface) != (old.kind, old.where, old.interface):
            tenant = draft.reading.row("tenant", spec.tenant)
            if tenant is None:
                raise NotFound(spec.tenant)
            check_kind(tenant, spec.kind)
            if moved:
                host = place(draft, tenant, host=spec.host)
                if host:
                    check_room(draft, host, network, default_mtu=self.context.settings.default_mtu)
                host_uid = host.uid if host else ""
        self._change_addresses(draft, network, row, spec, host_uid=issued.host_uid)
        if spec.mac != old.mac:
            draft.delete(draft.keys.mac(issued.segment_uid, old.mac))
            self._claim_mac(draft, issued.segment_uid, spec.mac, own)
        before = place_key(draft.keys, old, issued.host_uid, tenant_uid=issued.tenant_uid)
        if before != place_key(draft.keys, spec, host_uid, tenant_uid=issued.tenant_uid):
            if before:
                draft.delete(before)
            self._bind(draft, spec, own, host_uid=host_uid, tenant_uid=issued.tenant_uid)
        if moved:
            self._move(draft, row, network, issued, host_uid)
        issued.host_uid = host_uid
        if tuple(message.security_groups) != old.groups:
            self._regroup(draft, row, message, issued)
        stamp(message, draft.now)
        draft.replace("port", row, message=message, issued=issued)

    def _change_addresses(
        self, draft: Draft, network: Intent[NetworkSpec], row: Intent[PortSpec], spec: PortSpec, *, host_uid: str
    ) -> None:
        """New addresses are claimed; each that goes has a tombstone of its own: quarantine only, never proof."""
        for address in spec.addresses:
            if address not in row.spec.addresses:
                segment = row.spec.segment_uid
                addresses.claim(draft, network, address, segment=segment, name=row.name, uid=row.uid)
        for address in row.spec.addresses:
            if address not in spec.addresses:
                key = draft.keys.address_tombstone(host_uid=host_uid or NOWHERE, port_uid=row.uid, address=address)
                self._bury(draft, row, key, [address], network=network, host_uid=host_uid, reason="ADDRESS_REMOVED")

    def _move(
        self, draft: Draft, row: Intent[PortSpec], network: Intent[NetworkSpec], issued: store_pb2.Issued, host_uid: str
    ) -> None:
        keys, own = draft.keys, Own(row.name, row.uid)
        if issued.host_uid:
            draft.delete(keys.reference(kind="host", uid=issued.host_uid, by_kind="port", by_uid=row.uid))
            reason = "MOVED" if host_uid else "UNBOUND"
            key = keys.tombstone(issued.host_uid, row.uid)
            self._bury(draft, row, key, [], network=network, host_uid=issued.host_uid, reason=reason, moved_to=host_uid)
        if host_uid:
            draft.delete(keys.tombstone(host_uid, row.uid))
            draft.put(keys.reference(kind="host", uid=host_uid, by_kind="port", by_uid=row.uid), own.value)

    def _regroup(self, draft: Draft, row: Intent[PortSpec], message: port_pb2.Port, issued: store_pb2.Issued) -> None:
        """Other groups are another identity. A port of before there were groups keeps its own until this is asked."""
        found = Violations("port")
        port_groups_default(message, row.name)
        _own_groups(message, row.name, found)
        found.finish()
        groups = _groups(draft, message)
        own = Own(row.name, row.uid)
        refer(draft, by_kind="port", by_uid=row.uid, value=own.value, before=issued.group_uids, now=groups)
        number = identity_of(draft, issued.tenant_uid, groups, rng=self.context.rng)
        held, wanted = (
            draft.keys.reference(kind="identity", uid=str(n), by_kind="port", by_uid=row.uid)
            for n in (issued.identity, number)
        )
        draft.delete(held)
        draft.put(wanted, own.value)
        issued.identity, issued.group_uids[:] = number, groups

    # ---- T5

    def delete(self, draft: Draft, row: Intent[PortSpec]) -> None:
        """T5. The tombstone is what the host needs to see before it removes the port."""
        issued, keys = issued_of(row), draft.keys
        draft.remove("port", row)
        draft.delete(keys.port_status(row.uid))
        tombstone = keys.tombstone(issued.host_uid or NOWHERE, row.uid)
        network = draft.reading.peek("network", row.spec.network)
        self._bury(
            draft, row, tombstone, list(row.spec.addresses), network=network, host_uid=issued.host_uid, reason="DELETED"
        )
        draft.delete(keys.mac(issued.segment_uid, row.spec.mac))
        if taken := place_key(draft.keys, row.spec, issued.host_uid, tenant_uid=issued.tenant_uid):
            draft.delete(taken)
        draft.delete(keys.slot(tenant_uid=issued.tenant_uid, kind="port", slot=row.slot))
        for kind, uid in referents(issued):
            draft.delete(keys.reference(kind=kind, uid=uid, by_kind="port", by_uid=row.uid))

    # ---- parts

    def _same_color(self, row: Intent[PortSpec], message: port_pb2.Port, network: Intent[NetworkSpec]) -> None:
        color = network.spec.color_of(row.spec.segment_uid)
        if message.color not in ("", color):
            now = f"it is {color!r}" if color else f"{network.name} has no colors"
            text = f"cannot be changed; {now}. Create another port in {message.color[:80]!r}"
            raise invalid("port.color", text)
        message.color = ""

    def _shape(self, name: str, message: port_pb2.Port, network: NetworkSpec, issued: store_pb2.Issued) -> PortSpec:
        found = Violations("port")
        spec: PortSpec = decode.spec_of("port", name, message, issued)
        check.attachment_shape(message.attachment, spec.kind, found)
        check.addresses_shape([ip_address(text) for text in message.addresses], network, found)
        check.allowed_shape(spec.allowed, network, found)
        found.finish()
        return spec

    def _bury(
        self, draft: Draft, row: Intent[PortSpec], key: bytes, gone: list[Address], *,
        network: Intent[NetworkSpec] | None, host_uid: str, reason: str, moved_to: str = "",
    ) -> None:  # fmt: skip
        """Write a tombstone, and put addresses into quarantine under it."""
        waiting = addresses.release(
            draft, gone, segment=row.spec.segment_uid, tombstone=key, name=row.name, uid=row.uid
        )
        tombstone = store_pb2.Tombstone(
            port_name=row.name,
            reason=reason,
            moved_to=moved_to,
            address_keys=waiting,
            time=draft.now,
            acked=not host_uid,
            network_uid=issued_of(row).network_uid,
            quarantine_seconds=network.spec.quarantine if network else decode.QUARANTINE,
            domain=_domain(draft, network) if network else 0,
        )
        draft.put(key, tombstone.SerializeToString())

    def _claim_mac(self, draft: Draft, segment_uid: str, mac: str, own: Own) -> None:
        def refuse(found: KeyValue) -> FailedPrecondition:
            other = holder_of(found).name
            text = f"{mac} is the MAC of {other} in the same network"
            return FailedPrecondition(text, [Blocker("MAC_IN_USE", other, text)], reason="MAC_IN_USE")

        draft.claim(draft.keys.mac(segment_uid, mac), own.value, refuse=refuse)

    def _bind(self, draft: Draft, spec: PortSpec, own: Own, *, host_uid: str, tenant_uid: str) -> None:
        """Claim the interface or device. A namespace named by its path has interfaces of one tenant only."""
        key = place_key(draft.keys, spec, host_uid, tenant_uid=tenant_uid)
        if key is None:
            return
        draft.claim(key, own.value, refuse=_place_taken(spec, own))
        if spec.kind is Attach.NETNS_PATH:
            every = draft.keys.nics(host_uid, _namespace(spec))
            mine = every + f"{tenant_uid}/".encode()
            for start, end in ((every, mine), (prefix_end(mine), prefix_end(every))):
                draft.must_be_empty(start, end, _namespace_taken(spec))

    def _refer(self, draft: Draft, issued: store_pb2.Issued, own: Own) -> None:
        for kind, uid in referents(issued):
            draft.put(draft.keys.reference(kind=kind, uid=uid, by_kind="port", by_uid=own.uid), own.value)


def _domain(draft: Draft, network: Intent[NetworkSpec]) -> int:
    """The routing domain of a network, as it is known now."""
    router = draft.reading.peek("router", network.spec.router) if network.spec.router else None
    domain: int = router.spec.domain if router else network.spec.own_domain
    return domain


def _namespace(spec: PortSpec) -> str:
    """A namespace as hosts tell it apart: the agent names those it makes <tenant>.<namespace>; a path has slashes."""
    if spec.kind is Attach.NETNS:
        return f"{short(spec.tenant)}.{spec.where}"
    return spec.where.removeprefix("/var") if spec.where.startswith("/var/run/") else spec.where


def place_key(keys: Keys, spec: PortSpec, host_uid: str, *, tenant_uid: str) -> bytes | None:
    """The key by which one port alone has an interface or device of a host."""
    if not host_uid:
        return None
    if spec.kind is Attach.DEVICE:
        return keys.device(host_uid, spec.where)
    return keys.nic(host_uid=host_uid, namespace=_namespace(spec), tenant_uid=tenant_uid, interface=spec.interface)


def referents(issued: store_pb2.Issued) -> list[tuple[str, str]]:
    """What a port refers to: (kind, uid)."""
    pairs = [("segment", issued.segment_uid), ("identity", str(issued.identity))]
    pairs += [("group", uid) for uid in issued.group_uids]
    return [*pairs, ("host", issued.host_uid)] if issued.host_uid else pairs


def _own_groups(message: port_pb2.Port, name: str, found: Violations) -> None:
    for i, group in enumerate(message.security_groups):
        check.same_tenant(group, name, f"security_groups[{i}]", found)


def _groups(draft: Draft, message: port_pb2.Port) -> list[str]:
    """The uids of a port's groups, sorted. Raises NotFound."""
    names = enumerate(message.security_groups)
    return sorted(existing_group(draft, name, field=f"port.security_groups[{i}]").uid for i, name in names)


def _place_taken(spec: PortSpec, own: Own) -> Callable[[KeyValue], FailedPrecondition]:
    def refuse(found: KeyValue) -> FailedPrecondition:
        other = holder_of(found).name
        who = other if tenant_of(other) == tenant_of(own.name) else "another port"
        what = f"interface {spec.interface} in {spec.where}" if spec.interface else f"device {spec.where}"
        text = f"{what} on {spec.host} is taken by {who}"
        return FailedPrecondition(text, [Blocker("INTERFACE_IN_USE", who, text)], reason="INTERFACE_IN_USE")

    return refuse


def _namespace_taken(spec: PortSpec) -> Callable[[Page], FailedPrecondition]:
    def refuse(_: Page) -> FailedPrecondition:
        text = f"{spec.where} on {spec.host} has an interface of another tenant"
        return FailedPrecondition(text, [Blocker("NAMESPACE_IN_USE", spec.where, text)], reason="NAMESPACE_IN_USE")

    return refuse
