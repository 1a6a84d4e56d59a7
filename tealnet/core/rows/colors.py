"""What hosts are told of colors: the weights by which senders without a color get one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.parse import BadResource, uid_text, within

FEATURE = "colors"  # what an agent must understand of a resource that speaks of colors
COLORS = 8  # in a routing domain at most; numbers 1 … 8, 0 = none
SLOTS = 256  # weights are turned into so many slots (B7): the smallest share is 1/256


class Affinity(Enum):
    """What keeps its color: each connection by itself, or all connections of a source address."""

    CONNECTION = "CONNECTION"
    SOURCE = "SOURCE"


class ColorWeight(NamedTuple):
    """A color's share; 0 = no new connections."""

    color: int
    weight: int


@dataclass(frozen=True, slots=True)
class Weights:
    """A network's TrafficSplit. `closed`: colors that connections of senders without a color must leave (B11)."""

    network_uid: str  # 32 hex
    domain: int
    network_number: int  # also the id of its select group
    colors: tuple[ColorWeight, ...]  # by color number
    epoch: int
    affinity: Affinity
    closed: tuple[int, ...]
    apply_at: int  # Unix time in ns: switch at this instant if it is still ahead; 0 = at once


def slots(weights: Sequence[int]) -> list[int]:
    """The shares of 256 by the largest remainder, in the order given; of equal remainders the first one counts."""
    total = sum(weights)
    if not total:
        return [0] * len(weights)
    shares = [weight * SLOTS // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: -(weights[i] * SLOTS % total))
    for i in by_remainder[: SLOTS - sum(shares)]:
        shares[i] += 1
    return shares


def weights_key(network_uid: str) -> str:
    """Resource key of a network's weights."""
    return f"weights/{network_uid}"


_AFFINITY = {
    pb.Weights.AFFINITY_UNSPECIFIED: Affinity.CONNECTION,
    pb.Weights.AFFINITY_CONNECTION: Affinity.CONNECTION,
    pb.Weights.AFFINITY_SOURCE: Affinity.SOURCE,
}


def parse_weights(ident: str, body: bytes) -> Weights:
    """Raises BadResource, ValueError, DecodeError."""
    message = pb.Weights.FromString(body)
    if message.affinity not in _AFFINITY:
        raise BadResource(f"unknown affinity: {message.affinity}")
    colors = tuple(
        ColorWeight(within(c.color, 1, COLORS, "color"), within(c.weight, 0, 1_000_000, "weight"))
        for c in message.colors
    )
    if list(colors) != sorted(set(colors)) or len({c.color for c in colors}) != len(colors):
        raise BadResource("colors are not in order")
    return Weights(
        network_uid=uid_text(ident),
        domain=within(message.domain, 1, 2**32 - 1, "domain"),
        network_number=within(message.network_number, 1, 2**31 - 1, "network number"),
        colors=colors,
        epoch=message.epoch,
        affinity=_AFFINITY[message.affinity],
        closed=tuple(within(c, 1, COLORS, "color") for c in message.closed),
        apply_at=message.apply_at,
    )
