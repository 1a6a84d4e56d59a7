"""Identities: the number of a tenant and a set of security groups, found or issued in the transaction that needs it."""

from __future__ import annotations

import random
from collections.abc import Iterable

from controller.allocate import FIRST_NUMBER, LAST_NUMBER
from controller.draft import Draft, Reach
from controller.intents.base import identity_digest, take_number
from tealnet.store.v1 import store_pb2


def identity_of(draft: Draft, tenant_uid: str, group_uids: Iterable[str], *, rng: random.Random) -> int:
    """The number, issued now if it is the first port of its kind. Raises ResourceExhausted."""
    keys, world = draft.keys, draft.reading.world
    members = (tenant_uid, *sorted(group_uids))
    known = draft.reading.identity(members)
    if known is not None:
        return known
    digest = identity_digest(members)
    by_set = keys.identity_set(digest)
    draft.reading.absent(by_set)
    row = store_pb2.Identity(tenant_uid=tenant_uid, group_uids=members[1:]).SerializeToString()
    number = take_number(
        draft,
        f"identity {digest}",
        span=(FIRST_NUMBER, LAST_NUMBER),
        used=lambda n: n in world.identities.rows,
        key_of=keys.identity,
        value=row,
        rng=rng,
        reach=Reach.COMMIT,  # the ports of a batch with these groups have the same one
    )
    draft.put(by_set, str(number).encode())
    return number
