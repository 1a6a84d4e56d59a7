"""Networks: T1 create, T2 attach, detach and change of CIDRs, T5."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from controller import decode
from controller.allocate import LAST_NETWORK_NUMBER, held_back, without
from controller.draft import Draft
from controller.errors import Blocker, FailedPrecondition, NotFound
from controller.etcd.types import KeyValue, Page
from controller.features import l2_check as check
from controller.features.colors_check import BASE, color_fields, weight_fields
from controller.features.router_check import network_fits, routes_fit
from controller.fields import Violations, span_text
from controller.intents.base import (
    Context,
    Quota,
    holder,
    holder_of,
    issued_of,
    living_tenant,
    new_uid,
    refuse_referenced,
    release,
    stamp,
    stored,
    stored_message,
    take_domain,
    take_number,
    take_slot,
)
from controller.intents.colors import (
    begin_split,
    change_segments,
    change_split,
    check_initial,
    end_split,
    new_segments,
    number_segments,
)
from controller.intents.placement import may_use, tunnel_version
from controller.masks import OUTPUT, Policy
from controller.names import tenant_of
from controller.rows import Address, Intent, NetworkSpec, Prefix, RouterSpec, TenantSpec
from controller.world import World
from tealnet.store.v1 import store_pb2
from tealnet.v1 import network_pb2


class Networks:
    """Writer of networks."""

    kind = "network"
    policy = Policy(output=OUTPUT | {"segments", "status"}, chosen=frozenset({"gateways"}))

    def __init__(self, context: Context) -> None:
        self.context = context

    def fields(self, message: network_pb2.Network, found: Violations) -> None:
        """Each field by itself; puts the message into canonical form."""
        check.network_fields(message, found)
        color_fields(message.colors, found)
        weight_fields(message.initial_weights, "initial_weights", found)

    def create(self, draft: Draft, name: str, message: network_pb2.Network) -> None:
        """T1."""
        spec = self._shape(name, message, store_pb2.Issued())
        tenant = living_tenant(draft, tenant_of(name))
        self._carried(draft, name, message)
        uid, rng, settings = new_uid(), self.context.rng, self.context.settings
        value, world = holder(name, uid), draft.reading.world
        router = self._router(draft, name, message)
        if router:
            self._fits(draft, name, spec, router)
            self._attach(draft, router, name=name, uid=uid)
        limit = tenant.spec.max_networks or settings.quota_networks
        quota = Quota("network", limit, world.networks_by_slot)
        slot = take_slot(draft, tenant, quota, uid=uid, name=name, rng=rng)
        segments = new_segments(draft, message.colors or [BASE], value=value, context=self.context)
        number = take_number(
            draft,
            "network number",
            span=(1, LAST_NETWORK_NUMBER),
            used=lambda _: False,  # so rarely that etcd alone says it
            key_of=draft.keys.network_number,
            value=value,
            rng=rng,
        )
        issued = store_pb2.Issued(
            domain=take_domain(draft, value=value, rng=rng),
            network_number=number,
            segments=segments,
            tenant_uid=tenant.uid,
            router_uid=router.uid if router else "",
        )
        number_segments(draft, name, issued=issued, router=router)
        message.policy = message.policy or network_pb2.Network.POLICY_ENFORCE
        self._fill(message, spec, name)
        stamp(message, draft.now, created=draft.now)
        draft.create("network", name, stored(message, uid=uid, issued=issued, slot=slot))
        draft.put(draft.keys.reference(kind="tenant", uid=tenant.uid, by_kind="network", by_uid=uid), value)
        if message.colors:
            check_initial(message, has_ports=False)
            begin_split(draft, name, message, uid=uid, tenant_uid=tenant.uid)

    def update(self, draft: Draft, row: Intent[NetworkSpec], message: network_pb2.Network) -> None:
        """T2: no port or endpoint row is touched."""
        issued = issued_of(row)
        kept_gateways = list(message.gateways) == list(stored_message(row, "network").gateways)
        if kept_gateways:
            check.drop_gateways(message, decode.spec_of("network", row.name, message, issued))
        spec = self._shape(row.name, message, issued)
        attached = message.router and message.router != row.spec.router
        if attached or spec.mtu != row.spec.mtu:  # a host that came later with less room forbids no other change
            self._carried(draft, row.name, message)
        if not message.policy:  # nothing is said: as it was; networks of before there were rules stay without
            off, enforce = network_pb2.Network.POLICY_OFF, network_pb2.Network.POLICY_ENFORCE
            message.policy = enforce if row.spec.guarded else off
        self._fill(message, spec, row.name)
        self._give_up_cidrs(draft, row, spec)
        self._keep_back(draft, row, spec)
        _refuse_spoken_for(draft, row, spec)
        reading = draft.reading
        router = self._router(draft, row.name, message)
        moved = message.router != row.spec.router
        if router and (moved or (spec.cidrs, spec.gateways, spec.mtu) != _domain_part(row.spec)):
            self._fits(draft, row.name, spec, router)
            draft.touch_guard(router.uid)
        if moved and row.spec.router:
            draft.delete(self._router_reference(draft, issued.router_uid, row.uid))
            reading.guard(issued.router_uid)
            draft.touch_guard(issued.router_uid)
        if moved and router:
            self._attach(draft, router, name=row.name, uid=row.uid)
        issued.router_uid = router.uid if router else ""
        change_segments(draft, row, message.colors, issued=issued, context=self.context)
        if moved or list(message.colors) != list(row.spec.colors):
            number_segments(draft, row.name, issued=issued, router=router)
        stamp(message, draft.now)
        draft.replace("network", row, message=message, issued=issued)
        change_split(draft, row, message)

    def delete(self, draft: Draft, row: Intent[NetworkSpec]) -> None:
        """T5: only without ports. VNIs and domain are released, not free: hosts may still know their old meaning."""
        issued, keys = issued_of(row), draft.keys
        refuse_referenced(draft, row.name, kind="network", uid=row.uid)
        for segment in issued.segments:
            refuse_referenced(draft, row.name, kind="segment", uid=segment.uid)
            release(draft, keys.vni(segment.vni), name=row.name, uid=row.uid)
        draft.remove("network", row)
        end_split(draft, row.name)
        release(draft, keys.domain(issued.domain), name=row.name, uid=row.uid)
        draft.delete(keys.network_number(issued.network_number))
        draft.delete(keys.slot(tenant_uid=issued.tenant_uid, kind="network", slot=row.slot))
        draft.delete(keys.reference(kind="tenant", uid=issued.tenant_uid, by_kind="network", by_uid=row.uid))
        if issued.router_uid:
            draft.delete(self._router_reference(draft, issued.router_uid, row.uid))
            draft.reading.guard(issued.router_uid)
            draft.touch_guard(issued.router_uid)

    # ---- checks

    def _shape(self, name: str, message: network_pb2.Network, issued: store_pb2.Issued) -> NetworkSpec:
        found = Violations("network")
        check.same_tenant(message.router, name, "router", found)
        spec: NetworkSpec = decode.spec_of("network", name, message, issued)
        check.network_shape(message, spec, found)
        found.finish()
        return spec

    def _carried(self, draft: Draft, name: str, message: network_pb2.Network) -> None:
        """The MTU against what the underlays of hosts have room for, as they report it now."""
        found = Violations("network")
        mtu = message.mtu or self.context.settings.default_mtu
        tenant = draft.reading.peek("tenant", tenant_of(name))
        check.mtu_limit(mtu, _underlays(draft.reading.world, tenant), found)
        found.finish()

    def _fill(self, message: network_pb2.Network, spec: NetworkSpec, name: str) -> None:
        """Write down what the server has chosen."""
        message.name = name
        check.fill_gateways(message, spec)
        if not message.HasField("address_quarantine"):
            message.address_quarantine.seconds = self.context.settings.quarantine

    def _router(self, draft: Draft, name: str, message: network_pb2.Network) -> Intent[RouterSpec] | None:
        if not message.router:
            return None
        router = draft.reading.exists("router", message.router)
        if router is None:
            raise NotFound(message.router, field="network.router")
        return router

    def _fits(self, draft: Draft, name: str, spec: NetworkSpec, router: Intent[RouterSpec]) -> None:
        """Against the other networks and the routes of the domain: a set, which the guard covers."""
        reading, default_mtu = draft.reading, self.context.settings.default_mtu
        reading.guard(router.uid)
        others = reading.where("network", reading.world.networks_by_router, router.name)
        network_fits(name, spec, mtu=spec.mtu or default_mtu, others=others, default_mtu=default_mtu)
        routes_fit(router.spec.routes, [Intent(name, "", (), spec, b"", 0, 0)])

    # ---- keys

    def _attach(self, draft: Draft, router: Intent[RouterSpec], *, name: str, uid: str) -> None:
        draft.put(self._router_reference(draft, router.uid, uid), holder(name, uid))
        draft.touch_guard(router.uid)

    def _router_reference(self, draft: Draft, router_uid: str, uid: str) -> bytes:
        return draft.keys.reference(kind="router", uid=router_uid, by_kind="network", by_uid=uid)

    def _give_up_cidrs(self, draft: Draft, row: Intent[NetworkSpec], spec: NetworkSpec) -> None:
        """No address may be in use, or in quarantine, that the network would no longer have."""
        for first, last in uncovered(row.spec.cidrs, spec.cidrs):
            for segment in row.spec.segments:
                gone = span_text(first, last)
                draft.must_be_empty(*draft.keys.ips(segment.uid, first, last), _in_use(row.name, gone))

    def _keep_back(self, draft: Draft, row: Intent[NetworkSpec], spec: NetworkSpec) -> None:
        """No port may have an address that becomes a gateway, network or broadcast address."""
        for address in sorted(_held_back(spec) - _held_back(row.spec), key=str):
            for segment in row.spec.segments:
                draft.must_be_absent(draft.keys.ip(segment.uid, address), _address_held(row.name, address))


def uncovered(old: Iterable[Prefix], new: Iterable[Prefix]) -> Iterator[tuple[Address, Address]]:
    """The ranges of addresses of old prefixes that no new one has, first and last: few, however the prefixes lie."""
    kept = list(new)
    for cidr in old:
        make = type(cidr.network_address)
        holes = [(int(k.network_address), int(k.broadcast_address)) for k in kept if k.version == cidr.version]
        for first, last in without((int(cidr.network_address), int(cidr.broadcast_address)), holes):
            yield make(first), make(last)


def _refuse_spoken_for(draft: Draft, row: Intent[NetworkSpec], spec: NetworkSpec) -> None:
    """No port may send as what becomes a gateway.

    Not compared: a port that is given such a prefix at this very moment is refused its next change instead.
    """
    world = draft.reading.world
    for gateway in sorted(set(spec.gateways) - set(row.spec.gateways), key=str):
        for name in sorted(world.ports_by_network.keys(row.name)):
            for prefix in world.ports.rows[name].spec.allowed:
                if prefix.version == gateway.version and gateway in prefix:
                    text = f"{gateway} cannot be a gateway of {row.name}: {name} may send from {prefix}"
                    blocker = Blocker("ADDRESS_ALLOWED", name, text)
                    raise FailedPrecondition(text, [blocker], reason="ADDRESS_ALLOWED")


def _held_back(spec: NetworkSpec) -> set[Address]:
    pairs = zip(spec.cidrs, spec.gateways, strict=True)
    return {address for cidr, gateway in pairs for address in held_back(cidr, gateway)}


def _domain_part(spec: NetworkSpec) -> tuple[tuple[Prefix, ...], tuple[Address, ...], int]:
    return spec.cidrs, spec.gateways, spec.mtu


def _underlays(world: World, tenant: Intent[TenantSpec] | None) -> Iterator[tuple[str, int, int]]:
    """What hosts report; one that the tenant may not place on has no name for it (A28)."""
    for host in world.hosts.rows.values():
        status = world.host_status.rows.get(host.uid)
        if status and status.underlay_mtu and not host.spec.fenced:
            name = host.name if tenant and may_use(tenant.spec, host) else "another host"
            yield name, status.underlay_mtu, tunnel_version(host.spec)


def _in_use(name: str, gone: str) -> Callable[[Page], FailedPrecondition]:
    def refuse(page: Page) -> FailedPrecondition:
        blockers = []
        for kv in page.kvs:
            held = holder_of(kv)
            how = "had an address of it that is in quarantine" if held.released else "has an address of it"
            blockers.append(Blocker("ADDRESS_IN_USE", held.name, f"{held.name} {how}"))
        names = "; ".join(blocker.text for blocker in blockers)
        more = f"; {page.count - len(blockers)} more" if page.count > len(blockers) else ""
        return FailedPrecondition(f"{gone} cannot leave {name}: {names}{more}", blockers, reason="CIDR_IN_USE")

    return refuse


def _address_held(name: str, address: Address) -> Callable[[KeyValue], FailedPrecondition]:
    def refuse(found: KeyValue) -> FailedPrecondition:
        other = holder_of(found).name
        text = f"{address} cannot be kept back in {name}: {other} has it, or it is in quarantine"
        return FailedPrecondition(text, [Blocker("ADDRESS_IN_USE", other, text)], reason="ADDRESS_IN_USE")

    return refuse
