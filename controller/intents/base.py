"""What the writers of all kinds share."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from controller import allocate, decode
from controller.draft import Draft, Reach
from controller.errors import Aborted, Blocker, FailedPrecondition, NotFound, ResourceExhausted
from controller.etcd.types import KeyValue, Page, prefix_end
from controller.fields import Violations
from controller.masks import Policy
from controller.rows import Intent, TenantSpec
from controller.settings import Settings
from tealnet.core.tables import Index
from tealnet.store.v1 import store_pb2


@dataclass(frozen=True, slots=True)
class Context:
    """What writers need beside the draft."""

    settings: Settings
    rng: random.Random


class Writer(Protocol):
    """One kind: checks and key changes. Messages are in canonical form once `fields` has run."""

    kind: str
    policy: Policy

    def fields(self, message: Any, found: Violations) -> None:
        """Each field by itself; puts the message into canonical form."""

    def create(self, draft: Draft, name: str, message: Any) -> None:
        """Fill the draft with a new object. Raises ApiError."""

    def update(self, draft: Draft, row: Intent[Any], message: Any) -> None:
        """Fill the draft with what changes when the object has this message. Raises ApiError."""

    def delete(self, draft: Draft, row: Intent[Any]) -> None:
        """Fill the draft with what goes with the object. Raises ApiError."""


def new_uid() -> str:
    """UUIDv4 as 32 hex."""
    return uuid.uuid4().hex


def holder(name: str, uid: str) -> bytes:
    """The value of a key that an object holds."""
    return store_pb2.Holder(name=name, uid=uid).SerializeToString(deterministic=True)


def holder_of(found: KeyValue) -> store_pb2.Holder:
    """Who holds a key."""
    return store_pb2.Holder.FromString(found.value)


def stored_message(row: Intent[Any], kind: str) -> Any:
    """The API message as stored, with all that is unknown to this build."""
    stored = store_pb2.Stored.FromString(row.stored)
    return decode.MESSAGES[kind].FromString(stored.message)


def issued_of(row: Intent[Any]) -> store_pb2.Issued:
    """The numbers issued for an object; a copy."""
    return store_pb2.Stored.FromString(row.stored).issued


def stamp(message: Any, now: Timestamp, *, created: Timestamp | None = None) -> None:
    """Set the times of a message about to be stored."""
    message.create_time.CopyFrom(created or message.create_time)
    message.update_time.CopyFrom(now)


def stored(message: Message, *, uid: str, issued: store_pb2.Issued, slot: int = 0) -> store_pb2.Stored:
    """A new object's value."""
    return store_pb2.Stored(message=message.SerializeToString(deterministic=True), uid=uid, slot=slot, issued=issued)


def living_tenant(draft: Draft, name: str) -> Intent[TenantSpec]:
    """The tenant that is to get an object. Raises NotFound; FailedPrecondition while it is being deleted."""
    tenant = draft.reading.row("tenant", name)
    if tenant is None:
        raise NotFound(name)
    if tenant.spec.deleting:
        blocker = Blocker("TENANT_DELETING", name, f"{name} is being deleted")
        raise FailedPrecondition(f"{name} is being deleted and takes nothing new", [blocker], reason="TENANT_DELETING")
    return tenant


@dataclass(frozen=True, slots=True)
class Quota:
    """How many objects of a kind a tenant may have, and where its slots are indexed."""

    kind: str
    limit: int
    by_slot: Index[Any]
    beside: int = 0  # objects that need no slot


def take_slot(
    draft: Draft, tenant: Intent[TenantSpec], quota: Quota, *, uid: str, name: str, rng: random.Random
) -> int:
    """A free slot of the tenant's quota (A6). Raises ResourceExhausted."""
    world = draft.reading.world
    overlaid = {row.slot for (kind, other), row in draft.reading.overlay.items() if kind == quota.kind}

    def find(is_free: Callable[[int], bool]) -> int:
        def unused(slot: int) -> bool:
            return not quota.by_slot.keys((tenant.name, slot)) and slot not in overlaid and is_free(slot)

        # After a quota was lowered slots above it are taken, and so many below it are not to be given out.
        if len(getattr(world, f"{quota.kind}s_by_tenant").keys(tenant.name)) >= quota.limit + quota.beside:
            raise allocate.Exhausted(quota.limit)
        return allocate.number(0, quota.limit - 1, is_free=unused, rng=rng)

    try:
        return draft.propose(
            "slot",
            find,
            key_of=lambda slot: draft.keys.slot(tenant_uid=tenant.uid, kind=quota.kind, slot=slot),
            value=holder(name, uid),
        )
    except allocate.Exhausted:
        text = f"{tenant.name} may have {quota.limit} {quota.kind}s, and has them; an admin can raise its quota"
        raise ResourceExhausted(text, subject=tenant.name, reason="QUOTA_EXCEEDED") from None


def take_number(
    draft: Draft, label: str, *, span: tuple[int, int], used: Callable[[int], bool], key_of: Callable[[int], bytes],
    value: bytes, rng: random.Random, reach: Reach = Reach.ITEM,
) -> int:  # fmt: skip
    """A free number of a pool. Raises ResourceExhausted."""

    def find(is_free: Callable[[int], bool]) -> int:
        return allocate.number(*span, is_free=lambda n: not used(n) and is_free(n), rng=rng)

    try:
        return draft.propose(label, find, key_of=key_of, value=value, reach=reach)
    except allocate.Exhausted as error:
        text = f"no {label} is free: all {error.size} within {span[0]}…{span[1]} are in use or not yet released"
        raise ResourceExhausted(text, subject=label, reason="POOL_EXHAUSTED") from None


def take_domain(draft: Draft, *, value: bytes, rng: random.Random) -> int:
    """A routing domain number (A8: 32 bit, at random)."""
    world = draft.reading.world
    return take_number(
        draft,
        "routing domain number",
        span=(allocate.FIRST_NUMBER, allocate.LAST_NUMBER),
        used=lambda n: bool(world.networks_by_domain.keys(n) or world.routers_by_domain.keys(n)),
        key_of=draft.keys.domain,
        value=value,
        rng=rng,
    )


def identity_digest(members: tuple[str, ...]) -> str:
    """The hash under which the identity of a tenant's uid and, sorted, the uids of groups is found."""
    return blake2b("/".join(members).encode(), digest_size=16).hexdigest()


def refuse_referenced(draft: Draft, name: str, *, kind: str, uid: str) -> None:
    """Nobody may refer to the object; the error says who does."""
    prefix = draft.keys.references(kind, uid)

    def refuse(page: Page) -> FailedPrecondition:
        blockers = []
        for kv in page.kvs:
            by_kind, by = draft.keys.relative(kv.key).split("/")[4], holder_of(kv).name
            blockers.append(Blocker("REFERENCED", by, f"{by_kind} {by} refers to it"))
        names = ", ".join(blocker.subject for blocker in blockers)
        more = f" and {page.count - len(blockers)} more" if page.count > len(blockers) else ""
        return FailedPrecondition(f"{name} is in use by {names}{more}", blockers, reason="IN_USE")

    draft.must_be_empty(prefix, prefix_end(prefix), refuse)


def release(draft: Draft, key: bytes, *, name: str, uid: str) -> None:
    """A number is given back: free only when no host can hold its old meaning (A8); the chore leader frees it."""
    draft.put(key, store_pb2.Holder(name=name, uid=uid, released=True).SerializeToString(deterministic=True))


def check_etag(row: Intent[Any], etag: str) -> None:
    """The caller's idea of the object must be the stored one. Raises Aborted."""
    if etag and etag != etag_of(row):
        raise Aborted(
            f"{row.name} has changed since it was read: get it again and repeat the change", reason="ETAG_MISMATCH"
        )


def etag_of(row: Intent[Any]) -> str:
    """Hash of an object's intent; its status is not in it."""
    return blake2b(row.uid.encode() + store_pb2.Stored.FromString(row.stored).message, digest_size=8).hexdigest()
