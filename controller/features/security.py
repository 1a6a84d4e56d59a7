"""What hosts are told of security: the rules of each identity that has a guarded port there. Pure.

    group ──► its rules, remote groups as identities ─┐
    tier, tenant ──► its rules for that tenant ───────┴──► rules of an identity ──► hosts that have such a port

Members of a remote group are identities, and those change only when a set of groups is used for the first time or no
longer: one more port in a group computes none of these rows anew. Steps are small, so that what did not change stops.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from controller.features.security_rules import Body, CompiledTier, Owner, Resolved, body_of, compiled
from controller.intents.placement import selected
from controller.names import default_group, full_name, tenant_of
from controller.resources import Resource
from controller.rows import Labels
from controller.rows_policy import RuleSpec
from controller.scopes import Scopes
from controller.world import ALL, World
from tealnet.core.rows.security import Mode, Position, rules_key
from tealnet.core.tables import Derived, Graph, Index, Read

REQUIRES = ("security",)


class Guard(NamedTuple):
    """A port that rules guard: its identity, and the hosts that have it (uids)."""

    tenant: str
    identity: int
    hosts: tuple[str, ...]


class Binding(NamedTuple):
    """What rules need of a tenant: its labels select tiers."""

    name: str
    uid: str
    labels: Labels


class Color(NamedTuple):
    """A color of a tenant's network: what it is called, and its number in the network's routing domain."""

    tenant: str
    name: str
    domain: int
    number: int


class Security:
    """The derived tables of the room."""

    def __init__(self, graph: Graph, world: World, scopes: Scopes) -> None:
        self.world, self.scopes = world, scopes
        self.guards: Derived[str, Guard] = graph.derive(scopes.holdings, self._guard)
        self.guards_by_place: Index[Guard] = self.guards.index(lambda g: [(host, g.identity) for host in g.hosts])
        self.guards_by_identity: Index[Guard] = self.guards.index(lambda g: (g.identity,))
        self.guards_by_tenant: Index[Guard] = self.guards.index(lambda g: (g.tenant,))
        # Rows of their own, so that one more port of an identity or tenant computes nothing else anew.
        self.guarded_identities: Derived[int, bool] = graph.derive(self.guards_by_identity, self._is_guarded_identity)
        self.guarded_tenants: Derived[str, bool] = graph.derive(self.guards_by_tenant, self._is_guarded_tenant)
        self.colors: Derived[str, tuple[Color, ...]] = graph.derive(world.networks, self._colors)
        self.colors_by_name: Index[tuple[Color, ...]] = self.colors.index(
            lambda colors: {(color.tenant, color.name) for color in colors}
        )
        self.bindings: Derived[str, Binding] = graph.derive(world.tenants, self._binding)
        self.name_of_tenant: Derived[str, str] = graph.derive(world.tenants_by_uid, self._name_of_tenant)
        self.uid_of_group: Derived[str, str] = graph.derive(world.groups, self._uid_of_group)
        self.members: Derived[str, tuple[int, ...]] = graph.derive(world.groups, self._members)  # by name
        self.groups: Derived[str, CompiledTier] = graph.derive(world.groups, self._group)  # by name
        self.group_names: Derived[str, str] = graph.derive(world.groups_by_uid, self._group_name)
        self.tiers_of_labels: Derived[Labels, tuple[str, ...]] = graph.derive(
            world.tenants_by_labels, self._tiers_of_labels
        )
        self.tiers: Derived[str, tuple[CompiledTier, ...]] = graph.derive(self.guarded_tenants, self._tiers)
        self.bodies: Derived[int, Body] = graph.derive(self.guarded_identities, self._body)
        self.rules: Derived[tuple[str, int], Resource] = graph.derive(self.guards_by_place, self._rules)

    # ---- who is guarded

    def _guard(self, read: Read, name: str) -> Guard | None:
        port, holding = read.get(self.world.ports, name), read.get(self.scopes.holdings, name)
        if port is None or holding is None or not holding.hosts or not read.get(self.scopes.guarded, port.spec.network):
            return None
        return Guard(port.spec.tenant, port.spec.identity, holding.hosts)

    def _is_guarded_identity(self, read: Read, identity: int) -> bool | None:
        return True if read.any(self.guards_by_identity, identity) else None

    def _is_guarded_tenant(self, read: Read, tenant: str) -> bool | None:
        return True if read.any(self.guards_by_tenant, tenant) else None

    # ---- groups

    def _colors(self, read: Read, name: str) -> tuple[Color, ...] | None:
        network, domain = read.get(self.world.networks, name), read.get(self.scopes.domain_of_network, name)
        if network is None or domain is None:
            return None
        tenant = network.spec.tenant
        found = [Color(tenant, s.color, domain, s.color_number) for s in network.spec.segments if s.color_number]
        return tuple(found) or None

    def _uid_of_group(self, read: Read, name: str) -> str | None:
        group = read.get(self.world.groups, name)
        return group.uid if group else None

    def _group_name(self, read: Read, uid: str) -> str | None:
        return next(iter(read.keys(self.world.groups_by_uid, uid)), None)

    def _members(self, read: Read, name: str) -> tuple[int, ...] | None:
        """The identities of a group, ascending; in a default group are also ports that name none."""
        uid, tenant = read.get(self.uid_of_group, name), read.get(self.bindings, tenant_of(name))
        if uid is None or tenant is None:
            return None
        found = set(read.keys(self.world.identities_by_group, uid))
        if name == default_group(tenant.name):
            found.update(read.keys(self.world.identities_by_group, tenant.uid))
        return tuple(sorted(found))

    def _group(self, read: Read, name: str) -> CompiledTier | None:
        group = read.get(self.world.groups, name)
        if group is None:
            return None
        spec, owner = group.spec, Owner(name, group.uid, group.spec.mode)
        rules = tuple(compiled(rule, owner, self._resolved(read, rule, spec.tenant, rule.group)) for rule in spec.rules)
        return CompiledTier(Position.GROUPS, rules, spec.mode, spec.on_change)

    def _resolved(self, read: Read, rule: RuleSpec, tenant: str, group: str) -> Resolved:
        """What a rule's names mean; a group that is not there has no members."""
        identities = (read.get(self.members, group) or ()) if group else None
        return Resolved(identities, self._places(read, tenant, rule.color) if rule.color else None)

    def _places(self, read: Read, tenant: str, color: str) -> tuple[tuple[int, int], ...]:
        found = {
            (place.domain, place.number)
            for places in read.all(self.colors_by_name, (tenant, color))
            for place in places
            if place.name == color
        }
        return tuple(sorted(found))

    # ---- tiers

    def _binding(self, read: Read, name: str) -> Binding | None:
        tenant = read.get(self.world.tenants, name)
        return Binding(name, tenant.uid, tenant.labels) if tenant else None

    def _name_of_tenant(self, read: Read, uid: str) -> str | None:
        return next(iter(read.keys(self.world.tenants_by_uid, uid)), None)

    def _tiers_of_labels(self, read: Read, labels: Labels) -> tuple[str, ...] | None:
        """The names of the tiers that bind tenants with these labels, in the order of asking."""
        bound = [tier for tier in read.all(self.world.tiers_all, ALL) if selected(tier.spec.selector, labels)]
        bound.sort(key=lambda tier: (tier.spec.position is Position.BELOW, tier.spec.priority, tier.name))
        return tuple(tier.name for tier in bound) or None

    def _tiers(self, read: Read, tenant: str) -> tuple[CompiledTier, ...] | None:
        """The tiers that bind a tenant, for its own groups and colors."""
        binding = read.get(self.bindings, tenant)
        names = read.get(self.tiers_of_labels, binding.labels) if binding else None
        return tuple(self._tier(read, name, tenant) for name in names or ()) or None

    def _tier(self, read: Read, name: str, tenant: str) -> CompiledTier:
        tier = read.get(self.world.tiers, name)
        assert tier is not None, name  # it was read a moment ago
        spec, owner = tier.spec, Owner(name, tier.uid, tier.spec.mode)
        rules = tuple(
            compiled(rule, owner, self._resolved(read, rule, tenant, _in_tenant(rule, tenant))) for rule in spec.rules
        )
        return CompiledTier(spec.position, rules, spec.mode, spec.on_change)

    # ---- identities

    def _body(self, read: Read, identity: int) -> Body | None:
        row = read.get(self.world.identities, identity)
        tenant = read.get(self.name_of_tenant, row.members[0]) if row else None
        if row is None or tenant is None or not read.get(self.guarded_identities, identity):
            return None
        names = [read.get(self.group_names, uid) for uid in row.members[1:]] or [default_group(tenant)]
        found = [read.get(self.groups, name) if name else None for name in names]
        groups = [group for group in found if group is not None]
        # A group that is not there allows nothing, and is not in SHADOW mode.
        soft = len(groups) == len(names) and all(group.mode is Mode.SHADOW for group in groups)
        tiers = read.get(self.tiers, tenant) or ()
        return body_of(tiers, groups, Mode.SHADOW if soft else Mode.ENFORCE)

    def _rules(self, read: Read, place: tuple[str, int]) -> Resource | None:
        host_uid, identity = place
        row = read.get(self.bodies, identity)
        if row is None or not read.any(self.guards_by_place, place):
            return None
        return Resource(f"host/{host_uid}", rules_key(identity), row.body, REQUIRES)

    # ---- for those who ask

    def identities_bound_by(self, name: str) -> Iterable[int]:
        """The identities whose rules hold some of a group's or tier's."""
        return (n for n, body in self.bodies.rows.items() if any(origin.object == name for _, origin in body.origins))


def _in_tenant(rule: RuleSpec, tenant: str) -> str:
    """A tier names a group by its last part, in whichever tenant is bound."""
    return full_name("group", tenant, rule.group) if rule.group else ""
