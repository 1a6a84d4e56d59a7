"""Rows of the resources that travel from controller to agent, parsed once at the edge.

A resource is a key `<kind>/<ids>` and a body, an encoded message of tealnet.agent.v1. `decode` makes a row of it or
says why not: an invalid resource is absent and reported, it never stops the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from google.protobuf.message import DecodeError

from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows import parse
from tealnet.core.rows.colors import Weights, parse_weights
from tealnet.core.rows.parse import Address, BadResource, Prefix
from tealnet.core.rows.security import Policy, Rules, parse_policy, parse_rules

KINDS = ("hostpeer", "segment", "endpoint", "localport", "route", "weights", "rules")

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,14}")  # IFNAMSIZ is 16 with the final zero
_PATH = re.compile(r"(/[A-Za-z0-9_.@:+-]+)+")
# Names that agents give (agent.names) to what they make for ports: no other port may lay a claim to them.
_AGENTS_DEVICE = re.compile(r"tn[0-9a-f]{12}")
_AGENTS_NETNS = re.compile(r"/(var/)?run/netns/[^/.]+\.[^/.]+")


class Attach(Enum):
    """How a port is attached on its host."""

    NETNS = "NETNS"
    NETNS_PATH = "NETNS_PATH"
    DEVICE = "DEVICE"


class Subnet(NamedTuple):
    """One CIDR of a segment's network, and its gateway's address in it."""

    prefix: Prefix
    gateway: Address


@dataclass(frozen=True, slots=True)
class HostPeer:
    """Another host (or this one): tunnel address, and its number 1…65534 in tunnels."""

    uid: str  # 32 hex
    vtep: Address
    number: int


@dataclass(frozen=True, slots=True)
class Segment:
    """The realisation of a network in one color; 0 = a network without colors."""

    vni: int
    domain: int
    color: int
    network_number: int
    mtu: int
    subnets: tuple[Subnet, ...]
    base: bool = False  # what has no color belongs to this color of its network


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What others know of a port."""

    uid: str  # of the port, 32 hex
    vni: int
    addresses: tuple[Address, ...]
    mac: str  # lower case with colons
    host_uid: str  # 32 hex
    previous_host_uid: str  # "" unless the port is being moved
    identity: int
    sources: tuple[Prefix, ...]  # what it may send from besides its addresses


@dataclass(frozen=True, slots=True)
class LocalPort:
    """A port bound to this host: all that is needed to plug and guard it."""

    uid: str
    vni: int
    addresses: tuple[Address, ...]
    mac: str
    identity: int
    sources: tuple[Prefix, ...]
    tenant: str
    name: str
    kind: Attach
    where: str  # NETNS: name within the tenant; NETNS_PATH: path; DEVICE: device
    interface: str  # inside the namespace; "" for DEVICE
    policy: Policy = Policy.OFF


@dataclass(frozen=True, slots=True)
class Route:
    """A static route of a routing domain."""

    domain: int
    prefix: Prefix
    next_hop: Address


Row = HostPeer | Segment | Endpoint | LocalPort | Route | Weights | Rules


def hostpeer_key(uid: str) -> str:
    """Resource key of a host peer."""
    return f"hostpeer/{uid}"


def segment_key(vni: int) -> str:
    """Resource key of a segment."""
    return f"segment/{vni}"


def endpoint_key(uid: str) -> str:
    """Resource key of an endpoint, by the port's uid."""
    return f"endpoint/{uid}"


def localport_key(uid: str) -> str:
    """Resource key of a local port, by the port's uid."""
    return f"localport/{uid}"


def route_key(domain: int, prefix: Prefix) -> str:
    """Resource key of a route."""
    return f"route/{domain}/{prefix}"


def decode(key: str, body: bytes) -> Row:
    """The row of a resource. Raises BadResource with the reason; never anything else."""
    kind, _, ident = key.partition("/")
    parser = _PARSERS.get(kind)
    if parser is None:
        raise BadResource(f"unknown kind of resource: {kind}")
    try:
        return parser(ident, body)
    except DecodeError as error:
        raise BadResource(f"not a message: {error}") from error
    except BadResource:
        raise
    except ValueError as error:
        raise BadResource(str(error)) from error


def _hostpeer(ident: str, body: bytes) -> HostPeer:
    message = pb.HostPeer.FromString(body)
    return HostPeer(
        uid=parse.uid_text(ident),
        vtep=parse.address(message.vtep),
        number=parse.within(message.number, 1, 65534, "number"),
    )


def _segment(ident: str, body: bytes) -> Segment:
    message = pb.Segment.FromString(body)
    if not ident.isdecimal() or str(int(ident)) != ident:
        raise BadResource(f"not a VNI: {ident}")
    return Segment(
        vni=parse.vni(int(ident)),
        domain=parse.within(message.domain, 1, 2**32 - 1, "domain"),
        color=parse.within(message.color, 0, 8, "color"),
        network_number=parse.within(message.network_number, 1, 2**31 - 1, "network number"),
        mtu=parse.within(message.mtu, 576, 65535, "MTU"),
        subnets=tuple(_subnet(subnet) for subnet in message.subnets),
        base=message.base,
    )


def _endpoint(ident: str, body: bytes) -> Endpoint:
    message = pb.Endpoint.FromString(body)
    return Endpoint(
        uid=parse.uid_text(ident),
        vni=parse.vni(message.vni),
        addresses=parse.addresses(message.addresses),
        mac=parse.mac(message.mac),
        host_uid=parse.uid(message.host_uid),
        previous_host_uid=parse.uid(message.previous_host_uid) if message.previous_host_uid else "",
        identity=message.identity,
        sources=tuple(parse.prefix(prefix) for prefix in message.sources),
    )


def _localport(ident: str, body: bytes) -> LocalPort:
    message = pb.LocalPort.FromString(body)
    name = parse.matching(_NAME, message.name, "name")
    kind, where, interface = _attachment(message.attachment, name)
    return LocalPort(
        uid=parse.uid_text(ident),
        vni=parse.vni(message.vni),
        addresses=parse.addresses(message.addresses),
        mac=parse.mac(message.mac),
        identity=message.identity,
        sources=tuple(parse.prefix(prefix) for prefix in message.sources),
        tenant=parse.matching(_NAME, message.tenant, "tenant"),
        name=name,
        kind=kind,
        where=where,
        interface=interface,
        policy=parse_policy(message.policy),
    )


def _route(ident: str, body: bytes) -> Route:
    message = pb.Route.FromString(body)
    route = Route(
        domain=parse.within(message.domain, 1, 2**32 - 1, "domain"),
        prefix=parse.prefix(message.prefix),
        next_hop=parse.address(message.next_hop),
    )
    if ident != f"{route.domain}/{route.prefix}":
        raise BadResource(f"the key says {ident}, the body {route.domain}/{route.prefix}")
    if route.next_hop.version != route.prefix.version:
        raise BadResource("prefix and next hop are of different families")
    return route


def _attachment(message: pb.LocalAttachment, name: str) -> tuple[Attach, str, str]:
    if message.kind == pb.LocalAttachment.KIND_NETNS:
        where, kind = parse.matching(_NAME, message.where or name, "namespace"), Attach.NETNS
    elif message.kind == pb.LocalAttachment.KIND_NETNS_PATH:
        where, kind = parse.matching(_PATH, message.where, "path"), Attach.NETNS_PATH
        if any(part in (".", "..") for part in where.split("/")):
            raise BadResource(f"not a plain path: {where}")
        if _AGENTS_NETNS.fullmatch(where):
            raise BadResource(f"{where}: a namespace that an agent makes is no path of somebody's")
    elif message.kind == pb.LocalAttachment.KIND_DEVICE:
        if _AGENTS_DEVICE.fullmatch(message.where):
            raise BadResource(f"{message.where}: a device that an agent makes belongs to its port alone")
        return Attach.DEVICE, parse.matching(_DEVICE, message.where, "device"), ""
    else:
        raise BadResource(f"unknown kind of attachment: {message.kind}")
    return kind, where, parse.matching(_DEVICE, message.interface, "interface")


def _subnet(message: pb.Subnet) -> Subnet:
    subnet = Subnet(parse.prefix(message.prefix), parse.address(message.gateway))
    if subnet.gateway not in subnet.prefix:
        raise BadResource(f"gateway {subnet.gateway} is not in {subnet.prefix}")
    return subnet


_PARSERS: dict[str, Callable[[str, bytes], Row]] = {
    "hostpeer": _hostpeer,
    "segment": _segment,
    "endpoint": _endpoint,
    "localport": _localport,
    "route": _route,
    "weights": parse_weights,
    "rules": parse_rules,
}
