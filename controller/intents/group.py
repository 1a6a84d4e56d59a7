"""Security groups: T0-like create, update with references, T5; and the default group that every tenant has.

The default group comes and goes with its tenant: it has no quota slot and holds no reference to the tenant, so it is
never in the way of the tenant's end.
"""

from __future__ import annotations

from collections.abc import Container

from google.protobuf.timestamp_pb2 import Timestamp

from controller.draft import Draft
from controller.errors import AlreadyExists, Blocker, FailedPrecondition
from controller.etcd.types import Compare, absent, created, put
from controller.features import security_check as check
from controller.features.l2_check import same_tenant
from controller.fields import Violations
from controller.hosts import timestamp
from controller.intents.base import (
    Context,
    Quota,
    holder,
    issued_of,
    living_tenant,
    new_uid,
    refuse_referenced,
    stamp,
    stored,
    stored_message,
    take_slot,
)
from controller.intents.references import existing_group, refer
from controller.masks import OUTPUT, Policy
from controller.names import default_group, tenant_of
from controller.rows import Intent, TenantSpec
from controller.rows_policy import GroupSpec
from controller.store import Store
from tealnet.store.v1 import store_pb2
from tealnet.v1 import security_pb2


class Groups:
    """Writer of security groups."""

    kind = "group"
    policy = Policy(output=OUTPUT | {"status"})

    def __init__(self, context: Context) -> None:
        self.context = context

    def fields(self, message: security_pb2.SecurityGroup, found: Violations) -> None:
        """Each field by itself; puts rules into canonical form."""
        check.group_fields(message, found)

    def create(self, draft: Draft, name: str, message: security_pb2.SecurityGroup) -> None:
        """With a reference to each group that its rules name."""
        if name == default_group(tenant_of(name)):
            raise AlreadyExists(name)
        self._shape(name, message)
        tenant = living_tenant(draft, tenant_of(name))
        uid, settings = new_uid(), self.context.settings
        limit = tenant.spec.max_groups or settings.quota_groups
        quota = Quota("group", limit, draft.reading.world.groups_by_slot, beside=1)
        slot = take_slot(draft, tenant, quota, uid=uid, name=name, rng=self.context.rng)
        message.name = name
        check.mode_defaults(message)
        named = self._named(draft, name, message, ())
        refer(draft, by_kind="group", by_uid=uid, value=holder(name, uid), before=(), now=named)
        issued = store_pb2.Issued(tenant_uid=tenant.uid, group_uids=named)
        stamp(message, draft.now, created=draft.now)
        draft.create("group", name, stored(message, uid=uid, issued=issued, slot=slot))
        draft.put(draft.keys.reference(kind="tenant", uid=tenant.uid, by_kind="group", by_uid=uid), holder(name, uid))

    def update(self, draft: Draft, row: Intent[GroupSpec], message: security_pb2.SecurityGroup) -> None:
        """References change with the rules."""
        self._shape(row.name, message)
        check.mode_defaults(message)
        self._replace(draft, row, message)

    def _replace(self, draft: Draft, row: Intent[GroupSpec], message: security_pb2.SecurityGroup) -> None:
        issued = issued_of(row)
        named = self._named(draft, row.name, message, issued.group_uids)
        value = holder(row.name, row.uid)
        refer(draft, by_kind="group", by_uid=row.uid, value=value, before=issued.group_uids, now=named)
        issued.group_uids[:] = named
        stamp(message, draft.now)
        draft.replace("group", row, message=message, issued=issued)

    def empty(self, draft: Draft, row: Intent[GroupSpec]) -> None:
        """Take all rules out: groups that refer to each other can go only then."""
        message = stored_message(row, "group")
        message.ClearField("ingress")
        message.ClearField("egress")
        self._replace(draft, row, message)

    def delete(self, draft: Draft, row: Intent[GroupSpec]) -> None:
        """T5: only without ports in it, and when no other group's rule names it."""
        if row.name == default_group(row.spec.tenant):
            text = f"{row.name} is the group of ports that name none: it goes with its tenant. Change its rules instead"
            raise FailedPrecondition(text, [Blocker("DEFAULT_GROUP", row.name, text)], reason="DEFAULT_GROUP")
        self.remove(draft, row)
        issued = issued_of(row)
        draft.delete(draft.keys.slot(tenant_uid=issued.tenant_uid, kind="group", slot=row.slot))
        draft.delete(draft.keys.reference(kind="tenant", uid=issued.tenant_uid, by_kind="group", by_uid=row.uid))

    def remove(self, draft: Draft, row: Intent[GroupSpec]) -> None:
        """What goes with any group."""
        refuse_referenced(draft, row.name, kind="group", uid=row.uid)
        draft.remove("group", row)
        named = issued_of(row).group_uids
        refer(draft, by_kind="group", by_uid=row.uid, value=b"", before=named, now=())

    # ---- the default group

    def give_default(self, draft: Draft, tenant: str, tenant_uid: str) -> None:
        """With the tenant itself: whatever one of that name an old controller has left behind is written over."""
        name = default_group(tenant)
        draft.reading.row("group", name)
        value = _default(name, tenant_uid=tenant_uid, now=draft.now)
        draft.put_object("group", name, value)

    def take_default(self, draft: Draft, tenant: Intent[TenantSpec]) -> None:
        """With the tenant itself."""
        if row := draft.reading.row("group", default_group(tenant.name)):
            self.remove(draft, row)

    # ---- checks

    def _shape(self, name: str, message: security_pb2.SecurityGroup) -> None:
        found = Violations("security_group")
        for field, _, rule in check.rules_of(message):
            same_tenant(rule.remote_group, name, f"{field}.remote_group", found)
        check.group_shape(message, found)
        found.finish()

    def _named(self, draft: Draft, name: str, message: security_pb2.SecurityGroup, held: Container[str]) -> list[str]:
        """The uids of the other groups that the rules name, sorted; those in `held` can't go. Raises NotFound."""
        found: dict[str, str] = {}
        for field, _, rule in check.rules_of(message):
            other = rule.remote_group
            if not other or other == name or other in found:
                continue
            known = draft.reading.peek("group", other)
            if known is None or known.uid not in held:
                known = existing_group(draft, other, field=f"security_group.{field}.remote_group")
            found[other] = known.uid
        return sorted(found.values())


def _default(name: str, *, tenant_uid: str, now: Timestamp) -> store_pb2.Stored:
    message = security_pb2.SecurityGroup(name=name, description="For ports that name no group")
    check.default_rules(message)
    stamp(message, now, created=now)
    return stored(message, uid=new_uid(), issued=store_pb2.Issued(tenant_uid=tenant_uid))


async def ensure_default(store: Store, tenant: str, *compares: Compare) -> None:
    """Give a tenant that was made before there were groups its default one. Raises the store's errors."""
    name = default_group(tenant)
    row = store.world.tenants.rows.get(tenant)
    if row is None or name in store.world.groups.rows:
        return
    key = store.keys.intent(name)
    checks = [*compares, absent(key), created(store.keys.intent(tenant), row.create_revision)]
    value = _default(name, tenant_uid=row.uid, now=timestamp()).SerializeToString()
    result = await store.etcd.txn(checks, [put(key, value)])
    if result.succeeded:
        store.wrote("CreateDefaultGroup", [name], result.revision)
        await store.passed(result.revision)
    else:
        await store.barrier()  # another was faster, or the tenant is no more
