"""Intents from the store: the one place where a stored value becomes a row.

What does not parse raises ValueError (or protobuf's DecodeError): that object is absent for all readers and is named in
the log; all others go on. Fields that this build does not know stay in `Intent.stored`.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from controller.decode_policy import group_of, tier_of
from controller.decode_status import intent_name
from controller.etcd.types import KeyValue
from controller.keys import Keys
from controller.rollouts.messages import spec_of as rollout_spec
from controller.rows import (
    Address,
    Attach,
    Drain,
    HostSpec,
    Intent,
    Labels,
    NetworkSpec,
    PortSpec,
    Prefix,
    RouterSpec,
    Segment,
    SplitSpec,
    StaticRoute,
    TenantSpec,
)
from controller.rows_policy import GroupSpec, TierSpec
from tealnet.core.rows.colors import Affinity
from tealnet.store.v1 import store_pb2
from tealnet.v1 import (
    common_pb2,
    host_pb2,
    network_pb2,
    port_pb2,
    rollout_pb2,
    router_pb2,
    security_pb2,
    split_pb2,
    tenant_pb2,
)

QUARANTINE = 300
"""Seconds that a released address stays unused where the network does not say."""
INTERFACE = "eth0"

ATTACH: dict[int, Attach] = {
    common_pb2.ATTACHMENT_KIND_UNSPECIFIED: Attach.NETNS,
    common_pb2.ATTACHMENT_KIND_NETNS: Attach.NETNS,
    common_pb2.ATTACHMENT_KIND_NETNS_PATH: Attach.NETNS_PATH,
    common_pb2.ATTACHMENT_KIND_DEVICE: Attach.DEVICE,
}

AFFINITY: dict[int, Affinity] = {
    split_pb2.AFFINITY_UNSPECIFIED: Affinity.CONNECTION,
    split_pb2.AFFINITY_CONNECTION: Affinity.CONNECTION,
    split_pb2.AFFINITY_SOURCE: Affinity.SOURCE,
}

MESSAGES: dict[str, type[Any]] = {
    "tenant": tenant_pb2.Tenant,
    "host": host_pb2.Host,
    "router": router_pb2.Router,
    "network": network_pb2.Network,
    "port": port_pb2.Port,
    "split": split_pb2.TrafficSplit,
    "rollout": rollout_pb2.Rollout,
    "group": security_pb2.SecurityGroup,
    "tier": security_pb2.PolicyTier,
}
"""The API message of each kind of intent."""


def intent(kind: str, kv: KeyValue, keys: Keys) -> Intent[Any]:
    """The row of an intent; `kind` is one of MESSAGES. Raises ValueError, DecodeError."""
    parts = keys.relative(kv.key).split("/")
    name = intent_name(kind, tuple(parts[3:]))
    stored = store_pb2.Stored.FromString(kv.value)
    message = MESSAGES[kind].FromString(stored.message)
    return Intent(
        name=name,
        uid=stored.uid,
        labels=labels(getattr(message, "labels", {})),
        spec=_SPECS[kind](name, message, stored.issued),
        stored=kv.value,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        slot=stored.slot,
    )


def spec_of(kind: str, name: str, message: Any, issued: store_pb2.Issued) -> Any:
    """What an API message means, with the numbers issued for it: as `Intent.spec`. Raises ValueError."""
    return _SPECS[kind](name, message, issued)


def labels(found: Any) -> Labels:
    """A map field, sorted."""
    return tuple(sorted(found.items()))


def tenant_of(name: str) -> str:
    """tenants/acme/ports/p → tenants/acme."""
    return "/".join(name.split("/")[:2])


def address_range(text: str) -> tuple[Address, Address]:
    """`a-b`, an address or a prefix, as an inclusive range. Raises ValueError."""
    first, dash, last = text.partition("-")
    if dash:
        return ip_address(first.strip()), ip_address(last.strip())
    prefix = ip_network(text.strip())
    return prefix.network_address, prefix.broadcast_address


def attach_kind(number: int) -> Attach:
    """The kind of an enum value. Raises ValueError for one that only a newer build knows."""
    if number not in ATTACH:
        raise ValueError(f"attachment kind {number} is not known")
    return ATTACH[number]


def _time(stamp: Timestamp) -> float:
    return float(stamp.seconds + stamp.nanos / 1e9)


def _tenant(_: str, message: tenant_pb2.Tenant, __: store_pb2.Issued) -> TenantSpec:
    return TenantSpec(
        host_selector=labels(message.placement.host_selector),
        kinds=tuple(attach_kind(kind) for kind in message.placement.kinds) or (Attach.NETNS,),
        max_networks=message.quota.networks,
        max_routers=message.quota.routers,
        max_ports=message.quota.ports,
        max_rollouts=message.quota.rollouts,
        max_groups=message.quota.security_groups,
        deleting=message.state == tenant_pb2.Tenant.STATE_DELETING,
        revoked_before=_time(message.revoked_before),
    )


def _host(_: str, message: host_pb2.Host, issued: store_pb2.Issued) -> HostSpec:
    return HostSpec(
        vtep=ip_address(message.vtep) if message.vtep else None,
        number=issued.host_number,
        drained=message.drained,
        fenced=message.fenced,
        revoked_before=_time(message.revoked_before),
    )


def _router(name: str, message: router_pb2.Router, issued: store_pb2.Issued) -> RouterSpec:
    routes = tuple(StaticRoute(ip_network(r.prefix), ip_address(r.next_hop)) for r in message.routes)
    return RouterSpec(tenant_of(name), issued.domain, routes)


def _network(name: str, message: network_pb2.Network, issued: store_pb2.Issued) -> NetworkSpec:
    cidrs = tuple(ip_network(cidr) for cidr in message.cidrs)
    given = [ip_address(gateway) for gateway in message.gateways]
    quarantine = message.address_quarantine
    return NetworkSpec(
        tenant=tenant_of(name),
        cidrs=cidrs,
        gateways=tuple(gateway_of(cidr, given) for cidr in cidrs),
        reserved=tuple(address_range(text) for text in message.reserved_ranges),
        router=message.router,
        mtu=message.mtu,
        number=issued.network_number,
        own_domain=issued.domain,
        segments=tuple(Segment(s.color, s.uid, s.vni, s.color_number, s.was_base) for s in issued.segments),
        quarantine=quarantine.seconds if message.HasField("address_quarantine") else QUARANTINE,
        # Written at every creation. One that only a newer build knows is not less strict than ENFORCE.
        guarded=message.policy not in (network_pb2.Network.POLICY_UNSPECIFIED, network_pb2.Network.POLICY_OFF),
    )


def gateway_of(cidr: Prefix, given: list[Address]) -> Address:
    """The gateway that was given for a CIDR, else its first address."""
    return next((address for address in given if address in cidr), cidr.network_address + 1)


def _port(name: str, message: port_pb2.Port, issued: store_pb2.Issued) -> PortSpec:
    attachment = message.attachment
    kind = attach_kind(attachment.kind)
    where = {
        Attach.NETNS: attachment.namespace or name.rsplit("/", 1)[1],
        Attach.NETNS_PATH: attachment.path,
        Attach.DEVICE: attachment.device,
    }
    return PortSpec(
        tenant=tenant_of(name),
        network=message.network,
        segment_uid=issued.segment_uid,
        host=message.host,
        kind=kind,
        where=where[kind],
        interface="" if kind is Attach.DEVICE else attachment.interface or INTERFACE,
        addresses=tuple(ip_address(address) for address in message.addresses),
        mac=message.mac,
        allowed=tuple(ip_network(prefix) for prefix in message.allowed_addresses),
        identity=issued.identity,
        groups=tuple(message.security_groups),
    )


def _split(name: str, message: split_pb2.TrafficSplit, issued: store_pb2.Issued) -> SplitSpec:
    if message.affinity not in AFFINITY:
        raise ValueError(f"affinity {message.affinity} is not known")
    weights = {color: weight for color, weight in message.weights.items() if weight}
    closed = set(message.closed) - weights.keys()
    return SplitSpec(
        tenant=tenant_of(name),
        network=name.rpartition("/")[0],
        network_uid=issued.network_uid,
        weights=tuple(sorted(weights.items())),
        affinity=AFFINITY[message.affinity],
        closed=tuple(sorted(closed)),
        drains=tuple(
            Drain(d.color, d.timeout.seconds + d.timeout.nanos / 1e9, _time(d.begin))
            for d in message.drains
            if d.color not in weights.keys() | closed
        ),
        apply_at=message.apply_at.ToNanoseconds() if message.HasField("apply_at") else 0,
    )


def _group(name: str, message: security_pb2.SecurityGroup, _: store_pb2.Issued) -> GroupSpec:
    return group_of(tenant_of(name), message)


def _tier(_: str, message: security_pb2.PolicyTier, __: store_pb2.Issued) -> TierSpec:
    return tier_of(message, labels(message.tenant_selector))


_SPECS: dict[str, Callable[[str, Any, store_pb2.Issued], Any]] = {
    "tenant": _tenant,
    "host": _host,
    "router": _router,
    "network": _network,
    "port": _port,
    "split": _split,
    "rollout": rollout_spec,
    "group": _group,
    "tier": _tier,
}
