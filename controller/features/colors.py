"""What hosts are told of colors: the weights of each network with colors, for senders without one. Pure.

A network's colors themselves stand in its segments.
"""

from __future__ import annotations

from controller.resources import Resource
from controller.rows import Intent, NetworkSpec
from controller.scopes import Scopes
from controller.world import World
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.colors import FEATURE, Affinity, weights_key
from tealnet.core.tables import Derived, Graph, Read

_AFFINITY = {
    Affinity.CONNECTION: pb.Weights.AFFINITY_CONNECTION,
    Affinity.SOURCE: pb.Weights.AFFINITY_SOURCE,
}


class Colors:
    """The derived table of the room."""

    def __init__(self, graph: Graph, world: World, scopes: Scopes) -> None:
        self.world, self.scopes = world, scopes
        self.weights: Derived[str, Resource] = graph.derive(world.splits, self._weights)

    def _weights(self, read: Read, name: str) -> Resource | None:
        split = read.get(self.world.splits, name)
        network: Intent[NetworkSpec] | None = read.get(self.world.networks, split.spec.network) if split else None
        if split is None or network is None or network.uid != split.spec.network_uid or not network.spec.colors:
            return None
        domain = read.get(self.scopes.domain_of_network, network.name)
        if domain is None:
            return None
        numbers, weights = {s.color: s.color_number for s in network.spec.segments}, dict(split.spec.weights)
        message = pb.Weights(
            domain=domain,
            network_number=network.spec.number,
            colors=[
                pb.ColorWeight(color=number, weight=weights.get(color, 0))
                for color, number in sorted(numbers.items(), key=lambda pair: pair[1])
            ],
            epoch=split.mod_revision,
            affinity=_AFFINITY[split.spec.affinity],
            closed=sorted(numbers[color] for color in split.spec.closed if color in numbers),
            apply_at=split.spec.apply_at,
        )
        key = weights_key(network.uid)
        return Resource(f"domain/{domain}", key, message.SerializeToString(), (FEATURE,))
