"""Colors on a host: which color of its target network a packet gets, and how weights share out new connections.

Decided in COLOR, by the network of the address that is looked up (the key), so static routes are covered as well:

    target network without colors   the sender's own color, else none
    a sender with a color           its own color (ENDPOINT finds nothing in another)
    a connection with a mark        that color
    … from before the colors        the network's base color
    … in the middle, not known      all colors that are open are asked (agent/conntrack.py)
    a new connection                by weight: not to a color that is closed, and to none at all without weights

Weights of connections are a select group with the network's number as its id, changed in place, so that a change of
weights is one message. Weights of source addresses are flows in SLOT, one for each power of two of 256 slots.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd

from agent.conntrack import RST, adopt
from agent.desired import Pairs, Wants
from agent.inputs import THIS, Inputs
from agent.openflow import actions as act
from agent.openflow.flow import Bucket, Flow, Group, GroupKind, issued_group
from agent.openflow.oxm import Value, match
from agent.pipeline import (
    COLOR_MASK,
    DOMAIN_COLOR_MASK,
    DOMAIN_MASK,
    FROM_TUNNEL,
    Feature,
    Flag,
    Mask,
    Stage,
    flow,
    goto,
    key_of,
)
from tealnet.core.rows.colors import SLOTS, Affinity, Weights, slots
from tealnet.core.rows.parse import Prefix
from tealnet.core.rows.stream import Segment
from tealnet.core.tables import Graph, Read

UNCOLORED: Mask = (0, Flag.FROM_TUNNEL | Flag.SOURCE_COLORED)  # from a local port without a color
_EXACT_SLOTS = 16  # what Open vSwitch uses at least; a power of two up to it needs no trick


@dataclass(frozen=True, slots=True)
class Network:
    """A network with colors, as this host knows it."""

    number: int
    domain: int
    prefixes: tuple[Prefix, ...]
    colors: tuple[int, ...]
    open: tuple[int, ...]  # … without those that connections must leave
    base: int  # the color of what has none; 0 = nobody's


def network_of(segments: Iterable[Segment], closed: Collection[int]) -> Network | None:
    """The network of these segments of one number; None if it has no colors."""
    twins = sorted((segment for segment in segments if segment.color), key=lambda segment: segment.color)
    if not twins:
        return None
    first, colors = twins[0], tuple(segment.color for segment in twins)
    base = next((segment.color for segment in twins if segment.base), 0)
    return Network(
        number=first.network_number,
        domain=first.domain,
        prefixes=tuple(subnet.prefix for subnet in first.subnets),
        colors=colors,
        open=tuple(color for color in colors if color not in closed),
        base=base or (colors[0] if len(colors) == 1 else 0),
    )


def declare(graph: Graph, inputs: Inputs) -> list[Wants]:
    """Everything this room wants."""

    def network(read: Read, number: int) -> Network | None:
        closed = {color for row in read.all(inputs.weights_of_network, number) for color in row.closed}
        return network_of(read.all(inputs.segments_of_network, number), closed)

    networks = graph.derive(inputs.segments_of_network, network)

    def network_flows(read: Read, vni: int) -> Pairs | None:
        """The twins of a network want the same flows; what is wrong with them is wrong with all."""
        segment = read.get(inputs.segments, vni)
        found = read.get(networks, segment.network_number) if segment else None
        return _pairs(_network(found)) if found else None

    def weight_flows(read: Read, uid: str) -> Pairs | None:
        weights = read.get(inputs.weights, uid)
        found = read.get(networks, weights.network_number) if weights else None
        alone = read.get(inputs.uncached, uid) is not None
        return _weights(weights, found, alone=alone) if weights and found else None

    def base(read: Read, key: str) -> Pairs | None:
        return _pairs(_shared()) if read.get(inputs.this, THIS) else None

    return [
        Wants("flow", graph.derive(inputs.this, base)),
        Wants("flow", graph.derive(inputs.segments, network_flows), "segment"),
        Wants("flow", graph.derive(inputs.weights, weight_flows), "weights"),
    ]


def _pairs(flows: Iterable[Flow]) -> Pairs:
    return tuple((f.cookie, f) for f in flows)


def _flow(stage: Stage, priority: int, actions: bytes, **fields: Value) -> Flow:
    return flow(stage=stage, priority=priority, match_=match(**fields), actions=actions, feature=Feature.COLORS)


def _shared() -> Iterator[Flow]:
    """To a network without colors: nobody's color but the sender's; what is remembered of others is out of date."""
    plain = act.set_field("metadata", 0, mask=COLOR_MASK) + act.set_field("reg13", 0, mask=Flag.MID_STREAM)
    yield _flow(Stage.COLOR, 10, plain + goto(Stage.RESOLVE), reg13=(0, Flag.SOURCE_COLORED))
    yield _flow(Stage.COLOR, 0, goto(Stage.RESOLVE))


def _of(network: Network, prefix: Prefix) -> dict[str, Value]:
    """The key is in this prefix of the network, whatever the packet's color."""
    bits = 128 - (prefix.max_prefixlen - prefix.prefixlen)
    mask = (1 << 128) - (1 << 128 - bits)
    return {"metadata": (network.domain, DOMAIN_MASK), "xxreg0": (key_of(prefix.network_address), mask)}


def _in_color(network: Network, color: int) -> Mask:
    return (color << 32 | network.domain, DOMAIN_COLOR_MASK)


def _take(color: int) -> bytes:
    """The packet's color from here on."""
    return act.set_field("metadata", color << 32, mask=COLOR_MASK)


def _flags(network: Network) -> bytes:
    bits = Flag.TARGET_COLORED | (Flag.MANY_COLORS if len(network.open) > 1 else 0)
    return act.set_field("reg13", bits, mask=bits)


def _network(network: Network) -> Iterator[Flow]:
    """What does not depend on weights."""
    flags, on = _flags(network), goto(Stage.RESOLVE)
    known = Flag.FROM_TUNNEL | Flag.SOURCE_COLORED | Flag.NEW_FROM | Flag.MID_STREAM
    for prefix in network.prefixes:
        here = _of(network, prefix)
        yield _flow(Stage.COLOR, 50, flags + on, **here)
        # Of a sender without color its own host says the color.
        none = _in_color(network, 0)
        yield _flow(Stage.COLOR, 60, b"", **here | {"metadata": none, "reg13": FROM_TUNNEL})
        for color in network.colors:
            pinned = here | {"metadata": _in_color(network, color), "reg13": UNCOLORED}
            yield _flow(Stage.COLOR, 80, flags + on, **pinned)
            if color not in network.open:
                yield from _deny(pinned, flags + on)
        if network.base:
            # Opened before the network had colors, or before these.
            base = flags + _take(network.base) + _remarked() + on
            yield _flow(Stage.COLOR, 70, base, **here | {"reg13": (0, known)})
            plain = flags + _take(network.base) + on
            fields = _of(network, prefix) | {"metadata": none, "reg13": (0, known)}
            yield _flow(Stage.COLOR, 71, plain, **fields, ct_state="+trk+inv")  # conntrack takes no note of it
            yield from _adopt(network, prefix)
        yield _flow(Stage.COLOR, 90, flags + _middle(network), **here | {"metadata": none, "reg13": _asking()})


def _deny(pinned: dict[str, Value], go_on: bytes) -> Iterator[Flow]:
    """Connections must leave this color: nothing but the resets by which their ends are told (agent/cut.py)."""
    opened = "+trk-rpl"
    yield _flow(Stage.COLOR, 85, b"", **pinned, ct_state=opened)
    for family in ("tcp", "tcp6"):
        yield _flow(Stage.COLOR, 86, go_on, **pinned, ct_state=opened, tcp_flags=RST, **{family: True})


def _asking() -> Mask:
    return (Flag.MID_STREAM, Flag.MID_STREAM | UNCOLORED[1])


def _remarked() -> bytes:
    return act.set_field("reg13", Flag.REMARK_FROM, mask=Flag.REMARK_FROM)


def _middle(network: Network) -> bytes:
    """A TCP packet of a connection that is not known: ask all; with one color there is nothing to ask."""
    if len(network.open) > 1:
        return b"".join(act.clone(_take(color) + goto(Stage.RESOLVE)) for color in network.open)
    only = act.set_field("reg13", Flag.REMARK_FROM, mask=Flag.REMARK_FROM | Flag.MID_STREAM)
    return b"".join(_take(color) + only + goto(Stage.RESOLVE) for color in network.open)


def _adopt(network: Network, prefix: Prefix) -> Iterator[Flow]:
    """At a shared server: a connection of the base color from before it had a name."""
    family: dict[str, Value] = (
        {"ip": True, "nw_src": prefix} if prefix.version == 4 else {"ipv6": True, "ipv6_src": prefix}
    )
    yield _flow(
        Stage.POLICY_TO,
        86,
        adopt(),
        metadata=_in_color(network, network.base),
        ct_state="+trk-new",
        ct_mark=(0, 0xFF),
        **family,
    )


def _weights(weights: Weights, network: Network, *, alone: bool) -> Pairs:
    """New connections of senders without a color; each of them `alone`: no cached flow serves two."""
    shares = dict(zip((c.color for c in weights.colors), slots([c.weight for c in weights.colors]), strict=True))
    shares = {color: share for color, share in shares.items() if share}
    if not shares:
        return ()  # to nobody
    new: Mask = (Flag.NEW_FROM, Flag.NEW_FROM | Flag.MID_STREAM | UNCOLORED[1])
    flags = _flags(network)
    out: list[tuple[int | tuple[str, int], Flow | Group]] = []
    flows: list[Flow] = []
    slot = act.multipath("nw_src", slots=SLOTS, into="reg12[0..7]") + goto(Stage.SLOT)
    pick = slot
    if weights.affinity is Affinity.CONNECTION:
        group = group_of(network.number, shares)
        out.append((group.key, group))
        pick = act.group(group.group_id)
    # The only slot of a hash is always the same, but who makes the hash looks at the ports.
    look = act.multipath("symmetric_l3l4+udp", slots=1, into="reg12[0..7]") if alone else b""
    for prefix in network.prefixes:
        none = _of(network, prefix) | {"metadata": _in_color(network, 0)}
        flows.append(_flow(Stage.COLOR, 75, flags + look + pick, **none | {"reg13": new}))
        # Only the first fragment has ports to hash: all of them go by the source, or a datagram would be torn.
        whole: dict[str, Value] = {"nw_frag": "yes", "ip" if prefix.version == 4 else "ipv6": True}
        flows.append(_flow(Stage.COLOR, 76, flags + slot, **none | {"reg13": new} | whole))
        flows += _slots(shares, none)
        for color in set(network.colors) - set(network.open):
            flows += _leave(_of(network, prefix) | {"metadata": _in_color(network, color)}, flags + _remarked() + pick)
    return (*out, *_pairs(flows))


def _leave(fields: dict[str, Value], actions: bytes) -> Iterator[Flow]:
    """Echo requests to a color that is closed: there is nobody to tell, and conntrack can't be made to forget them."""
    for family in ("icmp", "icmp6"):
        state: dict[str, Value] = {"reg13": UNCOLORED, "ct_state": "+trk-rpl", family: True}
        yield _flow(Stage.COLOR, 87, actions, **fields, **state)


def group_of(number: int, shares: dict[int, int]) -> Group:
    """The group of shares of 256 slots. All to one color needs no hash, so no cached flow for each value of it."""
    if len(shares) == 1:
        (color,) = shares
        return issued_group(number, GroupKind.INDIRECT, buckets=[_bucket(color, 0)])
    buckets = [_bucket(color, weight) for color, weight in weights_of(shares)]
    return issued_group(number, GroupKind.SELECT, buckets=buckets, selection_method="dp_hash")


def _bucket(color: int, weight: int) -> Bucket:
    return Bucket(_take(color) + goto(Stage.RESOLVE), weight)


def weights_of(shares: dict[int, int]) -> list[tuple[int, int]]:
    """Weights of buckets that Open vSwitch turns into exactly these shares.

    It takes the next power of two of (sum / least weight), and at least 16, as its number of slots. So few slots as
    will do: each one costs a cached flow for each pair of addresses. Where it would take fewer, one slot gets a bucket
    of its own.
    """
    unit = gcd(*shares.values(), SLOTS)
    weights = [(color, share // unit) for color, share in sorted(shares.items())]
    if SLOTS // unit <= _EXACT_SLOTS or any(weight == 1 for _, weight in weights):
        return weights
    color, weight = max(weights, key=lambda item: item[1])
    rest = [item for item in weights if item[0] != color]
    return [(color, 1), (color, weight - 1), *rest]


def _slots(shares: dict[int, int], fields: dict[str, Value]) -> Iterator[Flow]:
    at = 0
    for color, share in sorted(shares.items()):
        for first, size in aligned(at, share):
            wanted: Mask = (first, SLOTS - size)
            yield _flow(Stage.SLOT, 10, _take(color) + goto(Stage.RESOLVE), **fields, reg12=wanted)
        at += share


def aligned(start: int, count: int) -> Sequence[tuple[int, int]]:
    """A range as (start, size) of powers of two, each of which one mask can match."""
    parts = []
    while count:
        size = min(start & -start or SLOTS, 1 << count.bit_length() - 1)
        parts.append((start, size))
        start, count = start + size, count - size
    return parts
