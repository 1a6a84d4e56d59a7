"""What is kept of a host between sessions: its status row, which several write, each its own part of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from controller.etcd import Etcd
from controller.etcd.types import Compare, Page, get, modified, put
from controller.keys import Keys
from tealnet.store.v1 import store_pb2

Edit = Callable[[store_pb2.HostStatusRow], None]
_TRIES = 8


def timestamp(seconds: float | None = None) -> Timestamp:
    """A moment, default now."""
    moment = Timestamp()
    moment.FromNanoseconds(time.time_ns() if seconds is None else int(seconds * 1e9))
    return moment


async def edit_host_status(
    etcd: Etcd, keys: Keys, host_uid: str, edit: Edit, compares: Sequence[Compare] = ()
) -> int | None:
    """Read, edit and write a host's status row, unless another condition does not hold.

    Returns the revision of the row with the edit (also when it needed no writing), None if a condition of `compares`
    failed. Raises the store's errors.
    """
    key = keys.host_status(host_uid)
    for _ in range(_TRIES):
        page = await etcd.range(key)
        old = page.kvs[0] if page.kvs else None
        row = store_pb2.HostStatusRow.FromString(old.value) if old else store_pb2.HostStatusRow()
        edit(row)
        value = row.SerializeToString()
        if old and value == old.value:
            return old.mod_revision
        unchanged = modified(key, old.mod_revision if old else 0)
        result = await etcd.txn([unchanged, *compares], [put(key, value)], [get(key)])
        if result.succeeded:
            return result.revision
        now = result.responses[0]
        assert isinstance(now, Page)
        if (now.kvs[0].mod_revision if now.kvs else 0) == (old.mod_revision if old else 0):
            return None
    return None


def set_condition(row: store_pb2.HostStatusRow, *, kind: str, text: str, remedy: str) -> None:
    """Add or change one condition; its `since` stays while it lasts."""
    for condition in row.conditions:
        if condition.type == kind:
            condition.text, condition.remedy = text, remedy
            return
    row.conditions.append(store_pb2.StoredCondition(type=kind, text=text, remedy=remedy, since=timestamp()))


def clear_conditions(row: store_pb2.HostStatusRow, *kinds: str) -> None:
    """Remove conditions."""
    kept = [c for c in row.conditions if c.type not in kinds]
    del row.conditions[:]
    row.conditions.extend(kept)
