"""Policy tiers: global objects of admins. They name groups only by their last part, so nothing holds them."""

from __future__ import annotations

from controller.draft import Draft
from controller.features import security_check as check
from controller.fields import Violations
from controller.intents.base import Context, new_uid, stamp, stored
from controller.masks import OUTPUT, Policy
from controller.rows import Intent
from controller.rows_policy import TierSpec
from tealnet.store.v1 import store_pb2
from tealnet.v1 import security_pb2


class Tiers:
    """Writer of policy tiers."""

    kind = "tier"
    policy = Policy(output=OUTPUT | {"status"})

    def __init__(self, context: Context) -> None:
        self.context = context

    def fields(self, message: security_pb2.PolicyTier, found: Violations) -> None:
        """Each field by itself; puts rules into canonical form."""
        check.tier_fields(message, found)

    def create(self, draft: Draft, name: str, message: security_pb2.PolicyTier) -> None:
        """Nothing but the object itself."""
        self._shape(message)
        message.name = name
        stamp(message, draft.now, created=draft.now)
        draft.create("tier", name, stored(message, uid=new_uid(), issued=store_pb2.Issued()))

    def update(self, draft: Draft, row: Intent[TierSpec], message: security_pb2.PolicyTier) -> None:
        """Nothing but the object itself."""
        self._shape(message)
        stamp(message, draft.now)
        draft.replace("tier", row, message=message)

    def delete(self, draft: Draft, row: Intent[TierSpec]) -> None:
        """T5: nothing refers to a tier."""
        draft.remove("tier", row)

    def _shape(self, message: security_pb2.PolicyTier) -> None:
        found = Violations("policy_tier")
        check.tier_shape(message, found)
        found.finish()
        check.mode_defaults(message)
