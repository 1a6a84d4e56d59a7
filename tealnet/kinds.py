"""The kinds of objects a user sees, as data: what the SDK and the CLI need to treat them alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tealnet.v1 import (
    host_pb2,
    host_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    port_pb2,
    port_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    security_pb2,
    security_pb2_grpc,
    split_pb2,
    split_pb2_grpc,
    tenant_pb2,
    tenant_pb2_grpc,
)

_SPLIT = "/trafficSplit"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind: `name` securityGroup, `plural` securityGroups, `title` SecurityGroup; `owned` by a tenant or global.

    `written`: users create, change and delete its objects by name, also with documents.
    """

    name: str
    plural: str
    title: str
    title_plural: str
    owned: bool
    aliases: tuple[str, ...]
    message: type[Any]
    messages: Any  # the module with its requests
    stub: Callable[[Any], Any]
    written: bool = True

    @property
    def field(self) -> str:
        """What an object is called in messages: security_group."""
        return re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", self.name)

    @property
    def words(self) -> str:
        """In a sentence: security group."""
        return self.field.replace("_", " ")

    def request(self, verb: str) -> Any:
        """An empty request of a standard method: Create, Get, List, Update, Delete."""
        suffix = self.title_plural if verb == "List" else self.title
        return getattr(self.messages, f"{verb}{suffix}Request")()

    def method(self, stub: Any, verb: str) -> Callable[..., Any]:
        """A standard method of the kind's service."""
        method: Callable[..., Any] = getattr(stub, verb + (self.title_plural if verb == "List" else self.title))
        return method

    def full_name(self, parent: str, ident: str) -> str:
        """tenants/acme + web → tenants/acme/networks/web; a split has the name of its network."""
        if not self.written:
            return f"{parent}/{NETWORK.plural}/{ident}{_SPLIT}"
        return f"{parent}/{self.plural}/{ident}" if self.owned else f"{self.plural}/{ident}"


TENANT = Kind(
    "tenant", "tenants", "Tenant", "Tenants", False, ("tn",), tenant_pb2.Tenant, tenant_pb2,
    tenant_pb2_grpc.TenantServiceStub,
)  # fmt: skip
HOST = Kind("host", "hosts", "Host", "Hosts", False, (), host_pb2.Host, host_pb2, host_pb2_grpc.HostServiceStub)
ROUTER = Kind(
    "router", "routers", "Router", "Routers", True, ("rt",), router_pb2.Router, router_pb2,
    router_pb2_grpc.RouterServiceStub,
)  # fmt: skip
NETWORK = Kind(
    "network", "networks", "Network", "Networks", True, ("net",), network_pb2.Network, network_pb2,
    network_pb2_grpc.NetworkServiceStub,
)  # fmt: skip
GROUP = Kind(
    "securityGroup", "securityGroups", "SecurityGroup", "SecurityGroups", True, ("group", "groups", "sg"),
    security_pb2.SecurityGroup, security_pb2, security_pb2_grpc.SecurityGroupServiceStub,
)  # fmt: skip
TIER = Kind(
    "policyTier", "policyTiers", "PolicyTier", "PolicyTiers", False, ("tier", "tiers"),
    security_pb2.PolicyTier, security_pb2, security_pb2_grpc.PolicyTierServiceStub,
)  # fmt: skip
PORT = Kind("port", "ports", "Port", "Ports", True, ("po",), port_pb2.Port, port_pb2, port_pb2_grpc.PortServiceStub)
SPLIT = Kind(
    "split", "splits", "TrafficSplit", "TrafficSplits", True, ("trafficsplit", "trafficsplits"),
    split_pb2.TrafficSplit, split_pb2, split_pb2_grpc.TrafficSplitServiceStub, written=False,
)  # fmt: skip

ROLLOUT = Kind(
    "rollout", "rollouts", "Rollout", "Rollouts", True, ("ro",), rollout_pb2.Rollout, rollout_pb2,
    rollout_pb2_grpc.RolloutServiceStub,
)  # fmt: skip

# In the order in which they can be created (A26 of the design review); delete in reverse.
KINDS = (HOST, TENANT, TIER, ROUTER, NETWORK, GROUP, PORT, SPLIT, ROLLOUT)
BY_WORD = {
    word: kind
    for kind in KINDS
    for word in (
        kind.name, kind.plural, kind.name.lower(), kind.plural.lower(), kind.field, kind.title, *kind.aliases
    )
}  # fmt: skip
_PLURALS = {kind.plural: kind for kind in KINDS if kind.written}


def kind_of(name: str) -> Kind:
    """The kind of a resource name. Raises ValueError when it is none."""
    if name.endswith(_SPLIT) and kind_of(name.removesuffix(_SPLIT)) is NETWORK:
        return SPLIT
    parts = name.split("/")
    kind = _PLURALS.get(parts[-2]) if len(parts) in (2, 4) and all(parts) else None
    if kind is not None and kind.owned == (len(parts) == 4) and (not kind.owned or parts[0] == "tenants"):
        return kind
    owned = "|".join(kind.plural for kind in _PLURALS.values() if kind.owned)
    raise ValueError(f"not a resource name: {name!r} (expected tenants/T, hosts/H or tenants/T/{owned}/N)")


def split_of(network: str) -> str:
    """The split of a network: tenants/acme/networks/web → tenants/acme/networks/web/trafficSplit."""
    return network + _SPLIT
