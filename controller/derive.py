"""All rooms of the controller, declared: rows of the world in, resources by scope out."""

from __future__ import annotations

from controller.features.colors import Colors
from controller.features.l2 import L2
from controller.features.router import Router
from controller.features.security import Security
from controller.resources import Resources
from controller.scopes import Scopes
from controller.world import World


def declare(world: World, *, default_mtu: int) -> Resources:
    """Declare every derived table; before rows are put. `default_mtu` must be the same in all replicas."""
    graph = world.graph
    scopes = Scopes(graph, world)
    l2 = L2(graph, world, scopes, default_mtu=default_mtu)
    router, security = Router(graph, world), Security(graph, world, scopes)
    colors = Colors(graph, world, scopes)
    return Resources(
        world,
        scopes,
        hostpeers=l2.hostpeers,
        tables=(l2.segments, l2.endpoints, l2.localports, router.routes, colors.weights, security.rules),
        security=security,
    )
