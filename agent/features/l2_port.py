"""One local port: its link, its addresses and routes, and the flows that guard what it may send."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address

from agent import names
from agent.objects import Addressing, Link, Marks, Route
from agent.openflow import actions as act
from agent.openflow.flow import Flow
from agent.openflow.oxm import Value, match
from agent.pipeline import FROM_FLAGS, ND_SOLICITATION, ROUTER_LINK_LOCAL, Feature, Flag, Stage, flow, goto, mac_int
from tealnet.core.rows.stream import LocalPort, Segment, Subnet


def link_of(port: LocalPort, *, device: str, mtu: int) -> Link:
    """The port's link; the MTU is its segment's. A device of the pool keeps its mark: whose it is, its place tells."""
    own = device == names.device(port)
    return Link(
        device=device,
        netns=names.netns(port),
        interface=port.interface,
        mac=port.mac,
        mtu=mtu,
        port_uid=port.uid if own else Marks.POOL,
        tenant=port.tenant if own else "",
        spare=None if own else names.spare_netns(device),
    )


def link_local(mac: str) -> IPv6Address:
    """The EUI-64 link-local address of a MAC (RFC 4291, appendix A)."""
    b = bytes.fromhex(mac.replace(":", ""))
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes((b[0] ^ 2, b[1], b[2], 0xFF, 0xFE, b[3], b[4], b[5])))


@dataclass(frozen=True, slots=True)
class Interface:
    """A port, its host-side device, its segment, and all segments of its routing domain."""

    port: LocalPort
    device: str
    segment: Segment
    domain: tuple[Segment, ...]

    def subnets(self, version: int) -> list[Subnet]:
        """Those of an IP version in which the port has an address: the kernel's own routes of the interface."""
        subnets = (s for s in self.segment.subnets if s.prefix.version == version)
        return [s for s in subnets if any(address in s.prefix for address in self.port.addresses)]


def addressing_of(interface: Interface, *, beside: Iterable[Interface]) -> Addressing:
    """Addresses and routes inside the workload namespace; `beside` are its other interfaces."""
    port, segment = interface.port, interface.segment
    addresses: list[str] = []
    for address in port.addresses:
        subnet = next((s for s in segment.subnets if address in s.prefix), None)
        addresses.append(f"{address}/{subnet.prefix.prefixlen if subnet else address.max_prefixlen}")
    routes = [route for version in (4, 6) for route in _routes(interface, beside=beside, version=version)]
    return Addressing(
        device=interface.device,
        netns=names.netns(port),
        interface=port.interface,
        addresses=tuple(sorted(addresses)),
        routes=tuple(sorted(routes, key=lambda route: (route.prefix, route.gateway))),
    )


def _routes(interface: Interface, *, beside: Iterable[Interface], version: int) -> list[Route]:
    """An interface's share of the routes of a namespace, in which no prefix may stand twice.

    The default route goes by the first interface (by name); of the others the first of each further routing domain
    leads to the domain's other networks.
    """
    shared = [one for one in (interface, *beside) if one.subnets(version)]
    shared.sort(key=lambda one: (one.port.interface, one.port.uid))
    taken = {subnet.prefix for one in shared for subnet in one.subnets(version)}
    domains: set[int] = set()
    for number, one in enumerate(shared):
        routes: list[Route] = []
        gateway = "fe80::1" if version == 6 else str(one.subnets(version)[0].gateway)
        if number == 0:
            routes.append(Route("0.0.0.0/0" if version == 4 else "::/0", gateway))
        elif one.segment.domain not in domains:
            others = {s.prefix for other in one.domain for s in other.subnets if s.prefix.version == version}
            routes += [Route(str(prefix), gateway) for prefix in others - taken]
            taken |= others
        domains.add(one.segment.domain)
        if one.port.uid == interface.port.uid:
            return routes
    return []


def port_flows(port: LocalPort, *, segment: Segment, ofport: int, flags: int) -> Iterator[Flow]:
    """Who the sender is (CLASSIFY), what it may send (PORT_SECURITY), and no answer for its own addresses."""
    flags = flags & FROM_FLAGS | (Flag.SOURCE_COLORED if segment.color else 0)
    actions = (
        act.set_field("metadata", segment.vni << 40 | segment.color << 32 | segment.domain)
        + act.set_field("reg10", port.identity)
        + act.set_field("reg11", ofport)
        + act.set_field("reg13", flags)
        + act.set_field("reg14", segment.network_number)
        + goto(Stage.PORT_SECURITY)
    )
    yield _l2(stage=Stage.CLASSIFY, priority=90, match_=match(in_port=ofport), actions=actions)
    yield from _port_security(port, ofport=ofport)
    for address in (*port.addresses, link_local(port.mac)):
        own = (
            match(in_port=ofport, arp=True, arp_tpa=int(address))
            if address.version == 4
            else match(in_port=ofport, icmp6=True, icmpv6_type=ND_SOLICITATION, nd_target=int(address))
        )
        # Address probes and duplicate address detection must stay silent.
        yield _l2(stage=Stage.SERVICE, priority=110, match_=own, actions=b"")


def _port_security(port: LocalPort, *, ofport: int) -> Iterator[Flow]:
    """Always with vlan_tci=0: a plain `ip` match takes tagged IP, too."""
    mac = mac_int(port.mac)
    sender: dict[str, Value] = {"in_port": ofport, "vlan_tci": 0, "eth_src": mac}
    allow = goto(Stage.SERVICE)

    def let(priority: int, **fields: Value) -> Flow:
        return _l2(stage=Stage.PORT_SECURITY, priority=priority, match_=match(**sender, **fields), actions=allow)

    v4 = [address for address in port.addresses if address.version == 4]
    v6 = [address for address in port.addresses if address.version == 6]
    for address in v4:
        yield let(90, arp=True, arp_sha=mac, arp_spa=int(address))
    if v4:
        yield let(90, arp=True, arp_sha=mac, arp_spa=0)  # address probe (RFC 5227)
    for source in (*v4, *(s for s in port.sources if s.version == 4)):
        yield let(90, ip=True, nw_src=str(source))
    local = link_local(port.mac)
    for source6 in (*v6, *(s for s in port.sources if s.version == 6)):
        yield let(80, ipv6=True, ipv6_src=str(source6))
    # From its link-local address only to the router: no service between ports is offered there.
    yield let(80, ipv6=True, ipv6_src=int(local), ipv6_dst=int(ROUTER_LINK_LOCAL))
    for own in (*v6, local):
        for lladdr in (mac, 0):
            yield let(90, icmp6=True, icmpv6_type=ND_SOLICITATION, ipv6_src=int(own), nd_sll=lladdr)


def _l2(*, stage: Stage, priority: int, match_: bytes, actions: bytes) -> Flow:
    return flow(stage=stage, priority=priority, match_=match_, actions=actions, feature=Feature.L2)
