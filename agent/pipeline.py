"""The pipeline of br-int: stages, registers and the flows that are always there.

This file is the contract that rooms write flows against; docs/pipeline.md prints it. Every stage exists always and
drops on a miss unless a flow here sends on. A packet has one color, its connection's (0 = none), in the metadata.

    CLASSIFY ─ port ──→ PORT_SECURITY → SERVICE → CT_FROM → POLICY_FROM ─→ ROUTE → COLOR → RESOLVE ─┐
        └── tunnel → OUTER_SOURCE, WIRE, TUNNEL_SOURCE ───────────────────┘                          │
        OUTPUT ← COMMIT_TO ← INGRESS ← POLICY_TO ← CT_TO ← EGRESS ← (ENDPOINT: a pure look-up) ←─────┘

The stages around conntrack are in agent/conntrack.py; OPENED to DENIED, which both EGRESS and INGRESS ask about packets
of guarded ports, in agent/policy/stages.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from agent.openflow import actions as act
from agent.openflow.flow import Flow
from agent.openflow.oxm import Value, decode, match

Address = IPv4Address | IPv6Address
Mask = tuple[int, int]


class Stage(IntEnum):
    """OpenFlow tables. OUTER_SOURCE, WIRE, ENDPOINT and VTEP are pure look-ups: they set registers and return."""

    CLASSIFY = 0
    OUTER_SOURCE = 2
    WIRE = 3
    TUNNEL_SOURCE = 5
    PORT_SECURITY = 10
    SERVICE = 15
    ANSWER = 16
    ANSWER_ND = 17
    CT_FROM = 20
    POLICY_FROM = 25
    ROUTE = 30
    COLOR = 35
    RESOLVE = 36
    SLOT = 37
    ENDPOINT = 40
    EGRESS = 42
    CT_TO = 45
    COMMITTED_FROM = 46
    POLICY_TO = 50
    ADOPTED_TO = 51
    INGRESS = 52
    COMMIT_TO = 55
    COMMITTED_TO = 56
    OUTPUT = 60
    VTEP = 62
    OPENED = 70
    JUDGE = 71
    PASSED = 72
    SETTLED = 73
    ONWARD = 74
    DENIED = 75


class Reg:
    """Registers. metadata: routing domain, color of the connection, VNI of the local sender (below)."""

    DOMAIN = "metadata[0..31]"
    COLOR = "metadata[32..39]"
    VNI_FROM = "metadata[40..63]"

    KEY = "xxreg0"  # address to look up: v6, or v4 as v4-mapped v6 (::ffff:a.b.c.d)
    KEY_V4 = "xxreg0[0..31]"
    HOST = "reg4"  # host number of the result: 0 local, GATEWAY_HOST = the router itself
    OFPORT = "reg5"  # of the result, if local
    VNI = "reg6"  # of the result's segment
    IDENTITY_TO = "reg7"
    MAC = "xreg4"  # of the result, low 48 bits (reg8, reg9)
    IDENTITY_FROM = "reg10"
    ZONES = "reg11"  # [0..15] conntrack zone FROM, [16..31] zone TO
    OUTER_HOST = "reg12"  # host number of the outer source; of what a local port sent:
    SLOT = "reg12[0..7]"  # of 256, by source address
    FLAGS = "reg13"
    NETWORK = "reg14"  # network number of the local sender
    RULE = "reg15"  # the rule that let a new connection pass; a commit writes it down
    # While a verdict is found, in place of the key:
    OWN = "reg0"  # identity of the port whose rules are asked
    REMOTE = "reg1"  # … of the other end
    STEP = "reg2"  # [31] which rules: 0 egress, 1 ingress; [0..15] how far
    SHADOW = "reg3"  # the SHADOW rule that would have denied it; NOT_DENIED: one would have let it pass; 0: no word yet


class Flag(IntEnum):
    """Bits of Reg.FLAGS."""

    FROM_TUNNEL = 1
    TARGET_COLORED = 2
    CT_FROM = 4
    CT_TO = 8
    NEW_FROM = 16  # to be committed in the sender's zone
    MID_STREAM = 32  # of a TCP connection whose color is not known: all colors are asked
    SOURCE_COLORED = 64
    MANY_COLORS = 128  # the target network has more than one that is open
    REMARK_FROM = 256  # the connection gets another color in the sender's zone
    POLICY_FROM = 1 << 16  # rules guard the sender
    POLICY_TO = 1 << 17  # … the target
    AT_TARGET = 1 << 18  # the verdict is the target's, else the sender's
    SHADOW_PASSED = 1 << 19  # a SHADOW rule would have gone on to the next position


class Bits:
    """Slices of registers and of what a connection remembers."""

    ON_CHANGE = "reg13[28..29]"  # what becomes of the connection when its rule goes; a commit writes it down
    CT_RULE = "ct_label[0..31]"
    CT_ON_CHANGE = "ct_label[32..33]"


class Feature(IntEnum):
    """Second byte of a flow's cookie: which room wanted it."""

    BASE = 1
    L2 = 2
    ROUTER = 3
    COLORS = 4
    SECURITY = 5
    ERA = 6  # of the datapath's cache: agent/era.py


ROUTER_MAC = "02:74:6e:00:00:01"  # one for all networks
ROUTER_MAC_INT = int(ROUTER_MAC.replace(":", ""), 16)
ROUTER_LINK_LOCAL = IPv6Address("fe80::1")
GATEWAY_HOST = 0xFFFF
DOMAIN_MASK = 0xFFFFFFFF
DOMAIN_COLOR_MASK = 0xFFFFFFFFFF
FROM_FLAGS = Flag.CT_FROM | Flag.POLICY_FROM  # of a local port, where it sends
TO_FLAGS = Flag.CT_TO | Flag.POLICY_TO  # … and where it receives
FROM_TUNNEL: Mask = (Flag.FROM_TUNNEL, Flag.FROM_TUNNEL)
FROM_PORT: Mask = (0, Flag.FROM_TUNNEL)
COLOR_MASK = 0xFF00000000
TARGET_COLORED: Mask = (Flag.TARGET_COLORED, Flag.TARGET_COLORED)
UNICAST: Mask = (0, 0x010000000000)  # of an Ethernet address: the group bit is clear
ND_SOLICITATION, ND_ADVERTISEMENT = 135, 136
_NEIGHBOUR = (133, 134, ND_SOLICITATION, ND_ADVERTISEMENT, 137)  # RS, RA, NS, NA, redirect (RFC 4861)
_MULTICAST_LISTENER = (130, 131, 132, 143)  # RFC 2710, RFC 3810


def flow(*, stage: Stage, priority: int, match_: bytes, actions: bytes, feature: Feature) -> Flow:
    """One flow; no actions = drop."""
    return Flow(table=int(stage), priority=priority, match=match_, actions=actions, feature=int(feature))


def narrows(value: object) -> bool:
    """Whether a flow, when it is new, may stand in the way of what passed before."""
    return isinstance(value, Flow) and value.feature in (Feature.COLORS, Feature.SECURITY)


def domain_of(value: object) -> int | None:
    """The routing domain in which packets are looked up by a flow, ROUTE to ENDPOINT; None: not by this one, or in any.

    A packet that comes back from conntrack is still in the domain that it was in when it went there.
    """
    if isinstance(value, Flow) and Stage.ROUTE <= value.table <= Stage.ENDPOINT:
        for field, number, mask in decode(value.match):
            if field.name == "metadata" and mask & DOMAIN_MASK == DOMAIN_MASK:
                return number & DOMAIN_MASK
    return None


def goto(stage: Stage) -> bytes:
    """Go on in a stage. `resubmit`, not goto_table: look-ups return, and groups may go on inside a bucket."""
    return act.resubmit(int(stage))


def domain_color(domain: int, color: int) -> Mask:
    """Metadata of an endpoint: those of networks without colors match every connection's color."""
    return (color << 32 | domain, DOMAIN_COLOR_MASK) if color else (domain, DOMAIN_MASK)


def key_of(address: Address) -> int:
    """The look-up key of an address (RFC 4291, 2.5.5.2 for v4)."""
    return int(address) | 0xFFFF << 32 if address.version == 4 else int(address)


def mac_int(mac: str) -> int:
    """A MAC as a number."""
    return int(mac.replace(":", ""), 16)


def load_key_v4(field: str) -> bytes:
    """Put a v4 address field into the key as v4-mapped v6."""
    return act.set_field("xxreg0", 0xFFFF << 32) + act.move(field, Reg.KEY_V4)


# In a table that is only asked about hosts, below all of them: see `FlowDriver`.
PULSE = flow(stage=Stage.VTEP, priority=0, match_=match(), actions=b"", feature=Feature.BASE)


def base_flows() -> Iterator[Flow]:
    """What does not depend on any tenant."""
    base = Feature.BASE
    yield PULSE
    yield from _never(base)
    yield from _service(base)
    for miss, then in (
        (Stage.SERVICE, Stage.CT_FROM),
        (Stage.EGRESS, Stage.CT_TO),
        (Stage.INGRESS, Stage.COMMIT_TO),
    ):
        yield flow(stage=miss, priority=0, match_=match(), actions=goto(then), feature=base)
    # Routed with no hop left: dropped here, so that dec_ttl makes no upcall of it; below the router's own answers.
    for ttl in (0, 1):
        for family in ("ip", "ipv6"):
            expired = match(reg13=FROM_PORT, eth_dst=ROUTER_MAC_INT, nw_ttl=ttl, **{family: True})
            yield flow(stage=Stage.ROUTE, priority=900, match_=expired, actions=b"", feature=base)
    yield flow(
        stage=Stage.RESOLVE, priority=0, match_=match(), actions=goto(Stage.ENDPOINT) + goto(Stage.EGRESS), feature=base
    )
    yield from _ct_to(base)
    yield from _output(base)


def _ct_to(base: Feature) -> Iterator[Flow]:
    """After the look-up: nobody there, the router itself, a local port, or (never from a tunnel) another host."""
    for priority, fields in ((1010, {"reg4": GATEWAY_HOST}), (1000, {"reg4": 0, "reg5": 0})):
        yield flow(stage=Stage.EGRESS, priority=priority, match_=match(**fields), actions=b"", feature=base)
    yield flow(stage=Stage.CT_TO, priority=70, match_=match(reg4=0), actions=goto(Stage.OUTPUT), feature=base)
    yield flow(stage=Stage.CT_TO, priority=60, match_=match(reg13=FROM_TUNNEL), actions=b"", feature=base)
    yield flow(stage=Stage.CT_TO, priority=50, match_=match(), actions=goto(Stage.OUTPUT), feature=base)


def _output(base: Feature) -> Iterator[Flow]:
    """To a local port, or on the wire. The VNI says (domain, color): the target's if it is colored or nobody is."""
    to_mac = act.move("xreg4[0..47]", "eth_dst")
    local, theirs = to_mac + act.output_reg(Reg.OFPORT), act.move(Reg.VNI, "tun_id[0..31]")
    # Colored to shared: what the target's host sees must say which of the twins has sent it.
    ours = act.set_field("tun_id", 0) + act.move(Reg.VNI_FROM, "tun_id[0..23]")
    only_source: Mask = (Flag.SOURCE_COLORED, Flag.SOURCE_COLORED | Flag.TARGET_COLORED)
    for priority, fields, actions in (
        (10, match(reg4=0), local),
        (5, match(reg13=only_source), to_mac + ours + goto(Stage.VTEP)),
        (0, match(), to_mac + theirs + goto(Stage.VTEP)),
    ):
        yield flow(stage=Stage.OUTPUT, priority=priority, match_=fields, actions=actions, feature=base)


def _never(base: Feature) -> Iterator[Flow]:
    """What passes from nobody, whoever may send from that address."""

    def drop(stage: Stage, *, priority: int, **fields: Value) -> Flow:
        return flow(stage=stage, priority=priority, match_=match(**fields), actions=b"", feature=base)

    for kind in (*_MULTICAST_LISTENER, *_NEIGHBOUR):
        if kind != ND_SOLICITATION:  # which is answered here
            yield drop(Stage.PORT_SECURITY, priority=120, icmp6=True, icmpv6_type=kind)
        yield drop(Stage.TUNNEL_SOURCE, priority=200, icmp6=True, icmpv6_type=kind)  # no honest host sends it on
    yield drop(Stage.PORT_SECURITY, priority=120, icmp=True, icmp_type=5)  # redirect
    for stage, priority in ((Stage.PORT_SECURITY, 120), (Stage.TUNNEL_SOURCE, 200)):
        # The type of a fragment is not seen here, also of the first one. Receivers take neighbour discovery only with
        # a hop limit of 255, and should take none in fragments (RFC 4861, RFC 6980); not all know the latter.
        yield drop(stage, priority=priority, icmp6=True, nw_frag="first", nw_ttl=255)
        # Extension headers that do not end within the frame, or not within the first fragment (RFC 7112).
        yield drop(stage, priority=priority, ipv6=True, nw_proto=0)
    # A v4-mapped target would be looked up as the v4 address in it; none is ever on a wire (RFC 4291, 2.5.5.2).
    yield drop(Stage.ROUTE, priority=2000, ipv6=True, ipv6_dst="::ffff:0:0/96")


def _service(base: Feature) -> Iterator[Flow]:
    """Answers to ARP (RFC 826) and neighbour solicitation (RFC 4861) from the look-up's result."""
    # A solicitation with a false link-layer option must not fall through to the plain IPv6 flow.
    solicitation = match(icmp6=True, icmpv6_type=ND_SOLICITATION)
    yield flow(stage=Stage.PORT_SECURITY, priority=85, match_=solicitation, actions=b"", feature=base)
    yield flow(stage=Stage.SERVICE, priority=90, match_=match(arp=True), actions=b"", feature=base)
    yield flow(stage=Stage.SERVICE, priority=90, match_=solicitation, actions=b"", feature=base)
    router = match(icmp6=True, icmpv6_type=ND_SOLICITATION, icmpv6_code=0, nw_ttl=255, nd_target=ROUTER_LINK_LOCAL)
    key = act.set_field("xxreg0", int(ROUTER_LINK_LOCAL)) + act.set_field("xreg4", ROUTER_MAC_INT)
    yield flow(stage=Stage.SERVICE, priority=100, match_=router, actions=key + goto(Stage.ANSWER), feature=base)
    echo = match(icmp6=True, icmpv6_type=128, icmpv6_code=0, eth_dst=ROUTER_MAC_INT, ipv6_dst=ROUTER_LINK_LOCAL)
    yield flow(stage=Stage.SERVICE, priority=100, match_=echo, actions=echo_reply(ROUTER_LINK_LOCAL), feature=base)
    yield flow(stage=Stage.ANSWER, priority=20, match_=match(reg8=0, reg9=0), actions=b"", feature=base)
    yield flow(stage=Stage.ANSWER, priority=10, match_=match(arp=True), actions=_arp_answer(), feature=base)
    yield flow(stage=Stage.ANSWER, priority=10, match_=solicitation, actions=_nd_answer(), feature=base)
    # nd_tll can only be set where icmp_type is already 136, hence a table of its own.
    yield flow(
        stage=Stage.ANSWER_ND,
        priority=10,
        match_=match(icmp6=True, icmpv6_type=ND_ADVERTISEMENT, icmpv6_code=0),
        actions=act.move("xreg4[0..47]", "nd_tll") + act.to_in_port(),
        feature=base,
    )


def _arp_answer() -> bytes:
    return (
        act.move("eth_src", "eth_dst")
        + act.move("xreg4[0..47]", "eth_src")
        + act.set_field("arp_op", 2)
        + act.move("arp_sha", "arp_tha")
        + act.move("arp_spa", "arp_tpa")
        + act.move("xreg4[0..47]", "arp_sha")
        + act.move(Reg.KEY_V4, "arp_spa")
        + act.to_in_port()
    )


def _nd_answer() -> bytes:
    solicited_override = 0x60000000
    return (
        act.move("eth_src", "eth_dst")
        + act.move("xreg4[0..47]", "eth_src")
        + act.move("ipv6_src", "ipv6_dst")
        + act.move(Reg.KEY, "ipv6_src")
        + act.set_field("nw_ttl", 255)
        + act.set_field("icmpv6_type", ND_ADVERTISEMENT)
        + act.set_field("nd_options_type", 2)
        + act.set_field("nd_reserved", solicited_override)
        + goto(Stage.ANSWER_ND)
    )


def echo_reply(address: Address) -> bytes:
    """Turn an echo request for a router address into its reply (RFC 792, RFC 4443)."""
    source, target, kind, reply = (
        ("ip_src", "ip_dst", "icmp_type", 0) if address.version == 4 else ("ipv6_src", "ipv6_dst", "icmpv6_type", 129)
    )
    return (
        act.move("eth_src", "eth_dst")
        + act.set_field("eth_src", ROUTER_MAC_INT)
        + act.move(source, target)
        + act.set_field(source, int(address))
        + act.set_field(kind, reply)
        + act.set_field("nw_ttl", 64)
        + act.to_in_port()
    )
