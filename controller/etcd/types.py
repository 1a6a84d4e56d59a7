"""Rows, compares, operations and results of the etcd client, as plain frozen values.

Nothing here knows protobuf or gRPC, so that a store in memory can evaluate the same transactions. Keys and values are
bytes, revisions and lease ids ints. A range is `[key, end)`; `end=b""` means the one key, `prefix_end(p)` the prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

END_OF_KEYS = b"\x00"
"""As the end of a range: everything from its start on (etcd's own meaning)."""


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that start with `prefix`.

    A trailing 0xff has no successor, so it is dropped and the byte before it is incremented; a prefix of 0xff only (or
    none) ends with the key space.
    """
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else END_OF_KEYS


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as etcd holds it; `lease` is 0 if none. In a deletion only key and mod_revision are set."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """The answer to a range read.

    `count` is the number of keys in the whole range, `more` says that `limit` cut it, `revision` is the one that was
    read (the store's, also when an older one was asked for).
    """

    kvs: tuple[KeyValue, ...]
    more: bool
    count: int
    revision: int


class Fetch(Enum):
    """What a range read brings back."""

    VALUES = "values"
    KEYS = "keys"
    COUNT = "count"


# ---- transactions


class Field(Enum):
    """What of a key is compared. All numbers of an absent key are 0; its value equals nothing."""

    CREATE = "create_revision"
    MOD = "mod_revision"
    VERSION = "version"
    VALUE = "value"


class Is(Enum):
    """How it is compared."""

    EQUAL = "="
    NOT_EQUAL = "!="
    GREATER = ">"
    LESS = "<"


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a transaction. With `end` it must hold for every key of the range."""

    key: bytes
    field: Field
    operand: int | bytes
    relation: Is = Is.EQUAL
    end: bytes = b""


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key; `lease` 0 = none (a lease that it had is dropped)."""

    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key or range; deleting the absent succeeds."""

    key: bytes
    end: bytes = b""


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key or range inside the transaction; `limit` 0 = all."""

    key: bytes
    end: bytes = b""
    limit: int = 0
    fetch: Fetch = Fetch.VALUES


@dataclass(frozen=True, slots=True)
class Nested:
    """A transaction inside a transaction, decided on the state before both."""

    compares: tuple[Compare, ...]
    then: tuple[Op, ...]
    orelse: tuple[Op, ...] = ()


Op = Put | Delete | Get | Nested


@dataclass(frozen=True, slots=True)
class PutDone:
    """Answer to a Put."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """Answer to a Delete: how many keys went."""

    count: int


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Answer to a transaction (or a nested one, whose `revision` is the outer one's).

    `revision`: if the branch taken wrote something, the revision of these writes; else the store's at that time.
    `responses`: one per operation of the branch taken, in its order.
    """

    succeeded: bool
    revision: int
    responses: tuple[Response, ...]


Response = Page | PutDone | Deleted | TxnResult


def absent(key: bytes) -> Compare:
    """The key does not exist."""
    return Compare(key, Field.CREATE, 0)


def present(key: bytes) -> Compare:
    """The key exists, whatever its life."""
    return Compare(key, Field.CREATE, 0, Is.NOT_EQUAL)


def created(key: bytes, revision: int) -> Compare:
    """The key exists and is in the same life: it was created at `revision` and not deleted since."""
    return Compare(key, Field.CREATE, revision)


def modified(key: bytes, revision: int) -> Compare:
    """The key is unchanged since `revision` (0: absent)."""
    return Compare(key, Field.MOD, revision)


def value_is(key: bytes, value: bytes) -> Compare:
    """The key exists and has exactly this value."""
    return Compare(key, Field.VALUE, value)


def empty(start: bytes, end: bytes) -> Compare:
    """No key exists in `[start, end)`; one range compare, whatever the size of the range."""
    return Compare(start, Field.CREATE, 0, end=end)


def put(key: bytes, value: bytes, lease: int = 0) -> Put:
    """Write a key, on a lease if given."""
    return Put(key, value, lease)


def delete(key: bytes, end: bytes = b"") -> Delete:
    """Delete a key, or the range `[key, end)`."""
    return Delete(key, end)


def get(key: bytes, end: bytes = b"", *, limit: int = 0, fetch: Fetch = Fetch.VALUES) -> Get:
    """Read a key, or the range `[key, end)`, at the state the transaction sees (its own writes before it included)."""
    return Get(key, end, limit, fetch)


def nested(compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op] = ()) -> Nested:
    """A transaction as an operation; without compares it groups operations beyond one list's limit."""
    return Nested(tuple(compares), tuple(then), tuple(orelse))


# ---- watch


class EventKind(Enum):
    """What happened to a key."""

    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one key; `kv.mod_revision` is the revision of the change, also of a deletion.

    `prev` is the key before the change, if the watch asked for it, it existed and is not compacted.
    """

    kind: EventKind
    kv: KeyValue
    prev: KeyValue | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes in commit order, ending with `revision`; all changes of a revision are in one batch."""

    revision: int
    events: tuple[Event, ...]


class Previous(Enum):
    """Whether a watch brings what was there before each change."""

    OMIT = "omit"
    INCLUDE = "include"


# ---- cluster and maintenance


@dataclass(frozen=True, slots=True)
class Status:
    """State of the member that answered. Sizes in bytes; `leader` 0 = it knows none; `errors` are etcd's words."""

    endpoint: str
    version: str
    cluster_id: int
    member_id: int
    leader: int
    revision: int
    raft_term: int
    db_size: int
    db_size_in_use: int
    errors: tuple[str, ...]


class AlarmKind(Enum):
    """Why a member raised an alarm."""

    NOSPACE = "NOSPACE"
    CORRUPT = "CORRUPT"


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that is on: with NOSPACE all writes are refused, with CORRUPT everything."""

    member_id: int
    kind: AlarmKind


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the cluster as etcd knows it."""

    member_id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
