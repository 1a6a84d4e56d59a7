"""What one commit reads, claims and writes, before it is sent.

What a check reads, the transaction compares: a `Reading` shows rows of the tables and notes each as a compare. A
`Draft` adds keys that must be free (names, addresses, numbers), ranges that must be empty (references), and the writes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from controller.errors import AlreadyExists, ApiError
from controller.etcd.types import Compare, Field, KeyValue, Page, Put, absent, created, empty, modified, put
from controller.hosts import timestamp
from controller.keys import Keys
from controller.rows import IdentityRow, Intent
from controller.world import World
from tealnet.core.tables import Index
from tealnet.store.v1 import store_pb2

T = TypeVar("T", bound=Hashable)
Overlay = Mapping[tuple[str, str], Intent[Any]]
"""Objects that are to be seen as if they were there, by (kind, name)."""


class Reading:
    """The world as one check sees it; `checks` are the compares of what it saw, by key."""

    def __init__(self, world: World, keys: Keys, overlay: Overlay | None = None) -> None:
        self.world, self.keys = world, keys
        self.overlay = overlay or {}
        self.checks: dict[bytes, Compare] = {}

    def peek(self, kind: str, name: str) -> Intent[Any] | None:
        """A row for hints and messages only; nothing is compared."""
        found: Intent[Any] | None = self.overlay.get((kind, name)) or getattr(self.world, f"{kind}s").rows.get(name)
        return found

    def row(self, kind: str, name: str) -> Intent[Any] | None:
        """A row; the transaction fails if it has changed, or come into being, since."""
        found, key = self.peek(kind, name), self.keys.intent(name)
        self.checks[key] = modified(key, found.mod_revision if found else 0)
        return found

    def exists(self, kind: str, name: str) -> Intent[Any] | None:
        """A row of which only its being there matters; the transaction fails if that is over, or has begun, since."""
        found, key = self.peek(kind, name), self.keys.intent(name)
        if key not in self.checks:  # a compare of the whole row says more
            self.checks[key] = created(key, found.create_revision if found else 0)
        return found

    def guard(self, router_uid: str) -> None:
        """The set of networks and routes of a router; the transaction fails if one of its writers was faster."""
        key = self.keys.domain_guard(router_uid)
        self.checks[key] = modified(key, self.world.guards.rows.get(router_uid, 0))

    def identity(self, members: tuple[str, ...]) -> int | None:
        """The number issued for a tenant and set of groups; the transaction fails if it is freed."""
        numbers: list[int] = sorted(self.world.identities_by_members.keys(members))
        if not numbers:
            return None
        key = self.keys.identity(numbers[0])
        row: IdentityRow = self.world.identities.rows[numbers[0]]
        self.checks[key] = created(key, row.create_revision)
        return numbers[0]

    def absent(self, key: bytes) -> None:
        """A key that the tables say nobody has; the transaction fails if somebody has it by now."""
        self.checks[key] = absent(key)

    def where(self, kind: str, index: Index[Any], value: Hashable) -> list[Intent[Any]]:
        """The rows of a kind that have a property. Not compared: a guard must cover them, or claims decide."""
        found = {name: index.rows[name] for name in index.keys(value)}
        for (other, name), row in self.overlay.items():
            if other == kind:
                found.pop(name, None)
                if value in index.keys_of(row):
                    found[name] = row
        return list(found.values())


class Reach(Enum):
    """Who uses what is proposed."""

    ITEM = "item"
    COMMIT = "commit"
    """All items of a commit that ask for it: the number that the first of them needs is the others', too."""


Chosen = dict[str, tuple[Hashable, bytes]]


class Proposals:
    """What was chosen for one item, kept over its attempts: only what turns out to be taken is chosen anew.

    `shared` is the same for all items that are committed together.
    """

    def __init__(self, in_flight: set[bytes], shared: Chosen | None = None) -> None:
        self._in_flight = in_flight  # of all commits of this process
        self._shared: Chosen = {} if shared is None else shared
        self._chosen: Chosen = {}
        self._own: set[bytes] = set()
        self.taken: set[bytes] = set()

    def choose(
        self, label: str, find: Callable[[Callable[[T], bool]], T], *, key_of: Callable[[T], bytes], reach: Reach
    ) -> T:
        """The value for `label`: as before, or a free one that `find` comes up with."""
        chosen = self._shared if reach is Reach.COMMIT else self._chosen
        if label in chosen:
            return chosen[label][0]  # type: ignore[return-value]

        def is_free(value: T) -> bool:
            key = key_of(value)
            return key not in self.taken and key not in self._in_flight

        value = find(is_free)
        chosen[label] = value, key_of(value)
        self.hold(key_of(value))
        return value

    def hold(self, key: bytes) -> None:
        """Nobody else in this process is to propose this key meanwhile."""
        if key not in self._in_flight:
            self._own.add(key)
            self._in_flight.add(key)

    def collided(self, key: bytes) -> None:
        """A key that was proposed is taken."""
        self.taken.add(key)
        for chosen in (self._chosen, self._shared):
            for label in [label for label, choice in chosen.items() if choice[1] == key]:
                del chosen[label]

    def release(self) -> None:
        """Forget all choices: the commit is over, or everything is to be checked anew."""
        self._in_flight -= self._own
        self._own.clear()
        self._chosen.clear()


Refuse = Callable[[KeyValue], Exception]


@dataclass(frozen=True, slots=True)
class Claim:
    """A key that must be absent. `refuse` says what it means if it is not; None: propose another."""

    key: bytes
    refuse: Refuse | None


@dataclass(frozen=True, slots=True)
class Emptiness:
    """A range that must be empty; `refuse` gets its first keys."""

    check: Compare
    refuse: Callable[[Page], ApiError]


@dataclass(frozen=True, slots=True)
class Written:
    """An object of the draft: its new value, None if it is deleted."""

    kind: str
    name: str
    uid: str
    key: bytes
    value: bytes | None
    create_revision: int  # 0: created by this draft


class Draft:
    """One commit in the making: built by checks and writers, sent by `commit`."""

    def __init__(self, reading: Reading, proposals: Proposals, write_id: bytes) -> None:
        self.reading, self.proposals, self.write_id = reading, proposals, write_id
        self.keys = reading.keys
        self.now: Timestamp = timestamp()
        self.claims: dict[bytes, Claim] = {}
        self.emptiness: list[Emptiness] = []
        self.puts: dict[bytes, Put] = {}
        self.deletes: set[bytes] = set()
        self.objects: list[Written] = []

    # ---- objects

    def create(self, kind: str, name: str, stored: store_pb2.Stored) -> None:
        """A new object under a name that must be free."""
        key = self.keys.intent(name)
        stored.write_id = self.write_id
        value = stored.SerializeToString()
        self.claim(key, value, refuse=lambda _: AlreadyExists(name))
        self.objects.append(Written(kind, name, stored.uid, key, value, 0))

    def put_object(self, kind: str, name: str, stored: store_pb2.Stored) -> None:
        """A new object under a name that has been read: whatever was seen there it takes the place of."""
        key = self.keys.intent(name)
        stored.write_id = self.write_id
        value = stored.SerializeToString()
        self.put(key, value)
        self.objects.append(Written(kind, name, stored.uid, key, value, 0))

    def replace(self, kind: str, row: Intent[Any], *, message: Message, issued: store_pb2.Issued | None = None) -> None:
        """An object with another message (and issued numbers); unknown fields of the stored value stay."""
        key = self.keys.intent(row.name)
        stored = store_pb2.Stored.FromString(row.stored)
        stored.message, stored.write_id = message.SerializeToString(deterministic=True), self.write_id
        if issued is not None:
            stored.issued.CopyFrom(issued)
        value = stored.SerializeToString()
        self.put(key, value)
        self.objects.append(Written(kind, row.name, row.uid, key, value, row.create_revision))

    def remove(self, kind: str, row: Intent[Any]) -> None:
        """An object is no more."""
        key = self.keys.intent(row.name)
        self.deletes.add(key)
        self.objects.append(Written(kind, row.name, row.uid, key, None, row.create_revision))

    def discard(self) -> None:
        """Nothing changes after all; what was read is still compared."""
        self.claims.clear()
        self.emptiness.clear()
        self.puts.clear()
        self.deletes.clear()
        self.objects.clear()

    # ---- keys

    def claim(self, key: bytes, value: bytes, *, refuse: Refuse | None, lease: int = 0) -> None:
        """Write a key that must be absent."""
        if key in self.claims:
            raise (refuse or _twice)(KeyValue(key, self.puts[key].value, 0, 0, 0))
        self.claims[key] = Claim(key, refuse)
        self.proposals.hold(key)
        self.puts[key] = put(key, value, lease)

    def must_be_absent(self, key: bytes, refuse: Refuse) -> None:
        """A key that nobody may hold, and that is not taken."""
        self.claims[key] = Claim(key, refuse)

    def propose(
        self,
        label: str,
        find: Callable[[Callable[[T], bool]], T],
        *,
        key_of: Callable[[T], bytes],
        value: bytes,
        reach: Reach = Reach.ITEM,
    ) -> T:
        """Choose something free and claim its key; etcd decides."""
        chosen = self.proposals.choose(label, find, key_of=key_of, reach=reach)
        self.claim(key_of(chosen), value, refuse=None)
        return chosen

    def must_be_empty(self, start: bytes, end: bytes, refuse: Callable[[Page], ApiError]) -> None:
        """No key in `[start, end)`."""
        self.emptiness.append(Emptiness(empty(start, end), refuse))

    def put(self, key: bytes, value: bytes) -> None:
        """Write a key, whatever it holds."""
        self.deletes.discard(key)
        self.puts[key] = put(key, value)

    def add(self, op: Put) -> None:
        """Write a key that nobody else writes, an event for example."""
        self.puts[op.key] = op

    def delete(self, key: bytes) -> None:
        """Delete a key, if it is there."""
        self.puts.pop(key, None)
        self.deletes.add(key)

    def touch_guard(self, router_uid: str) -> None:
        """Tell the other writers of a router's set that it changes."""
        self.put(self.keys.domain_guard(router_uid), store_pb2.DomainGuard(write_id=self.write_id).SerializeToString())

    def checks(self) -> list[Compare]:
        """Everything that must hold."""
        claimed = [absent(key) for key in self.claims]
        return [*self.reading.checks.values(), *claimed, *(item.check for item in self.emptiness)]


def holds(check: Compare, found: KeyValue | None) -> bool:
    """Whether a compare of one key holds for what was found."""
    if check.field is Field.CREATE:
        return (found.create_revision if found else 0) == check.operand
    return (found.mod_revision if found else 0) == check.operand


def _twice(found: KeyValue) -> Exception:
    return RuntimeError(f"{found.key!r} was proposed twice in one draft")
