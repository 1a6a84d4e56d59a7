"""Flows and groups as we want them. Their identity is their content.

A flow's cookie is an 8-bit mark (whose it is), an 8-bit feature (who wanted it) and 48 bits of a hash of table,
priority, match and actions. So a set of cookies says everything about what is there, and a flow that somebody changed
no longer fits its cookie.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from hashlib import blake2b
from struct import Struct, error
from typing import Literal

from agent.openflow.errors import ProtocolError
from agent.openflow.oxm import FIELDS, find

MARK = 0x74  # "t": first byte of the cookie of each flow of ours
CONTENT_GROUP = 1 << 31  # set in ids that are hashes of the group's content, clear in ids issued by the controller
GROUP_ID_LIMIT = 0x7FFFFF00  # OFPG_MAX without the bit above

GroupKey = tuple[Literal["group"], int]
SelectionMethod = Literal["", "dp_hash", "hash"]

_FLOW = Struct("!BHH")
_BUCKET = Struct("!HHI")
_WEIGHT = Struct("!HHH2x")
_NTR = Struct("!HHII4x16s8x")  # OFPGPT_EXPERIMENTER, length, vendor, type, method
_OFPGBPT_WEIGHT = 0
_OFPGPT_EXPERIMENTER = 0xFFFF
_NTR_VENDOR = 0x0000154D
_NTRT_SELECTION_METHOD = 1


def content_hash(table: int, priority: int, match: bytes, actions: bytes) -> int:
    """48 bits of what a flow is. Who wanted it is not part of it."""
    data = _FLOW.pack(table, priority, len(match)) + match + actions
    return int.from_bytes(blake2b(data, digest_size=6).digest(), "big")


def is_ours(cookie: int) -> bool:
    """Whether a flow with this cookie was made by a Tealnet agent."""
    return cookie >> 56 == MARK


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow. `match` is of `oxm.match`, `actions` a concatenation of `actions`; no actions = drop."""

    table: int
    priority: int
    match: bytes
    actions: bytes
    feature: int
    cookie: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        try:
            number = content_hash(self.table, self.priority, self.match, self.actions)
        except error as why:
            raise ProtocolError(f"no such flow: table {self.table}, priority {self.priority}") from why
        object.__setattr__(self, "cookie", MARK << 56 | (self.feature & 0xFF) << 48 | number)

    @property
    def key(self) -> int:
        """Key in the layer "flow"."""
        return self.cookie


class GroupKind(IntEnum):
    """Types of groups (OFPGT_*)."""

    ALL = 0
    SELECT = 1
    INDIRECT = 2
    FAST_FAILOVER = 3


@dataclass(frozen=True, slots=True)
class Bucket:
    """Actions of a group; `weight` (1 … 65535) in select groups only."""

    actions: bytes
    weight: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """A group, its buckets and properties as they are on the wire. Made by `issued_group` and `content_group`."""

    group_id: int
    kind: GroupKind
    buckets: bytes
    properties: bytes

    @property
    def key(self) -> GroupKey:
        """Key in the layer "flow"."""
        return ("group", self.group_id)


def issued_group(
    group_id: int,
    kind: GroupKind,
    *,
    buckets: Iterable[Bucket],
    selection_method: SelectionMethod = "",
    fields: tuple[str, ...] = (),
) -> Group:
    """A group with an id that somebody issued; it can be changed in place.

    `selection_method` of select groups: "" (the switch chooses), "dp_hash" or "hash"; `fields`: what "hash" takes.
    """
    body = b"".join(_bucket(kind, number, bucket) for number, bucket in enumerate(buckets))
    return Group(group_id, kind, body, _selection(selection_method, fields) if selection_method else b"")


def content_group(
    kind: GroupKind,
    *,
    buckets: Iterable[Bucket],
    selection_method: SelectionMethod = "",
    fields: tuple[str, ...] = (),
) -> Group:
    """A group whose id says what it does: to change it is to make another one."""
    draft = issued_group(0, kind, buckets=buckets, selection_method=selection_method, fields=fields)
    head = kind.to_bytes(1, "big") + len(draft.buckets).to_bytes(4, "big")
    digest = blake2b(head + draft.buckets + draft.properties, digest_size=8).digest()
    return replace(draft, group_id=CONTENT_GROUP | int.from_bytes(digest, "big") % GROUP_ID_LIMIT)


def _bucket(kind: GroupKind, number: int, bucket: Bucket) -> bytes:
    weight = _WEIGHT.pack(_OFPGBPT_WEIGHT, 8, bucket.weight) if kind is GroupKind.SELECT else b""
    length = 8 + len(bucket.actions) + len(weight)
    return _BUCKET.pack(length, len(bucket.actions), number) + bucket.actions + weight


def _selection(method: str, fields: tuple[str, ...]) -> bytes:
    """The property of netronome-ext.h in Open vSwitch: method and, as OXM with full masks as values, fields."""
    order = list(FIELDS.values())
    wanted = sorted((find(name) for name in fields), key=order.index)
    array = b"".join(each.exact + each.full.to_bytes(each.size, "big") for each in wanted)
    length = _NTR.size + len(array)
    head = _NTR.pack(_OFPGPT_EXPERIMENTER, length, _NTR_VENDOR, _NTRT_SELECTION_METHOD, method.encode("ascii"))
    return head + array + bytes(-length % 8)
