"""From a rule's number back to what a user wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controller.decode_policy import in_words
from controller.features.security import Security
from controller.features.security_rules import Origin, rule_id
from controller.rows import Intent
from controller.rows_policy import GroupSpec, RuleSpec, TierSpec
from controller.world import World
from tealnet.v1 import security_pb2

Owner = Intent[GroupSpec] | Intent[TierSpec]


class Origins:
    """Looks rules up in the tables as they are now."""

    def __init__(self, world: World, security: Security) -> None:
        self.world, self.security = world, security

    def of_identity(self, identity: int, number: int) -> security_pb2.RuleOrigin | None:
        """The rule that an identity's hosts know by this number."""
        body = self.security.bodies.rows.get(identity)
        return next((self._shown(o) for n, o in body.origins if n == number), None) if body else None

    def owner(self, name: str) -> Owner | None:
        """A group or tier by name."""
        return self.world.groups.rows.get(name) or self.world.tiers.rows.get(name)

    def rules_of(self, owner: Owner) -> Iterator[security_pb2.RuleOrigin]:
        """Every rule of a group or tier that is in force."""
        for rule in owner.spec.rules:
            yield self.shown(owner, rule)

    def shown(self, owner: Owner, rule: RuleSpec) -> security_pb2.RuleOrigin:
        """A rule for users."""
        return security_pb2.RuleOrigin(
            object=owner.name,
            revision=owner.mod_revision,
            direction=f"RULE_DIRECTION_{rule.direction.value}",
            index=rule.index,
            action=f"RULE_ACTION_{rule.action.value}",
            mode=f"POLICY_MODE_{owner.spec.mode.value}",
            text=in_words(rule),
            id=rule_id(owner.uid, rule),
        )

    def _shown(self, origin: Origin) -> security_pb2.RuleOrigin | None:
        owner: Any = self.owner(origin.object)
        rules = owner.spec.rules if owner else ()
        found = (r for r in rules if (r.direction, r.index) == (origin.direction, origin.place))
        return next((self.shown(owner, rule) for rule in found), None)
