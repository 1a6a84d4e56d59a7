"""Tenants: T0."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from controller import fields
from controller.draft import Draft
from controller.errors import invalid
from controller.fields import Violations
from controller.intents.base import Context, new_uid, refuse_referenced, stamp, stored
from controller.intents.group import Groups
from controller.masks import OUTPUT, Policy
from controller.rows import Intent, TenantSpec
from tealnet.store.v1 import store_pb2
from tealnet.v1 import common_pb2, host_pb2, tenant_pb2

_MOST = 10_000_000
_LAST_SECOND = 253_402_300_799  # 9999-12-31: the end of Timestamp's range


class Tenants:
    """Writer of tenants."""

    kind = "tenant"
    policy = Policy(output=OUTPUT | {"state"}, chosen=frozenset({"revoked_before"}))

    def __init__(self, context: Context) -> None:
        self.context = context
        self._groups = Groups(context)

    def fields(self, message: tenant_pb2.Tenant, found: Violations) -> None:
        """Each field by itself."""
        fields.common(message, found)
        fields.labels(message.placement.host_selector, "placement.host_selector", found)
        for i, kind in enumerate(message.placement.kinds):
            if kind not in common_pb2.AttachmentKind.values() or not kind:
                found.add(f"placement.kinds[{i}]", f"{kind} is not NETNS, NETNS_PATH or DEVICE")
        if len(message.placement.kinds) > len(set(message.placement.kinds)):
            found.add("placement.kinds", "a kind stands here twice")
        for quota in ("networks", "routers", "ports", "rollouts", "security_groups"):
            if getattr(message.quota, quota) > _MOST:
                found.add(f"quota.{quota}", f"at most {_MOST}; 0 means the default")
        check_time(message.revoked_before, "revoked_before", found)

    def create(self, draft: Draft, name: str, message: tenant_pb2.Tenant) -> None:
        """T0, with the group of ports that name none."""
        message.name, message.state = name, tenant_pb2.Tenant.STATE_ACTIVE
        stamp(message, draft.now, created=draft.now)
        begin_revocation(message)
        uid = new_uid()
        draft.create("tenant", name, stored(message, uid=uid, issued=store_pb2.Issued()))
        self._groups.give_default(draft, name, uid)

    def update(self, draft: Draft, row: Intent[TenantSpec], message: tenant_pb2.Tenant) -> None:
        """Only the object itself: a lower quota never breaks what exists."""
        begin_revocation(message)
        stamp(message, draft.now)
        draft.replace("tenant", row, message=message)

    def delete(self, draft: Draft, row: Intent[TenantSpec]) -> None:
        """T5."""
        refuse_referenced(draft, row.name, kind="tenant", uid=row.uid)
        draft.remove("tenant", row)
        self._groups.take_default(draft, row)


def begin_revocation(message: tenant_pb2.Tenant | host_pb2.Host) -> None:
    """Certificates older than the object never count, so that a re-created name accepts none of its predecessor's."""
    begin = Timestamp(seconds=message.create_time.seconds)
    if not message.HasField("revoked_before"):
        message.revoked_before.CopyFrom(begin)
    elif message.revoked_before.seconds < begin.seconds:
        text = f"must not be before the object was created ({begin.ToJsonString()})"
        raise invalid(f"{message.DESCRIPTOR.name.lower()}.revoked_before", text)


def check_time(value: Timestamp, field: str, found: Violations) -> None:
    """A timestamp within its type's range (timestamp.proto)."""
    if not 0 <= value.seconds <= _LAST_SECOND or not 0 <= value.nanos < 10**9:
        found.add(field, "is not a time between 1970 and 9999")
