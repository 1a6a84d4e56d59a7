"""Routers: what is wrong with static routes, and with the networks and routes of one domain together. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from controller import fields
from controller.errors import Blocker, FailedPrecondition
from controller.features.l2_check import overlapping
from controller.fields import Violations
from controller.rows import Intent, NetworkSpec, RouterSpec, StaticRoute
from tealnet.v1 import router_pb2

MOST_ROUTES = 256


def router_fields(message: router_pb2.Router, found: Violations) -> None:
    """Each field by itself; the message is put into canonical form.

    A next hop is the address of a port of an attached network. The port need not exist yet: until it does, and the
    network is attached, packets for the prefix are dropped.
    """
    fields.common(message, found)
    if len(message.routes) > MOST_ROUTES:
        found.add("routes", f"at most {MOST_ROUTES}")
        return
    for i, route in enumerate(message.routes):
        prefix = fields.prefix(route.prefix, f"routes[{i}].prefix", found)
        hop = fields.address(route.next_hop, f"routes[{i}].next_hop", found)
        if prefix is None or hop is None:
            continue
        fields.unicast(prefix, f"routes[{i}].prefix", found)
        if prefix.version != hop.version:
            found.add(f"routes[{i}].next_hop", f"{hop} and {prefix} are of different IP versions")
        elif hop in prefix:
            found.add(f"routes[{i}].next_hop", f"{hop} lies in {prefix} itself")
        route.prefix, route.next_hop = str(prefix), str(hop)


def router_shape(spec: RouterSpec, found: Violations) -> None:
    """Routes against each other: a longer prefix inside a shorter one is fine, the same twice is not."""
    seen: dict[object, int] = {}
    for i, route in enumerate(spec.routes):
        if route.prefix in seen:
            found.add(f"routes[{i}].prefix", f"{route.prefix} stands in routes[{seen[route.prefix]}] already")
        seen[route.prefix] = i


def routes_fit(routes: Iterable[StaticRoute], networks: Iterable[Intent[NetworkSpec]]) -> None:
    """Static routes against attached networks. Raises FailedPrecondition that names each conflict."""
    blockers: list[Blocker] = []
    networks = list(networks)
    for route in routes:
        for network in networks:
            if cidr := overlapping(route.prefix, network.spec.cidrs):
                text = f"the route to {route.prefix} overlaps {cidr} of {network.name}"
                blockers.append(Blocker("PREFIX_OVERLAP", network.name, text))
            if route.next_hop in network.spec.gateways:
                text = f"the next hop {route.next_hop} is the gateway of {network.name}, not a port"
                blockers.append(Blocker("NEXT_HOP_IS_GATEWAY", network.name, text))
    _refuse(blockers, "routes and networks of a router must not overlap")


def network_fits(
    name: str, spec: NetworkSpec, *, mtu: int, others: Iterable[Intent[NetworkSpec]], default_mtu: int
) -> None:
    """A network against the others of its routing domain. Raises FailedPrecondition that names each conflict."""
    blockers: list[Blocker] = []
    for other in others:
        if other.name == name:
            continue
        pairs = ((cidr, overlapping(cidr, other.spec.cidrs)) for cidr in spec.cidrs)
        blockers += [
            Blocker("CIDR_OVERLAP", other.name, f"{cidr} overlaps {twin} of {other.name}")
            for cidr, twin in pairs
            if twin
        ]
        theirs = other.spec.mtu or default_mtu
        if theirs != mtu:
            text = f"the MTU is {mtu}, that of {other.name} is {theirs}; all networks of a router have one"
            blockers.append(Blocker("MTU_DIFFERS", other.name, text))
    _refuse(blockers, "networks of a router must fit together")


def _refuse(blockers: list[Blocker], text: str) -> None:
    if blockers:
        shown = "; ".join(blocker.text for blocker in blockers[:5])
        raise FailedPrecondition(f"{text}: {shown}", blockers[:20], reason=blockers[0].type)
