"""Stored values of intents, made directly: for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from controller.etcd.types import Put, put
from controller.keys import Keys
from tealnet.store.v1 import store_pb2
from tealnet.v1 import host_pb2, network_pb2, port_pb2, router_pb2, security_pb2, split_pb2, tenant_pb2


def uid_of(name: str) -> str:
    """The same uid for the same name."""
    return blake2b(name.encode(), digest_size=16).hexdigest()


def mac_of(name: str) -> str:
    return "02:" + ":".join(f"{b:02x}" for b in blake2b(name.encode(), digest_size=5).digest())


@dataclass(frozen=True)
class Maker:
    keys: Keys

    def _put(self, name: str, message: bytes, issued: store_pb2.Issued) -> Put:
        stored = store_pb2.Stored(message=message, uid=uid_of(name), issued=issued)
        return put(self.keys.intent(name), stored.SerializeToString())

    def tenant(self, own: str, **labels: str) -> Put:
        name = f"tenants/{own}"
        return self._put(name, tenant_pb2.Tenant(name=name, labels=labels).SerializeToString(), store_pb2.Issued())

    def host(self, own: str, number: int, *, vtep: str = "", fenced: bool = False) -> Put:
        name = f"hosts/{own}"
        message = host_pb2.Host(name=name, vtep=vtep, fenced=fenced)
        return self._put(name, message.SerializeToString(), store_pb2.Issued(host_number=number))

    def router(self, name: str, domain: int, routes: Sequence[tuple[str, str]] = ()) -> Put:
        found = [router_pb2.StaticRoute(prefix=prefix, next_hop=hop) for prefix, hop in routes]
        message = router_pb2.Router(name=name, routes=found)
        return self._put(name, message.SerializeToString(), store_pb2.Issued(domain=domain))

    def network(
        self,
        name: str,
        number: int,
        cidrs: Sequence[str] = ("10.0.0.0/24", "fd00::/64"),
        router: str = "",
        colors: Sequence[tuple[str, int]] = (),
        policy: network_pb2.Network.Policy = network_pb2.Network.POLICY_OFF,
        **more: Any,
    ) -> Put:
        """Domain 1000 + number, VNI 5000 + number. The first of `colors` (name, number) was its base, and has its VNI;
        those of the others are 100 apart. `more` are fields as in the API."""
        names = [color for color, _ in colors]
        message = network_pb2.Network(name=name, cidrs=cidrs, router=router, colors=names, policy=policy, **more)
        segments = [
            store_pb2.IssuedSegment(
                color=color,
                uid=uid_of(f"{name}/{color if place else 'base'}"),
                vni=5000 + number + 100 * place,
                color_number=own,
                was_base=bool(own) and not place,
            )
            for place, (color, own) in enumerate(colors or [("base", 0)])
        ]
        issued = store_pb2.Issued(domain=1000 + number, network_number=number, segments=segments)
        return self._put(name, message.SerializeToString(), issued)

    def split(
        self,
        network: str,
        weights: dict[str, int],
        *,
        closed: Sequence[str] = (),
        affinity: split_pb2.Affinity = split_pb2.AFFINITY_CONNECTION,
        apply_at: int = 0,
    ) -> Put:
        name = f"{network}/trafficSplit"
        message = split_pb2.TrafficSplit(name=name, weights=weights, closed=closed, affinity=affinity)
        if apply_at:
            message.apply_at.FromNanoseconds(apply_at)
        return self._put(name, message.SerializeToString(), store_pb2.Issued(network_uid=uid_of(network)))

    def port(
        self,
        name: str,
        network: str,
        addresses: Sequence[str],
        *,
        host: str = "",
        allowed: Sequence[str] = (),
        segment: str = "base",
        identity: int = 4711,
    ) -> Put:
        """`segment`: base, also when it has a name by now, or the color of another one."""
        message = port_pb2.Port(
            name=name,
            network=network,
            host=f"hosts/{host}" if host else "",
            addresses=addresses,
            mac=mac_of(name),
            allowed_addresses=allowed,
        )
        issued = store_pb2.Issued(
            identity=identity,
            segment_uid=uid_of(f"{network}/{segment}"),
            network_uid=uid_of(network),
            host_uid=uid_of(f"hosts/{host}"),
        )
        return self._put(name, message.SerializeToString(), issued)

    def group(self, name: str, **body: Any) -> Put:
        message = security_pb2.SecurityGroup(name=name, **body)
        return self._put(name, message.SerializeToString(), store_pb2.Issued())

    def tier(self, own: str, **body: Any) -> Put:
        name = f"policyTiers/{own}"
        return self._put(name, security_pb2.PolicyTier(name=name, **body).SerializeToString(), store_pb2.Issued())

    def identity(self, number: int, tenant: str, *groups: str) -> Put:
        """Of groups by resource name."""
        row = store_pb2.Identity(tenant_uid=uid_of(tenant), group_uids=sorted(map(uid_of, groups)))
        return put(self.keys.identity(number), row.SerializeToString())

    def tombstone(self, host: str, port: str, *, moved_to: str = "", network: str = "", due: bool = False) -> Put:
        row = store_pb2.Tombstone(
            port_name=port,
            reason="moved" if moved_to else "deleted",
            moved_to=uid_of(f"hosts/{moved_to}") if moved_to else "",
            network_uid=uid_of(network),
            due=due,
        )
        return put(self.keys.tombstone(uid_of(f"hosts/{host}"), uid_of(port)), row.SerializeToString())

    def applied(self, port: str, host: str, version: bytes = b"v") -> Put:
        row = store_pb2.PortStatusRow(host_uid=uid_of(f"hosts/{host}"), applied=version, tried=version)
        return put(self.keys.port_status(uid_of(port)), row.SerializeToString())
