"""What hosts are told of routers: static routes. Routes to networks they derive from segments. Pure."""

from __future__ import annotations

from controller.messages import prefix_message
from controller.resources import Resource
from controller.rows import Intent, Prefix, RouterSpec
from controller.world import World
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.stream import route_key
from tealnet.core.tables import Derived, Graph, Index, Read


class Router:
    """The derived tables of the room."""

    def __init__(self, graph: Graph, world: World) -> None:
        self.by_route: Index[Intent[RouterSpec]] = world.routers.index(
            lambda router: {(router.spec.domain, route.prefix) for route in router.spec.routes}
        )
        self.routes: Derived[tuple[int, Prefix], Resource] = graph.derive(self.by_route, self._route)

    def _route(self, read: Read, place: tuple[int, Prefix]) -> Resource | None:
        domain, prefix = place
        for router in read.all(self.by_route, place):
            hop = next(route.next_hop for route in router.spec.routes if route.prefix == prefix)
            message = pb.Route(domain=domain, prefix=prefix_message(prefix), next_hop=hop.packed)
            return Resource(f"domain/{domain}", route_key(domain, prefix), message.SerializeToString())
        return None
