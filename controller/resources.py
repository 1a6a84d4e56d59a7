"""What is to be sent: every resource encoded and hashed once, by scope, with the digest of each scope.

A scope here is `domain/<number>` or `host/<host uid>`; on the stream the second one is plain `host`. All sessions
share one `Chunk` per resource.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from controller.scopes import Scopes
from controller.world import World
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.digest import SIZE, term, version
from tealnet.core.tables import Derived, Table

if TYPE_CHECKING:
    from controller.features.security import Security

_MODULUS = 1 << 128
Changed = dict[str, set[str]]  # scope → keys


class Resource(NamedTuple):
    """A derived row: where it belongs, its key, its encoded body, and the features that its meaning needs (A15)."""

    scope: str
    key: str
    body: bytes
    requires: tuple[str, ...] = ()  # features without which it must not be interpreted


@dataclass(frozen=True, slots=True)
class Chunk:
    """A resource ready to be sent."""

    key: str
    version: bytes  # blake2b-128 of the body
    term: int  # its part of the digest
    encoded: bytes  # an entry of ScopeDelta.upserts, with tag and length


def varint(number: int) -> bytes:
    """A non-negative number as protobuf's base-128 varint (protobuf.dev, Encoding)."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, body: bytes) -> bytes:
    """A length-delimited field: several of them joined are a message, or more entries of a repeated field."""
    return varint(number << 3 | 2) + varint(len(body)) + body


_UPSERTS = pb.ScopeDelta.DESCRIPTOR.fields_by_name["upserts"].number


def chunk(key: str, body: bytes, requires: Sequence[str] = ()) -> Chunk:
    """Encode and hash."""
    encoded = field(_UPSERTS, pb.Resource(key=key, body=body, requires=requires).SerializeToString())
    return Chunk(key, version(body), term(key, body), encoded)


class Scope:
    """The resources of one scope, and their digest kept up to date."""

    __slots__ = ("chunks", "total")

    def __init__(self) -> None:
        self.chunks: dict[str, Chunk] = {}
        self.total = 0

    def put(self, key: str, new: Chunk | None) -> None:
        """Set or remove a resource."""
        old = self.chunks.pop(key, None)
        if new is not None:
            self.chunks[key] = new
        self.total = (self.total - (old.term if old else 0) + (new.term if new else 0)) % _MODULUS

    def digest(self, name: str) -> pb.ScopeDigest:
        """As it is compared with the agent's."""
        return pb.ScopeDigest(scope=name, digest=self.total.to_bytes(SIZE, "little"), count=len(self.chunks))


EMPTY = Scope()
"""What a scope is in which there is nothing (yet); never written to."""


class Resources:
    """All scopes. `collect` follows the settled tables; between two calls nothing changes."""

    def __init__(
        self,
        world: World,
        scopes: Scopes,
        *,
        hostpeers: Derived[str, Resource],
        tables: Sequence[Derived[Any, Resource]],
        security: Security,
    ) -> None:
        self.world, self.of_hosts, self.security = world, scopes, security
        self._tables = tables
        self._hostpeers = hostpeers
        self._scopes: dict[str, Scope] = {}
        self._placed: list[dict[Hashable, tuple[str, str]]] = [{} for _ in tables]  # row → (scope, key)
        self._peers: dict[str, frozenset[str]] = {}
        self._peer_chunks: dict[str, Chunk] = {}
        self.encoded: dict[Hashable, list[bytes]] = {}  # deltas that many hosts are sent, until the next `collect`
        self.rescoped: set[str] = set()  # hosts that got or lost a domain in the last `collect`
        followed: list[Table[Any, Any]] = [*tables, hostpeers, scopes.peers_of_host, scopes.domains_of_host]
        for table in followed:
            table.watch_changes()

    def scope(self, name: str) -> Scope:
        """A scope by name; an empty one if it has nothing."""
        return self._scopes.get(name, EMPTY)

    def scopes_of(self, host_uid: str) -> set[str]:
        """The scopes a host must have."""
        domains = self.of_hosts.domains_of_host.rows.get(host_uid, ())
        return {f"host/{host_uid}", *(f"domain/{domain}" for domain in domains)}

    def proof(self, host_uid: str, port_uid: str) -> int:
        """The revision of the tombstone that says that a port must go from a host; 0: there is none."""
        tombstone = self.world.tombstones.rows.get((host_uid, port_uid, ""))
        return tombstone.revision if tombstone else 0

    def collect(self) -> Changed:
        """Take over what has changed since the last call; returns the keys by scope."""
        changed: Changed = {}
        self.encoded.clear()
        for table, placed in zip(self._tables, self._placed, strict=True):
            for row_key in table.take_changes():
                row = table.rows.get(row_key)
                # Out of the old scope first: a row may have moved to another one.
                if (old := placed.pop(row_key, None)) and (row is None or row.scope != old[0]):
                    self._set(changed, old[0], old[1], None)
                if row is not None:
                    placed[row_key] = (row.scope, row.key)
                    self._set(changed, row.scope, row.key, chunk(row.key, row.body, row.requires))
        self._collect_peers(changed)
        self.rescoped = self.of_hosts.domains_of_host.take_changes()
        return changed

    def _collect_peers(self, changed: Changed) -> None:
        """A host's peers stand in its own scope; who shares a domain is symmetric."""
        fresh = self._hostpeers.take_changes()
        for uid in fresh:
            row = self._hostpeers.rows.get(uid)
            if row is None:
                self._peer_chunks.pop(uid, None)
            else:
                self._peer_chunks[uid] = chunk(row.key, row.body)
        moved = self.of_hosts.peers_of_host.take_changes()
        for uid in moved:
            before, after = self._peers.pop(uid, frozenset()), self.of_hosts.peers_of_host.rows.get(uid, frozenset())
            if after:
                self._peers[uid] = after
            self._set_peers(changed, uid, before ^ after)
        for uid in fresh:
            for host in self._peers.get(uid, ()):
                self._set_peers(changed, host, (uid,))

    def _set_peers(self, changed: Changed, host: str, peers: Iterable[str]) -> None:
        wanted = self._peers.get(host, frozenset())
        for peer in peers:
            found = self._peer_chunks.get(peer) if peer in wanted else None
            self._set(changed, f"host/{host}", f"hostpeer/{peer}", found)

    def _set(self, changed: Changed, scope: str, key: str, new: Chunk | None) -> None:
        state = self._scopes.get(scope)
        if state is None:
            state = self._scopes[scope] = Scope()
        if state.chunks.get(key) == new:
            return
        state.put(key, new)
        changed.setdefault(scope, set()).add(key)
        if not state.chunks:
            del self._scopes[scope]
