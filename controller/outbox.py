"""What one host is owed: keys by scope, cut into units, and until which revision nothing is owed.

    changed keys ──mark──► dirty ──cut──► a unit in flight ──taken──► unacked ──acked──► nothing

One unit is in flight; what changes meanwhile collapses by key. Nothing here waits or sends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain

from controller.resources import Resources
from controller.resources import field as wire_field
from tealnet.agent.v1 import agent_pb2 as pb

PART = 1 << 20  # bytes
_UPDATE = pb.ToAgent.DESCRIPTOR.fields_by_name["update"].number
_SCOPES = pb.Update.DESCRIPTOR.fields_by_name["scopes"].number
_REMOVALS = pb.ScopeDelta.DESCRIPTOR.fields_by_name["removals"].number
_LOCALPORT = "localport/"


@dataclass(slots=True)
class Unit:
    """A unit that was cut. `since` is the revision at which its oldest key became dirty."""

    number: int
    revision: int
    since: int
    parts: list[bytes]  # encoded ToAgent messages
    sent: dict[str, bytes | None] = field(default_factory=dict)  # LocalPort uid → version; None: removed with proof
    whole: list[str] = field(default_factory=list)


class Outbox:
    """Of one session. Scope names are the resources' own; `wire` makes the stream's of them."""

    def __init__(self, resources: Resources, host_uid: str) -> None:
        self.resources, self.host_uid = resources, host_uid
        self.own = f"host/{host_uid}"
        self.scopes: set[str] = set()  # those that the host has or is being sent
        self.dirty: dict[str, set[str]] = {}
        self.whole: set[str] = set()
        self.dropped: set[str] = set()
        self.is_urgent = False  # traffic is to move: the next unit is cut before others'
        self.since = 0  # revision at which the oldest dirty key became so; 0: nothing is dirty
        self.in_flight = 0  # number of the unit that is not taken yet
        self.unacked: deque[Unit] = deque()
        self.accepted = 0  # proof for LocalPorts that an admin let go
        self.forgiven: set[str] = set()  # uids of those
        self._number = 0

    # ---- what is owed

    def owe(self, revision: int) -> None:
        """A unit is due even if there is nothing to say."""
        self.since = self.since or revision

    def mark(self, revision: int, scope: str, keys: Iterable[str]) -> None:
        """Keys of a scope that the host has are not what they were."""
        self.owe(revision)
        self.dirty.setdefault(scope, set()).update(keys)

    def mark_whole(self, revision: int, scope: str) -> None:
        """The host is to get the whole scope, whatever it has of it."""
        self.owe(revision)
        self.scopes.add(scope)
        self.dropped.discard(scope)
        self.whole.add(scope)

    def drop(self, revision: int, scope: str) -> None:
        """The host is to forget a scope."""
        self.owe(revision)
        self.scopes.discard(scope)
        self.whole.discard(scope)
        self.dirty.pop(scope, None)
        self.dropped.add(scope)

    def compare(self, revision: int, scope: str, has: Mapping[str, bytes]) -> None:
        """The host has these versions of a scope: what differs is dirty."""
        chunks = self.resources.scope(scope).chunks
        differing = {key for key, version in has.items() if (c := chunks.get(key)) is None or c.version != version}
        self.mark(revision, scope, differing | (chunks.keys() - has.keys()))

    @property
    def quiet(self) -> int:
        """0 while something is owed or on its way; else a number that changes when anything is sent."""
        is_busy = bool(self.since) or bool(self.in_flight) or bool(self.unacked)
        return 0 if is_busy else self._number

    # ---- units

    @property
    def is_due(self) -> bool:
        """A unit can be cut now."""
        return bool(self.since) and not self.in_flight

    def cut(self, revision: int, lineage: tuple[int, str]) -> Unit:
        """Everything owed as one unit, at the revision of the settled tables."""
        self._number += 1
        unit = Unit(self._number, revision, self.since, [], whole=sorted(self.whole))
        touched = self.dirty.keys() | self.whole | self.dropped
        names = self.scopes | self.dropped if unit.number == 1 else touched
        pieces = list(chain.from_iterable(self._encoded(name, unit) for name in sorted(names)))
        unit.parts = list(self._parts(unit, lineage, pieces))
        self.dirty, self.whole, self.dropped, self.since, self.is_urgent = {}, set(), set(), 0, False
        self.in_flight = unit.number
        self.unacked.append(unit)
        return unit

    def taken(self, number: int) -> None:
        """The agent has merged a unit: the window opens."""
        if number == self.in_flight:
            self.in_flight = 0

    def acked(self, revision: int) -> list[Unit]:
        """The units that an Ack of this revision is about, for the first time; they owe nothing any more."""
        done = []
        while self.unacked and self.unacked[0].revision <= revision and self.unacked[0].number != self.in_flight:
            done.append(self.unacked.popleft())
        return done

    def synced(self, settled: int) -> int:
        """Everything up to this revision is on the host's devices, or failed there."""
        oldest = min((r for r in (self.since, *(u.since for u in self.unacked)) if r), default=0)
        return oldest - 1 if oldest else settled

    # ---- encoding

    def _encoded(self, name: str, unit: Unit) -> list[bytes]:
        """A scope's delta. One of a domain is the same for all hosts that are owed the same, and encoded once."""
        if name == self.own or name in self.dropped:
            return list(self._pieces(name, self._delta(name, unit)))
        what = name, None if name in self.whole else frozenset(self.dirty.get(name, ()))
        found = self.resources.encoded.get(what)
        if found is None:
            found = self.resources.encoded[what] = list(self._pieces(name, self._delta(name, unit)))
        return found

    def _delta(self, name: str, unit: Unit) -> list[bytes]:
        """The encoded fields of one scope's delta, without name and digest."""
        if name in self.dropped:
            return []
        chunks = self.resources.scope(name).chunks
        if name in self.whole:
            wanted: Iterable[str] = chunks.keys()
            gone: Iterable[str] = self._gone_ports() if name == self.own else ()
        else:
            dirty = self.dirty.get(name, set())
            wanted, gone = (key for key in dirty if key in chunks), (key for key in dirty if key not in chunks)
        fields = [chunks[key].encoded for key in wanted]
        for key in gone:
            proof = self._proof(key)
            if proof and key.startswith(_LOCALPORT):
                unit.sent[key.removeprefix(_LOCALPORT)] = None
            fields.append(wire_field(_REMOVALS, pb.Removal(key=key, proof=proof).SerializeToString()))
        if name == self.own:
            # The first unit is about all ports, whether they are in it or not: its Ack is about all of them.
            about = chunks.keys() if name in self.whole or self._number == 1 else self.dirty.get(name, set())
            for key in about:
                if key.startswith(_LOCALPORT) and key in chunks:
                    unit.sent[key.removeprefix(_LOCALPORT)] = chunks[key].version
        return fields

    def _gone_ports(self) -> list[str]:
        """LocalPorts that must go, if the host has them: there is proof, and they are not wanted."""
        chunks = self.resources.scope(self.own).chunks
        rows = self.resources.world.tombstones_by_host
        proven = {port_uid for _, port_uid, address in rows.keys(self.host_uid) if not address}
        return [key for uid in proven | self.forgiven if (key := _LOCALPORT + uid) not in chunks]

    def _proof(self, key: str) -> int:
        if not key.startswith(_LOCALPORT):
            return 0
        uid = key.removeprefix(_LOCALPORT)
        return self.resources.proof(self.host_uid, uid) or (self.accepted if uid in self.forgiven else 0)

    def _parts(self, unit: Unit, lineage: tuple[int, str], pieces: list[bytes]) -> Iterable[bytes]:
        """Parts of at most a mebibyte: ToAgent messages joined from pieces that are encoded already."""
        groups: list[list[bytes]] = [[]]
        size = 0
        for piece in pieces:
            if size and size + len(piece) > PART:
                groups.append([])
                size = 0
            groups[-1].append(piece)
            size += len(piece)
        for number, group in enumerate(groups):
            head = pb.Update(
                unit=unit.number,
                part=number,
                last=number == len(groups) - 1,
                revision=unit.revision,
                lineage=pb.Lineage(number=lineage[0], id=lineage[1]),
            )
            body = head.SerializeToString() + b"".join(wire_field(_SCOPES, piece) for piece in group)
            yield wire_field(_UPDATE, body)

    def _pieces(self, name: str, fields: list[bytes]) -> Iterable[bytes]:
        """A scope's delta in pieces that fit into a part; the digest is in the last one."""
        wire = "host" if name == self.own else name
        if name in self.dropped:
            yield pb.ScopeDelta(scope=wire, dropped=True).SerializeToString()
            return
        head = pb.ScopeDelta(scope=wire, whole=name in self.whole).SerializeToString()
        batch: list[bytes] = []
        size = 0
        for item in fields:
            if size + len(item) > PART - 512:
                yield head + b"".join(batch)
                batch, size = [], 0
            batch.append(item)
            size += len(item)
        digest = pb.ScopeDelta(digest=self.resources.scope(name).digest("")).SerializeToString()
        yield head + b"".join(batch) + digest
