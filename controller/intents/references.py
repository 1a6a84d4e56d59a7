"""References of groups and ports to security groups: each is a key by which the group can't go."""

from __future__ import annotations

from collections.abc import Iterable

from controller.draft import Draft
from controller.errors import NotFound
from controller.rows import Intent
from controller.rows_policy import GroupSpec


def existing_group(draft: Draft, name: str, *, field: str) -> Intent[GroupSpec]:
    """A group that is named in a field; it still is there when the transaction commits. Raises NotFound."""
    group = draft.reading.exists("group", name)
    if group is None:
        raise NotFound(name, field=field)
    return group


def refer(draft: Draft, *, by_kind: str, by_uid: str, value: bytes, before: Iterable[str], now: Iterable[str]) -> None:
    """Change the references of one object from some groups to others, by uid."""
    old, new = set(before), set(now)
    for uid in new - old:
        draft.put(draft.keys.reference(kind="group", uid=uid, by_kind=by_kind, by_uid=by_uid), value)
    for uid in old - new:
        draft.delete(draft.keys.reference(kind="group", uid=uid, by_kind=by_kind, by_uid=by_uid))
