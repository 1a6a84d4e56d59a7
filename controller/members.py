"""Who is in a security group, by the issued identities. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from controller.names import default_group
from controller.rows import Intent, PortSpec
from controller.rows_policy import GroupSpec
from controller.world import World


def identities_of_group(world: World, group: Intent[GroupSpec]) -> Iterator[int]:
    """The numbers of the sets that hold a group; of a default group also of ports that name none."""
    yield from world.identities_by_group.keys(group.uid)
    if group.name == default_group(group.spec.tenant) and (tenant := world.tenants.rows.get(group.spec.tenant)):
        yield from world.identities_by_group.keys(tenant.uid)


def ports_of_group(world: World, group: Intent[GroupSpec]) -> Iterator[Intent[PortSpec]]:
    """The ports in a group."""
    for number in identities_of_group(world, group):
        for name in world.ports_by_identity.keys(number):
            yield world.ports.rows[name]
