"""Networks on a host: bridge and tunnel, local ports and their guards, endpoints, ARP and neighbour discovery.

A port is plugged into silence and opened last: its flows are wanted only when OVS reports the number that was issued
for it and, on netdev, the guard before the kernel's own stack is confirmed. Closed by default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent import names
from agent.conntrack import colored, conntrack_flows
from agent.desired import Pairs, Wants
from agent.features.l2_port import Interface, addressing_of, link_of, port_flows
from agent.inputs import THIS, Inputs
from agent.objects import Bridge, Guard, Marks, Namespace, OvsPort, Tunnel, Zone
from agent.openflow import actions as act
from agent.openflow.flow import Flow
from agent.openflow.oxm import Value, match
from agent.pipeline import (
    COLOR_MASK,
    DOMAIN_COLOR_MASK,
    FROM_FLAGS,
    FROM_PORT,
    FROM_TUNNEL,
    GATEWAY_HOST,
    ND_SOLICITATION,
    ROUTER_MAC_INT,
    TO_FLAGS,
    Address,
    Feature,
    Flag,
    Stage,
    base_flows,
    domain_color,
    flow,
    goto,
    key_of,
    load_key_v4,
    mac_int,
)
from tealnet.core.rows.security import Policy
from tealnet.core.rows.stream import Attach, Endpoint, LocalPort, Segment
from tealnet.core.tables import Graph, Read

UDP_PINNED = 300  # seconds of silence after which UDP counts as a new connection


def pairs(flows: Iterable[Flow]) -> Pairs:
    """Flows by their identity on the device."""
    return tuple((f.cookie, f) for f in flows)


def declare(graph: Graph, inputs: Inputs) -> list[Wants]:
    """Everything this room wants, by layer."""

    def namespace(read: Read, uid: str) -> Pairs | None:
        port = read.get(inputs.localports, uid)
        if port is None or port.kind is not Attach.NETNS:
            return None
        name, device = names.namespace(port), read.get(inputs.taken, uid)
        return ((name, Namespace(name, spare=names.spare_namespace(device) if device else "")),)

    def device_of(read: Read, port: LocalPort) -> str:
        return read.get(inputs.taken, port.uid) or names.device(port)

    def link(read: Read, uid: str) -> Pairs | None:
        port = read.get(inputs.localports, uid)
        segment = read.get(inputs.segments, port.vni) if port else None
        if port is None or segment is None:
            return None
        wanted = link_of(port, device=device_of(read, port), mtu=segment.mtu)
        return ((wanted.device, wanted),)

    def guard(read: Read, uid: str) -> Pairs | None:
        port, this = read.get(inputs.localports, uid), read.get(inputs.this, THIS)
        if port is None or this is None or this.datapath != "netdev":
            return None
        device = device_of(read, port)
        return ((device, Guard(device)),)

    def ovs_port(read: Read, uid: str) -> Pairs | None:
        port, this = read.get(inputs.localports, uid), read.get(inputs.this, THIS)
        ofport = read.get(inputs.issued, uid)
        if port is None or this is None or ofport is None:
            return None
        taken = read.get(inputs.taken, uid)
        device = taken or names.device(port)
        wanted = OvsPort(bridge=this.bridge, device=device, ofport=ofport, port_uid=Marks.POOL if taken else uid)
        return ((("port", device), wanted),)

    def interface(read: Read, uid: str) -> Interface | None:
        port = read.get(inputs.localports, uid)
        segment = read.get(inputs.segments, port.vni) if port else None
        if port is None or segment is None:
            return None
        return Interface(
            port, device_of(read, port), segment, tuple(read.all(inputs.segments_of_domain, segment.domain))
        )

    interfaces = graph.derive(inputs.localports, interface)

    def addressing(read: Read, uid: str) -> Pairs | None:
        own = read.get(interfaces, uid)
        if own is None:
            return None
        port = own.port
        others = read.all(inputs.localports_of_namespace, (port.kind, port.tenant, port.where))
        beside = [read.get(interfaces, other.uid) for other in others if other.uid != uid]
        wanted = addressing_of(own, beside=[one for one in beside if one is not None])
        return ((wanted.device, wanted),)

    def open_ofport(read: Read, uid: str) -> int | None:
        """The ofport of a local port that may be opened."""
        port, this = read.get(inputs.localports, uid), read.get(inputs.this, THIS)
        if port is None or this is None:
            return None
        device = device_of(read, port)
        issued = read.get(inputs.issued, uid)
        if issued is None or read.get(inputs.ofports, device) != issued:
            return None
        if this.datapath == "netdev" and not read.get(inputs.guarded, device):
            return None
        return issued

    opened = graph.derive(inputs.localports, open_ofport)

    def has_colors(read: Read, domain: int) -> bool | None:
        return colored(read.all(inputs.segments_of_domain, domain)) or None

    colored_domains = graph.derive(inputs.segments_of_domain, has_colors)

    def tracking_flags(read: Read, uid: str) -> int | None:
        """Conntrack only where it decides something: in domains with colors, and where rules guard the port (B8)."""
        port = read.get(inputs.localports, uid)
        if port is not None and port.policy is Policy.ENFORCE:
            return FROM_FLAGS | TO_FLAGS
        segment = read.get(inputs.segments, port.vni) if port else None
        return Flag.CT_FROM | Flag.CT_TO if segment and read.get(colored_domains, segment.domain) else None

    tracking = graph.derive(inputs.localports, tracking_flags)

    def zone(read: Read, uid: str) -> Pairs | None:
        """A tracked port's connections; those of senders without color must stay pinned while UDP is silent (B15)."""
        port, this, number = read.get(inputs.localports, uid), read.get(inputs.this, THIS), read.get(inputs.issued, uid)
        segment = read.get(inputs.segments, port.vni) if port else None
        if this is None or number is None or segment is None or not read.get(tracking, uid):
            return None
        pins = not segment.color and read.get(colored_domains, segment.domain)
        return ((number, Zone(number, this.zone_limit, UDP_PINNED if pins else 0)),)

    def local_flows(read: Read, uid: str) -> Pairs | None:
        port, ofport = read.get(inputs.localports, uid), read.get(opened, uid)
        segment = read.get(inputs.segments, port.vni) if port else None
        if port is None or ofport is None or segment is None:
            return None
        return pairs(port_flows(port, segment=segment, ofport=ofport, flags=read.get(tracking, uid) or 0))

    def endpoint_flows(read: Read, uid: str) -> Pairs | None:
        endpoint, this = read.get(inputs.endpoints, uid), read.get(inputs.this, THIS)
        segment = read.get(inputs.segments, endpoint.vni) if endpoint else None
        if endpoint is None or segment is None or this is None:
            return None
        ofport = read.get(opened, uid)
        if ofport is not None:  # what is plugged here is here, whatever others are told during a move
            flags = read.get(tracking, uid) or 0
            return pairs(_local_endpoint(endpoint, segment=segment, ofport=ofport, flags=flags))
        result: list[Flow] = []
        peer = read.get(inputs.hostpeers, endpoint.host_uid)
        if peer is not None and endpoint.host_uid != this.host_uid:
            result += _remote_endpoint(endpoint, segment=segment, host=peer.number)
        for host_uid in {endpoint.host_uid, endpoint.previous_host_uid} - {this.host_uid, ""}:
            sender = read.get(inputs.hostpeers, host_uid)
            if sender is not None:
                result += _tunnel_source(endpoint, segment=segment, host=sender.number)
        return pairs(result)

    def peer_flows(read: Read, uid: str) -> Pairs | None:
        peer, this = read.get(inputs.hostpeers, uid), read.get(inputs.this, THIS)
        if peer is None or this is None or uid == this.host_uid:
            return None
        return pairs(_peer(peer.number, vtep=peer.vtep, tunnel=this.tunnel_ofport))

    def segment_flows(read: Read, vni: int) -> Pairs | None:
        segment = read.get(inputs.segments, vni)
        return pairs(_segment(segment)) if segment else None

    def bridge(read: Read, key: str) -> Pairs | None:
        this = read.get(inputs.this, key)
        if this is None:
            return None
        tunnel = Tunnel(
            bridge=this.bridge,
            name=this.tunnel,
            ofport=this.tunnel_ofport,
            local_ip=str(this.vtep),
            udp_port=this.tunnel_port,
        )
        return (("bridge", this.bridge), Bridge(this.bridge, this.datapath)), (("port", this.tunnel), tunnel)

    def base(read: Read, key: str) -> Pairs | None:
        this = read.get(inputs.this, key)
        return pairs([*base_flows(), *conntrack_flows(), _from_tunnel(this.tunnel_ofport)]) if this else None

    ports, endpoints = inputs.localports, inputs.endpoints
    return [
        Wants("netns", graph.derive(ports, namespace), "localport"),
        Wants("link", graph.derive(ports, link), "localport"),
        Wants("guard", graph.derive(ports, guard), "localport"),
        Wants("ovsdb", graph.derive(inputs.this, bridge)),
        Wants("ovsdb", graph.derive(ports, ovs_port), "localport"),
        Wants("address", graph.derive(ports, addressing), "localport"),
        Wants("zone", graph.derive(ports, zone), "localport"),
        Wants("flow", graph.derive(inputs.this, base)),
        Wants("flow", graph.derive(inputs.segments, segment_flows), "segment"),
        Wants("flow", graph.derive(inputs.hostpeers, peer_flows), "hostpeer"),
        Wants("flow", graph.derive(endpoints, endpoint_flows), "endpoint"),
        Wants("flow", graph.derive(ports, local_flows), "localport"),
    ]


def _l2(*, stage: Stage, priority: int, match_: bytes, actions: bytes) -> Flow:
    return flow(stage=stage, priority=priority, match_=match_, actions=actions, feature=Feature.L2)


def _from_tunnel(ofport: int) -> Flow:
    """Unknown VTEP, unknown VNI or a source that does not live there: nothing matches in TUNNEL_SOURCE, dropped."""
    actions = (
        act.set_field("reg13", Flag.FROM_TUNNEL)
        + goto(Stage.OUTER_SOURCE)
        + goto(Stage.WIRE)
        + goto(Stage.TUNNEL_SOURCE)
    )
    return _l2(stage=Stage.CLASSIFY, priority=100, match_=match(in_port=ofport), actions=actions)


def _peer(number: int, *, vtep: Address, tunnel: int) -> Iterator[Flow]:
    """A host: its VTEP as outer source, and how to send to it."""
    if vtep.version == 4:
        outer, target = match(tun_src=int(vtep)), act.set_field("tun_dst", int(vtep))
    else:
        outer, target = match(tun_ipv6_src=int(vtep)), act.set_field("tun_ipv6_dst", int(vtep))
    set_host = act.set_field("reg12", number)
    yield _l2(stage=Stage.OUTER_SOURCE, priority=10, match_=outer, actions=set_host)
    yield _l2(stage=Stage.VTEP, priority=10, match_=match(reg4=number), actions=target + act.output(tunnel))


def _segment(segment: Segment) -> Iterator[Flow]:
    """What a VNI means, and which targets of ARP and ND are answered: those of the asker's own network."""
    metadata = segment.color << 32 | segment.domain
    yield _l2(
        stage=Stage.WIRE, priority=10, match_=match(tun_id=segment.vni), actions=act.set_field("metadata", metadata)
    )
    lookup = act.set_field("xreg4", 0) + goto(Stage.ENDPOINT) + goto(Stage.ANSWER)
    for prefix, gateway in segment.subnets:
        if prefix.version == 4:
            asked = match(arp=True, arp_op=1, reg14=segment.network_number, arp_tpa=str(prefix))
            key = load_key_v4("arp_tpa")
        else:
            asked = match(
                icmp6=True,
                icmpv6_type=ND_SOLICITATION,
                icmpv6_code=0,
                nw_ttl=255,
                reg14=segment.network_number,
                nd_target=str(prefix),
            )
            key = act.move("nd_target", "xxreg0")
        yield _l2(stage=Stage.SERVICE, priority=100, match_=asked, actions=key + lookup)
        yield _l2(
            stage=Stage.ENDPOINT,
            priority=20,
            match_=match(metadata=domain_color(segment.domain, 0), xxreg0=key_of(gateway)),
            actions=act.set_field("xreg4", ROUTER_MAC_INT) + act.set_field("reg4", GATEWAY_HOST),
        )
        # Within the network: whoever the frame is addressed to, the packet goes to the owner of the address.
        yield from _within_network(segment, prefix=str(prefix), version=prefix.version)


def _within_network(segment: Segment, *, prefix: str, version: int) -> Iterator[Flow]:
    if version == 4:
        fields: dict[str, Value] = {"ip": True, "nw_dst": prefix}
        key = load_key_v4("ip_dst")
    else:
        fields = {"ipv6": True, "ipv6_dst": prefix}
        key = act.move("ipv6_dst", "xxreg0")
    actions = key + goto(Stage.COLOR)
    priority = 2 * int(prefix.partition("/")[2]) + 2
    local = match(reg14=segment.network_number, reg13=FROM_PORT, eth_dst=(0, 0x010000000000), **fields)
    yield _l2(stage=Stage.ROUTE, priority=priority, match_=local, actions=actions)
    tunnel = match(metadata=(segment.domain, 0xFFFFFFFF), reg13=FROM_TUNNEL, **fields)
    yield _l2(stage=Stage.ROUTE, priority=priority, match_=tunnel, actions=actions)


def _endpoint(endpoint: Endpoint, *, segment: Segment, result: bytes) -> Iterator[Flow]:
    found = act.set_field("xreg4", mac_int(endpoint.mac)) + result + act.set_field("reg7", endpoint.identity)
    for address in endpoint.addresses:
        key = match(metadata=domain_color(segment.domain, segment.color), xxreg0=key_of(address))
        yield _l2(stage=Stage.ENDPOINT, priority=10, match_=key, actions=found)


def _local_endpoint(endpoint: Endpoint, *, segment: Segment, ofport: int, flags: int) -> Iterator[Flow]:
    zone_to = act.set_field("reg11", ofport << 16, mask=0xFFFF0000)
    result = act.set_field("reg4", 0) + act.set_field("reg5", ofport) + zone_to
    if flags & TO_FLAGS:
        result += act.set_field("reg13", flags & TO_FLAGS, mask=flags & TO_FLAGS)
    return _endpoint(endpoint, segment=segment, result=result)


def _remote_endpoint(endpoint: Endpoint, *, segment: Segment, host: int) -> Iterator[Flow]:
    return _endpoint(endpoint, segment=segment, result=act.set_field("reg4", host) + act.set_field("reg6", segment.vni))


def _tunnel_source(endpoint: Endpoint, *, segment: Segment, host: int) -> Iterator[Flow]:
    """A packet from a tunnel is believed only if its inner source lives on the VTEP that it came from."""
    identity = act.set_field("reg10", endpoint.identity)
    believed = [(domain_color(segment.domain, segment.color), identity)]
    if segment.color:
        colored = identity + act.set_field("reg13", Flag.SOURCE_COLORED, mask=Flag.SOURCE_COLORED)
        believed = [(domain_color(segment.domain, segment.color), colored)]
        if segment.base:  # its host may not know yet, or no more, that the network has colors
            take = act.set_field("metadata", segment.color << 32, mask=COLOR_MASK)
            believed.append(((segment.domain, DOMAIN_COLOR_MASK), take + colored))
    for source in (*endpoint.addresses, *endpoint.sources):
        v4: dict[str, Value] = {"ip": True, "nw_src": source}
        family = v4 if source.version == 4 else {"ipv6": True, "ipv6_src": source}
        priority = 10 + getattr(source, "prefixlen", source.max_prefixlen)  # an address before a prefix around it
        for metadata, actions in believed:
            wanted = match(reg12=host, metadata=metadata, vlan_tci=0, **family)
            yield _l2(stage=Stage.TUNNEL_SOURCE, priority=priority, match_=wanted, actions=actions + goto(Stage.ROUTE))
