"""Flows and groups as we want them. Their identity is their content.

A flow's cookie is an 8-bit mark (whose it is), an 8-bit feature (who wanted it) and 48 bits of a hash of table,
priority, match and actions. So a set of cookies says everything about what is there, and a flow that somebody changed
no longer fits its cookie.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
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
Key = int | GroupKey  # of the layer "flow": a flow's cookie, or ("group", id)

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
    def key(self) -> Key:
        """Key in the layer "flow"."""
        return self.cookie

    @property
    def identity(self) -> int:
        """What reading back gives for it at its key."""
        return self.cookie


class GroupKind(IntEnum):
    """Types of groups (OFPGT_*)."""

    ALL = 0
    SELECT = 1
    INDIRECT = 2


@dataclass(frozen=True, slots=True)
class Bucket:
    """Actions of a group; `weight` (1 … 65535) in select groups only."""

    actions: bytes
    weight: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """A group with an issued id. `content_group` makes one whose id is its content.

    `selection_method` of select groups: "" (OVS chooses), "dp_hash" or "hash"; `fields`: what "hash" takes.
    """

    group_id: int
    kind: GroupKind
    buckets: tuple[Bucket, ...]
    selection_method: Literal["", "dp_hash", "hash"] = ""
    fields: tuple[str, ...] = ()
    buckets_bytes: bytes = field(init=False, compare=False, repr=False)
    properties: bytes = field(init=False, compare=False, repr=False)
    digest: bytes = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        buckets = b"".join(self._bucket(number, bucket) for number, bucket in enumerate(self.buckets))
        properties = _selection(self.selection_method, self.fields) if self.selection_method else b""
        object.__setattr__(self, "buckets_bytes", buckets)
        object.__setattr__(self, "properties", properties)
        object.__setattr__(self, "digest", group_digest(self.kind, buckets, properties))

    def _bucket(self, number: int, bucket: Bucket) -> bytes:
        weight = _WEIGHT.pack(_OFPGBPT_WEIGHT, 8, bucket.weight) if self.kind is GroupKind.SELECT else b""
        length = 8 + len(bucket.actions) + len(weight)
        return _BUCKET.pack(length, len(bucket.actions), number) + bucket.actions + weight

    @property
    def key(self) -> Key:
        """Key in the layer "flow"."""
        return ("group", self.group_id)

    @property
    def identity(self) -> bytes:
        """What reading back gives for it at its key."""
        return self.digest


def group_digest(kind: int, buckets: bytes, properties: bytes) -> bytes:
    """What a group is, whatever its id: bytes as in OFPT_GROUP_MOD, which are those of OFPMP_GROUP_DESC, too."""
    head = kind.to_bytes(1, "big") + len(buckets).to_bytes(4, "big")
    return blake2b(head + buckets + properties, digest_size=16).digest()


def content_group(
    *,
    kind: GroupKind,
    buckets: Iterable[Bucket],
    selection_method: Literal["", "dp_hash", "hash"] = "",
    fields: tuple[str, ...] = (),
) -> Group:
    """A group whose id says what it does: to change it is to make another one."""
    members = tuple(buckets)
    draft = Group(0, kind, members, selection_method, fields)
    number = int.from_bytes(draft.digest[:8], "big") % GROUP_ID_LIMIT
    return Group(CONTENT_GROUP | number, kind, members, selection_method, fields)


def _selection(method: str, fields: tuple[str, ...]) -> bytes:
    """The property of netronome-ext.h in Open vSwitch: method and, as OXM with full masks as values, fields."""
    order = list(FIELDS.values())
    wanted = sorted((find(name) for name in fields), key=order.index)
    array = b"".join(each.exact + each.full.to_bytes(each.size, "big") for each in wanted)
    length = _NTR.size + len(array)
    head = _NTR.pack(_OFPGPT_EXPERIMENTER, length, _NTR_VENDOR, _NTRT_SELECTION_METHOD, method.encode("ascii"))
    return head + array + bytes(-length % 8)
