"""Distributed routing: between the networks of a routing domain, on the sender's host, in flows.

Routed is what a local sender addresses to the router's MAC: the TTL goes down once (RFC 1812, 5.3.1), there and never
for what comes from a tunnel. Longest prefix first: priority = 2 × prefix length (+ 3 routed, + 2 within a network).
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.desired import Pairs, Wants
from agent.inputs import Inputs
from agent.openflow import actions as act
from agent.openflow.flow import Flow
from agent.openflow.oxm import Value, match
from agent.pipeline import (
    FROM_PORT,
    FROM_TUNNEL,
    ROUTER_MAC_INT,
    Address,
    Feature,
    Stage,
    echo_reply,
    flow,
    goto,
    key_of,
    load_key_v4,
)
from tealnet.core.rows.stream import Route, Segment
from tealnet.core.tables import Graph, Read


def declare(graph: Graph, inputs: Inputs) -> list[Wants]:
    """Everything this room wants."""

    def segment_flows(read: Read, vni: int) -> Pairs | None:
        segment = read.get(inputs.segments, vni)
        return tuple((f.cookie, f) for f in _network(segment)) if segment else None

    def route_flows(read: Read, key: str) -> Pairs | None:
        route = read.get(inputs.routes, key)
        return tuple((f.cookie, f) for f in _static(route)) if route else None

    return [
        Wants("flow", graph.derive(inputs.segments, segment_flows), "segment"),
        Wants("flow", graph.derive(inputs.routes, route_flows), "route"),
    ]


def _route(*, priority: int, match_: bytes, actions: bytes) -> Flow:
    return flow(stage=Stage.ROUTE, priority=priority, match_=match_, actions=actions, feature=Feature.ROUTER)


def _destination(prefix: str, version: int) -> dict[str, Value]:
    return {"ip": True, "nw_dst": prefix} if version == 4 else {"ipv6": True, "ipv6_dst": prefix}


def _hop() -> bytes:
    return act.dec_ttl() + act.set_field("eth_src", ROUTER_MAC_INT)


def _network(segment: Segment) -> Iterator[Flow]:
    """To a network of the domain by way of the router, and the router's own answers to echo requests."""
    domain = (segment.domain, 0xFFFFFFFF)
    for prefix, gateway in segment.subnets:
        version = prefix.version
        key = load_key_v4("ip_dst") if version == 4 else act.move("ipv6_dst", "xxreg0")
        yield _route(
            priority=2 * prefix.prefixlen + 3,
            match_=match(
                metadata=domain, reg13=FROM_PORT, eth_dst=ROUTER_MAC_INT, **_destination(str(prefix), version)
            ),
            actions=_hop() + key + goto(Stage.COLOR),
        )
        yield _route(
            priority=1000,
            match_=match(metadata=domain, reg13=FROM_PORT, eth_dst=ROUTER_MAC_INT, **_echo(gateway)),
            actions=echo_reply(gateway),
        )


def _echo(gateway: Address) -> dict[str, Value]:
    if gateway.version == 4:
        return {"icmp": True, "icmp_type": 8, "nw_dst": str(gateway)}
    return {"icmp6": True, "icmpv6_type": 128, "ipv6_dst": str(gateway)}


def _static(route: Route) -> Iterator[Flow]:
    """By way of a port: the look-up's key is the next hop's address, here and at the next hop's host."""
    domain = (route.domain, 0xFFFFFFFF)
    fields = _destination(str(route.prefix), route.prefix.version)
    onward = act.set_field("xxreg0", key_of(route.next_hop)) + goto(Stage.COLOR)
    priority = 2 * route.prefix.prefixlen + 2
    yield _route(
        priority=priority + 1,
        match_=match(metadata=domain, reg13=FROM_PORT, eth_dst=ROUTER_MAC_INT, **fields),
        actions=_hop() + onward,
    )
    yield _route(priority=priority, match_=match(metadata=domain, reg13=FROM_TUNNEL, **fields), actions=onward)
