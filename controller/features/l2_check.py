"""Networks and ports: what is wrong with a request. Pure; the world is seen through `Reading` only.

Three steps: fields (each by itself, put into canonical form), shape (fields against each other), world (against other
objects). The first two need no store.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from controller import fields
from controller.allocate import ROUTER_MAC, held_back
from controller.decode import INTERFACE, gateway_of
from controller.fields import Violations
from controller.names import kind_of, tenant_of
from controller.rows import Address, Attach, NetworkSpec, Prefix
from tealnet.v1 import common_pb2, network_pb2, port_pb2

MOST_CIDRS = 16
MOST_RESERVED = 64
MOST_ADDRESSES = 16
MOST_ALLOWED = 32
MTU_V4 = 576  # RFC 791: every host must take datagrams of this size
MTU_V6 = 1280  # RFC 8200, 5
MTU_MOST = 9000
_LENGTHS = {4: (8, 30), 6: (16, 126)}  # shortest and longest prefix of a network: at least one address for a port
_SHORTEST_ALLOWED = {4: 8, 6: 16}
_LONGEST_QUARANTINE = 30 * 86_400

_DOMAIN = re.compile(r"(?=.{1,253}$)[A-Za-z0-9][A-Za-z0-9-]{0,62}(\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*\.?")
_KINDS = frozenset(common_pb2.AttachmentKind.values())
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")  # IFNAMSIZ is 16 with its end
_PATH = re.compile(r"(/[A-Za-z0-9._@+=,-]+)+")
_AGENTS_NAMESPACE = re.compile(r"/(var/)?run/netns/[^/.]+\.[^/]+")
_NO_PATHS = ("/proc/", "/sys/", "/dev/")
# Devices that are surely not a workload's: bridges, tunnels, our own, and the names of physical interfaces.
_NO_DEVICES = re.compile(
    r"lo|(br|ovs|vxlan|genev|gre|erspan|tn|bond|team|eth|en[opsx]|wl|ww|docker|virbr)[0-9A-Za-z._-]*"
)


# ---- networks


def network_fields(message: network_pb2.Network, found: Violations) -> None:
    """Each field by itself; the message is put into canonical form."""
    fields.common(message, found)
    _cidrs(message, found)
    gateways = [fields.address(g, f"gateways[{i}]", found) for i, g in enumerate(message.gateways)]
    message.gateways[:] = [str(g) for g in gateways if g]
    _reserved(message, found)
    if message.router and kind_of(message.router) != "router":
        found.add("router", f"{message.router[:200]!r} is not a name like tenants/TENANT/routers/ROUTER")
    if message.mtu and not MTU_V4 <= message.mtu <= MTU_MOST:
        found.add("mtu", f"{message.mtu} is not within {MTU_V4}…{MTU_MOST}; 0 means the default")
    _dns(message.dns, found)
    if message.policy not in network_pb2.Network.Policy.values():
        found.add("policy", f"{message.policy} is not known")
    if message.HasField("address_quarantine"):
        quarantine = message.address_quarantine
        if quarantine.nanos or not 0 <= quarantine.seconds <= _LONGEST_QUARANTINE:
            found.add("address_quarantine", f"whole seconds within 0…{_LONGEST_QUARANTINE} are expected")


def _cidrs(message: network_pb2.Network, found: Violations) -> None:
    if len(message.cidrs) > MOST_CIDRS:
        found.add("cidrs", f"at most {MOST_CIDRS}")
        return
    parsed: list[Prefix] = []
    for i, text in enumerate(message.cidrs):
        if (cidr := fields.prefix(text, f"cidrs[{i}]", found)) is None:
            continue
        shortest, longest = _LENGTHS[cidr.version]
        if not shortest <= cidr.prefixlen <= longest:
            found.add(f"cidrs[{i}]", f"{cidr}: the length must be within /{shortest}…/{longest}")
        fields.unicast(cidr, f"cidrs[{i}]", found)
        parsed.append(cidr)
    message.cidrs[:] = [str(cidr) for cidr in parsed]


def _reserved(message: network_pb2.Network, found: Violations) -> None:
    if len(message.reserved_ranges) > MOST_RESERVED:
        found.add("reserved_ranges", f"at most {MOST_RESERVED}")
        return
    spans = [fields.span(text, f"reserved_ranges[{i}]", found) for i, text in enumerate(message.reserved_ranges)]
    if all(spans):
        message.reserved_ranges[:] = [fields.span_text(*span) for span in spans if span]
        fields.distinct(message.reserved_ranges, "reserved_ranges", found)


def _dns(dns: network_pb2.Dns, found: Violations) -> None:
    if len(dns.servers) > 8 or len(dns.search_domains) > 8:
        found.add("dns", "at most 8 servers and 8 search domains")
        return
    servers = [fields.address(text, f"dns.servers[{i}]", found) for i, text in enumerate(dns.servers)]
    if dns.servers:
        dns.servers[:] = [str(server) for server in servers if server]
    if all(servers):
        fields.distinct(dns.servers, "dns.servers", found)
    for i, domain in enumerate(dns.search_domains):
        if not _DOMAIN.fullmatch(domain):
            found.add(f"dns.search_domains[{i}]", f"{domain[:80]!r} is not a domain name")
    fields.distinct(dns.search_domains, "dns.search_domains", found)


def network_shape(message: network_pb2.Network, spec: NetworkSpec, found: Violations) -> None:
    """Fields against each other."""
    if not spec.cidrs:
        found.add("cidrs", "at least one prefix is needed, for example 10.0.0.0/24")
    for i, cidr in enumerate(spec.cidrs):
        if twin := overlapping(cidr, spec.cidrs[:i]):
            found.add(f"cidrs[{i}]", f"{cidr} overlaps {twin} of the same network")
    if not found.found:
        _gateways(message, spec, found)
    for i, (first, last) in enumerate(spec.reserved):
        cidr_of_first = fields.within(first, spec.cidrs)
        if cidr_of_first is None or last not in cidr_of_first:
            text = f"{fields.span_text(first, last)} does not lie in one of the CIDRs"
            found.add(f"reserved_ranges[{i}]", text)
    if message.mtu and message.mtu < MTU_V6 and any(cidr.version == 6 for cidr in spec.cidrs):
        found.add("mtu", f"{message.mtu} is below {MTU_V6}, which IPv6 needs")


def _gateways(message: network_pb2.Network, spec: NetworkSpec, found: Violations) -> None:
    taken: dict[Prefix, str] = {}
    for i, text in enumerate(message.gateways):
        gateway = fields.address(text, f"gateways[{i}]", found)
        cidr = fields.within(gateway, spec.cidrs) if gateway else None
        if gateway is None:
            continue
        if cidr is None:
            found.add(f"gateways[{i}]", f"{text} lies in none of the CIDRs")
        elif cidr in taken:
            found.add(f"gateways[{i}]", f"{cidr} has the gateway {taken[cidr]} already")
        elif gateway in (cidr.network_address, cidr.broadcast_address):
            found.add(f"gateways[{i}]", f"{text} is the first or last address of {cidr}")
        else:
            taken[cidr] = text


def drop_gateways(message: network_pb2.Network, spec: NetworkSpec) -> None:
    """Take out gateways whose CIDR is no more."""
    kept = [text for text in message.gateways if (a := _parsed(text)) is None or fields.within(a, spec.cidrs)]
    message.gateways[:] = kept


def fill_gateways(message: network_pb2.Network, spec: NetworkSpec) -> None:
    """Write down one gateway for each CIDR, in their order."""
    given = [a for text in message.gateways if (a := _parsed(text))]
    message.gateways[:] = [str(gateway_of(cidr, given)) for cidr in spec.cidrs]


def _parsed(text: str) -> Address | None:
    return fields.address(text, "", Violations())


def overlapping(prefix: Prefix, others: Iterable[Prefix]) -> Prefix | None:
    """The first of others that shares addresses with it."""
    for other in others:
        if other.version == prefix.version and other.overlaps(prefix):
            return other
    return None


def tunnel_room(underlay: int, version: int) -> int:
    """The largest packet that an underlay of this MTU carries inside a tunnel of this IP version.

    VXLAN takes 50 bytes over IPv4, 70 over IPv6 (RFC 7348, 5: the inner Ethernet header counts, the outer does not).
    """
    return underlay - (50 if version == 4 else 70)


def mtu_limit(message_mtu: int, hosts: Iterable[tuple[str, int, int]], found: Violations) -> None:
    """The effective MTU against what hosts' underlays carry: (host, underlay MTU, IP version of its tunnels)."""
    room = [(tunnel_room(underlay, version), host, underlay) for host, underlay, version in hosts if underlay]
    if room and message_mtu > min(room)[0]:
        most, host, underlay = min(room)
        found.add(
            "mtu", f"{message_mtu} is more than {most}, what the underlay of {host} (MTU {underlay}) has room for"
        )


# ---- ports


def port_fields(message: port_pb2.Port, found: Violations) -> None:
    """Each field by itself; the message is put into canonical form."""
    fields.common(message, found)
    if message.network and kind_of(message.network) != "network":
        found.add("network", f"{message.network[:200]!r} is not a name like tenants/TENANT/networks/NETWORK")
    if message.color and not fields.NAME.fullmatch(message.color):
        found.add("color", f"{message.color[:80]!r} is not a name: {fields.NAME_HELP}")
    if message.host and kind_of(message.host) != "host":
        found.add("host", f"{message.host[:200]!r} is not a name like hosts/HOST")
    if message.mac:
        message.mac = fields.mac(message.mac, "mac", found)
        if message.mac == ROUTER_MAC:
            found.add("mac", f"{ROUTER_MAC} is the routers' own")
    if len(message.addresses) > MOST_ADDRESSES:
        found.add("addresses", f"at most {MOST_ADDRESSES}")
    elif message.addresses:
        parsed = [fields.address(text, f"addresses[{i}]", found) for i, text in enumerate(message.addresses)]
        message.addresses[:] = [str(address) for address in parsed if address]
    if message.allowed_addresses:
        _allowed(message, found)
    if message.HasField("attachment"):
        _attachment_fields(message.attachment, found)


def _allowed(message: port_pb2.Port, found: Violations) -> None:
    if len(message.allowed_addresses) > MOST_ALLOWED:
        found.add("allowed_addresses", f"at most {MOST_ALLOWED}")
        return
    parsed: list[Prefix] = []
    for i, text in enumerate(message.allowed_addresses):
        field = f"allowed_addresses[{i}]"
        if (prefix := fields.prefix(text, field, found)) is None:
            continue
        if prefix.prefixlen < _SHORTEST_ALLOWED[prefix.version]:
            found.add(field, f"{prefix} is too wide: /{_SHORTEST_ALLOWED[prefix.version]} at the shortest")
        else:
            fields.unicast(prefix, field, found)
        parsed.append(prefix)
    if len(parsed) == len(message.allowed_addresses):
        message.allowed_addresses[:] = [str(prefix) for prefix in parsed]
        fields.distinct(message.allowed_addresses, "allowed_addresses", found)


def _attachment_fields(attachment: port_pb2.Attachment, found: Violations) -> None:
    if attachment.kind not in _KINDS:
        found.add("attachment.kind", f"{attachment.kind} is not known")
    if attachment.namespace and not fields.NAME.fullmatch(attachment.namespace):
        found.add("attachment.namespace", f"{attachment.namespace[:80]!r} is not a name: {fields.NAME_HELP}")
    if attachment.interface and (
        not _DEVICE.fullmatch(attachment.interface) or attachment.interface in ("lo", "all", "default")
    ):
        found.add(
            "attachment.interface", f"{attachment.interface[:40]!r} is not an interface name (at most 15 characters)"
        )
    if attachment.device and not _DEVICE.fullmatch(attachment.device):
        found.add("attachment.device", f"{attachment.device[:40]!r} is not a device name (at most 15 characters)")
    elif _NO_DEVICES.fullmatch(attachment.device):
        found.add("attachment.device", f"{attachment.device} is never given to a workload")
    if attachment.path:
        _path(attachment.path, found)


def _path(path: str, found: Violations) -> None:
    parts = path.split("/")
    if len(path) > 255 or not _PATH.fullmatch(path) or "." in parts or ".." in parts:
        found.add("attachment.path", f"{path[:80]!r} is not an absolute, normal path of letters, digits and ._@+=,-")
    elif path.startswith(_NO_PATHS):
        found.add("attachment.path", f"{path} is refused: namespaces of processes are never entered")
    elif _AGENTS_NAMESPACE.fullmatch(path):
        found.add("attachment.path", f"{path} is a namespace that an agent made; use kind NETNS and its name")


def port_defaults(message: port_pb2.Port, ident: str) -> None:
    """Write down what is meant where the request says nothing."""
    attachment = message.attachment
    if not attachment.kind:
        attachment.kind = common_pb2.ATTACHMENT_KIND_NETNS
    if attachment.kind == common_pb2.ATTACHMENT_KIND_NETNS and not attachment.namespace:
        attachment.namespace = ident
    if attachment.kind != common_pb2.ATTACHMENT_KIND_DEVICE and not attachment.interface:
        attachment.interface = INTERFACE


_OF_KIND: dict[Attach, tuple[set[str], set[str]]] = {  # needed, allowed
    Attach.NETNS: ({"namespace", "interface"}, {"namespace", "interface"}),
    Attach.NETNS_PATH: ({"path", "interface"}, {"path", "interface"}),
    Attach.DEVICE: ({"device"}, {"device"}),
}


def attachment_shape(attachment: port_pb2.Attachment, kind: Attach, found: Violations) -> None:
    """The fields that a kind of attachment needs and may have."""
    needed, allowed = _OF_KIND[kind]
    for field in ("namespace", "interface", "path", "device"):
        value: Any = getattr(attachment, field)
        if value and field not in allowed:
            found.add(f"attachment.{field}", f"is not for kind {kind.value}; leave it out")
        elif not value and field in needed:
            found.add(f"attachment.{field}", f"is missing: kind {kind.value} needs it")


def addresses_shape(addresses: list[Address], network: NetworkSpec, found: Violations) -> None:
    """Asked-for addresses against the network. An address in a reserved range may be asked for."""
    cidrs = ", ".join(str(cidr) for cidr in network.cidrs)
    for i, address in enumerate(addresses):
        field = f"addresses[{i}]"
        cidr = fields.within(address, network.cidrs)
        if address in addresses[:i]:
            found.add(field, f"{address} stands here twice")
        elif cidr is None:
            found.add(field, f"{address} lies in none of the network's CIDRs ({cidrs})")
        elif address in held_back(cidr, gateway_of(cidr, list(network.gateways))):
            what = "the gateway" if address in network.gateways else "the first or last address"
            found.add(field, f"{address} is {what} of {cidr}")


def allowed_shape(allowed: Iterable[Prefix], network: NetworkSpec, found: Violations) -> None:
    """A workload never speaks for its gateway."""
    for i, prefix in enumerate(allowed):
        for gateway in network.gateways:
            if gateway.version == prefix.version and gateway in prefix:
                found.add(f"allowed_addresses[{i}]", f"{prefix} has the network's gateway {gateway}")


def same_tenant(name: str, owner: str, field: str, found: Violations) -> None:
    """What an object refers to must be its tenant's."""
    if name and tenant_of(name) != tenant_of(owner):
        found.add(field, f"{name} is not of {tenant_of(owner)}")
