"""What the controller has said, as received: bytes by scope and key, and what this build makes of them.

Pure: units in, records for the checkpoint and rows for the inputs out. After any unit the resources equal the
controller's derivation at that unit's revision, but for three things. What this build cannot interpret stays as it
was (absent if it is new). Weights that are to be applied at an instant stay as they were until then. A local port that
is gone without proof is kept, with what it needs to work, until proof comes: a store that has lost something must not
take workloads with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from agent.clock import Instants
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.agent.v1 import checkpoint_pb2 as pbc
from tealnet.core.digest import Digest, version
from tealnet.core.rows.colors import Weights, weights_key
from tealnet.core.rows.parse import BadResource
from tealnet.core.rows.security import rules_key
from tealnet.core.rows.stream import LocalPort, Row, decode, endpoint_key, segment_key

FEATURES = frozenset({"colors", "security"})  # features of resources that this build understands
ARMED = "Armed"  # reason of a problem that is none: held until its instant
KEPT = ""  # the scope of what is kept without proof; outside all digests
# Losing the row of one of these would unplug workloads, so a body that can't be read leaves the old one in place.
_STAYS = ("localport", "segment")
_WEIGHTS = weights_key("")


@dataclass(frozen=True, slots=True)
class Held:
    """One resource as received. `used` is the body in use: this one, an older one, or None."""

    body: bytes
    requires: tuple[str, ...]
    used: bytes | None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the body that is wanted at a key is not the one in use."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose resources these are: store, its history, and this host in it. Empty before the first contact."""

    cluster_uid: str = ""
    lineage_number: int = 0
    lineage_id: str = ""
    host_uid: str = ""
    host_number: int = 0
    vtep: str = ""


@dataclass(slots=True)
class Scope:
    """The resources of one scope, and their digest."""

    held: dict[str, Held] = field(default_factory=dict)
    digest: Digest = field(default_factory=Digest)


@dataclass(frozen=True, slots=True)
class Merged:
    """What one unit did: write `record`, then put `rows`, then say Taken with `mismatched`."""

    record: pbc.Checkpoint
    rows: Mapping[str, Row | None]  # by resource key
    mismatched: tuple[str, ...]


class Resources:
    """Everything received, by scope. `complete` once a whole unit (or a checkpoint with one) has been taken."""

    def __init__(self, features: frozenset[str] = FEATURES, *, clock: Instants | None = None) -> None:
        self.origin = Origin()
        self.revision = 0
        self.complete = False
        self.problems: dict[str, Problem] = {}  # by resource key
        self.armed: dict[str, int] = {}  # by resource key: Unix time in ns at which it is applied
        self.late: set[str] = set()  # keys whose body came after the instant at which it was to be applied
        self.clock = clock or Instants()
        self._features = features
        self._scopes: dict[str, Scope] = {}
        self._decoded: dict[str, tuple[bytes, Row]] = {}  # while a unit is merged
        self._where: dict[str, str] = {}  # resource key → scope whose copy counts

    # -- looking

    def find(self, key: str) -> Held | None:
        """What is held at a resource key."""
        scope = self._scopes.get(self._where.get(key, KEPT))
        return scope.held.get(key) if scope else None

    def version(self, key: str) -> bytes:
        """Version of the body wanted at a key; empty if there is none."""
        held = self.find(key)
        return version(held.body) if held else b""

    def versions(self, scope: str) -> dict[str, bytes]:
        """Version by key of one scope; the local ports that are kept without proof belong to theirs, `host`."""
        held = dict(self._scopes[scope].held) if scope in self._scopes else {}
        if scope == "host" and KEPT in self._scopes:
            held |= {key: self._scopes[KEPT].held[key] for key in self.unaccounted()}
        return {key: version(item.body) for key, item in held.items()}

    def digests(self) -> dict[str, Digest]:
        """Digest of each scope."""
        return {name: scope.digest for name, scope in self._scopes.items() if name != KEPT}

    def unaccounted(self) -> list[str]:
        """Local ports kept although they are absent without proof."""
        kept = self._scopes.get(KEPT)
        return sorted(key for key in kept.held if key.startswith("localport/")) if kept else []

    def __len__(self) -> int:
        return len(self._where)

    def changing(self, parts: Iterable[pb.Update]) -> list[str]:
        """Keys of weights that are in use and change as soon as this unit is merged."""
        return [
            resource.key
            for part in parts
            for scope in part.scopes
            for resource in scope.upserts
            if resource.key.startswith(_WEIGHTS) and self._changes(resource)
        ]

    def _changes(self, resource: pb.Resource) -> bool:
        held = self.find(resource.key)
        if held is None or held.used is None or held.used == resource.body:
            return False
        try:
            row = decode(resource.key, resource.body)
        except BadResource:
            return False
        return isinstance(row, Weights) and row.apply_at <= self.clock.now()

    # -- changing

    def greet(self, origin: Origin) -> pbc.Checkpoint:
        """A controller has said who it is and who we are; returns the record of it."""
        if origin.cluster_uid != self.origin.cluster_uid:
            self.revision = 0  # another store's numbers mean nothing
        self.origin = origin
        return self._record(())

    def merge(self, parts: Iterable[pb.Update]) -> Merged:
        """Take one unit, all its parts in order."""
        unit = _Unit(self)
        for part in parts:
            self.revision = part.revision
            self.origin = replace(self.origin, lineage_number=part.lineage.number, lineage_id=part.lineage.id)
            for delta in part.scopes:
                unit.take(delta)
        self.complete = True
        unit.finish()
        mismatched = tuple(name for name, digest in unit.digests.items() if not self._matches(name, digest))
        rows = {key: self._row(key) for key in {key for _, key in unit.touched}}
        self._decoded.clear()
        self.clock.holds = bool(self.armed)
        return Merged(self._record(sorted(unit.touched)), rows, mismatched)

    def load(self, records: Iterable[pbc.Checkpoint]) -> dict[str, Row | None]:
        """Take records of a checkpoint in order; returns the rows. The build may be another than the writer's."""
        for record in records:
            self.origin = _origin_of(record)
            self.revision, self.complete = record.revision, record.complete
            for entry in record.entries:
                self.drop(entry.scope, entry.key)
                if not entry.gone:
                    held = Held(entry.body, tuple(entry.requires), entry.used if entry.HasField("used") else None)
                    self.hold(entry.scope, entry.key, self._judged(entry.key, held))
        rows = {key: self._row(key) for key in self._where}
        self._decoded.clear()
        self.clock.holds = bool(self.armed)
        return rows

    def snapshot(self) -> pbc.Checkpoint:
        """One record that holds everything."""
        return self._record((name, key) for name, scope in self._scopes.items() for key in scope.held)

    def hold(self, scope_name: str, key: str, held: Held) -> None:
        """Put a resource into a scope; nothing of that key may be there."""
        scope = self._scopes.setdefault(scope_name, Scope())
        scope.held[key] = held
        scope.digest.add(key, held.body)
        if scope_name != KEPT or key not in self._where:
            self._where[key] = scope_name

    def drop(self, scope_name: str, key: str) -> Held | None:
        """Take a resource out of a scope; returns what was there."""
        scope = self._scopes.get(scope_name)
        held = scope.held.pop(key, None) if scope else None
        if scope is None or held is None:
            return None
        scope.digest.remove(key, held.body)
        if not scope.held:
            del self._scopes[scope_name]
        if self._where.get(key) == scope_name:
            del self._where[key]
            for name, other in self._scopes.items():  # a unit may put it into its new scope first
                if key in other.held:
                    self._where[key] = name
        return held

    def receive(self, scope_name: str, resource: pb.Resource, before: Held | None) -> None:
        """An upsert. `before` is what was in use at this key, for what this build can't interpret."""
        self.drop(scope_name, resource.key)
        held = Held(resource.body, tuple(resource.requires), before.used if before else None)
        self.hold(scope_name, resource.key, self._judged(resource.key, held))

    def keys(self, scope_name: str) -> list[str]:
        """The keys of one scope."""
        return list(self._scopes[scope_name].held) if scope_name in self._scopes else []

    def release(self) -> dict[str, Row | None]:
        """What was held and is due now; returns the rows. The checkpoint need not know: it would be due again."""
        now = self.clock.now()
        due = [key for key, at in self.armed.items() if at <= now]
        for key in due:
            held = self.find(key)
            if held is not None:
                scope = self._scopes[self._where[key]]
                scope.held[key] = self._judged(key, held)
                self.late.discard(key)
        rows = {key: self._row(key) for key in due}
        self._decoded.clear()
        self.clock.holds = bool(self.armed)
        return rows

    def _judged(self, key: str, held: Held) -> Held:
        """The resource with what is to be used of it; notes the problem if that is not its own body."""
        self.armed.pop(key, None)
        missing = [name for name in held.requires if name not in self._features]
        if missing:
            self.problems[key] = Problem("Unsupported", f"this agent does not know: {', '.join(missing)}")
            return held
        try:
            row = decode(key, held.body)
        except BadResource as error:
            self.problems[key] = Problem("BadResource", str(error))
            return held if key.startswith(_STAYS) else replace(held, used=None)
        if isinstance(row, Weights) and self._is_held(key, held, row.apply_at):
            return held
        self._decoded[key] = held.body, row
        self.problems.pop(key, None)
        return replace(held, used=held.body)

    def _is_held(self, key: str, held: Held, apply_at: int) -> bool:
        """Whether the body in use stays until the instant. Where nothing is in use nobody gains by waiting."""
        ahead = apply_at > self.clock.now()
        self.late.discard(key)
        if not ahead and apply_at and held.used != held.body:
            self.late.add(key)
        if not ahead or held.used is None or held.used == held.body:
            return False
        self.armed[key] = apply_at
        self.clock.holds = True
        self.problems[key] = Problem(ARMED, "held until the instant at which it is to be applied")
        return True

    def _row(self, key: str) -> Row | None:
        held = self.find(key)
        if held is None:
            self.problems.pop(key, None)
            self.armed.pop(key, None)
            self.late.discard(key)
        if held is None or held.used is None:
            return None
        decoded = self._decoded.get(key)
        if decoded is not None and decoded[0] == held.used:
            return decoded[1]
        try:
            return decode(key, held.used)
        except BadResource:
            return None  # an older body that this build can't read either

    def _matches(self, name: str, digest: pb.ScopeDigest) -> bool:
        mine = self._scopes[name].digest if name in self._scopes else Digest()
        return mine.count == digest.count and mine.bytes() == digest.digest

    def _record(self, places: Iterable[tuple[str, str]]) -> pbc.Checkpoint:
        origin = self.origin
        record = pbc.Checkpoint(
            cluster_uid=origin.cluster_uid,
            lineage=pb.Lineage(number=origin.lineage_number, id=origin.lineage_id),
            revision=self.revision,
            complete=self.complete,
            host_uid=origin.host_uid,
            host_number=origin.host_number,
            vtep=origin.vtep,
        )
        for scope, key in places:
            held = self._scopes[scope].held.get(key) if scope in self._scopes else None
            entry = record.entries.add(scope=scope, key=key, gone=held is None)
            if held is not None:
                entry.body = held.body
                entry.requires.extend(held.requires)
                if held.used is not None and held.used != held.body:
                    entry.used = held.used
        return record


class _Unit:
    """One unit while it is merged."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.touched: set[tuple[str, str]] = set()  # (scope, key)
        self.digests: dict[str, pb.ScopeDigest] = {}
        self._lost: dict[str, dict[str, Held]] = {}  # by scope: what went, local ports excepted
        self._whole: dict[str, set[str]] = {}  # by scope: the keys that were sent

    def take(self, delta: pb.ScopeDelta) -> None:
        """One part's news of one scope."""
        scope = delta.scope
        if delta.dropped:
            self._remove(scope, {key: 0 for key in self.resources.keys(scope)})
        if delta.whole:
            self._whole.setdefault(scope, set())
        self._remove(scope, {removal.key: removal.proof for removal in delta.removals})
        for resource in delta.upserts:
            before = self.resources.find(resource.key) or self._before(resource.key)
            self.resources.receive(scope, resource, before)
            self._forget_kept(resource.key)
            self.touched.add((scope, resource.key))
        if scope in self._whole:
            self._whole[scope].update(resource.key for resource in delta.upserts)
        if delta.HasField("digest"):
            self.digests[scope] = delta.digest

    def finish(self) -> None:
        """All parts are in: what was not sent of a whole scope goes; decide what is kept without proof."""
        for scope, sent in self._whole.items():
            self._remove(scope, {key: 0 for key in self.resources.keys(scope) if key not in sent})
        kept = [key for key in self.resources.keys(KEPT) if key.startswith("localport/")]
        if not kept:
            for key in self.resources.keys(KEPT):
                self._forget_kept(key)
            return
        ports = [port for key in kept if (port := self._port(key))]
        needed = {segment_key(port.vni) for port in ports}
        own = {_endpoint_of(key) for key in kept}  # or nobody on this host would reach them
        own |= {rules_key(port.identity) for port in ports}  # or they would be closed
        for lost in self._lost.values():
            for key, held in lost.items():
                wanted = key in own or key.startswith("hostpeer/") or not needed.isdisjoint(lost)
                if wanted and self.resources.find(key) is None:
                    self._keep(key, held)

    def _remove(self, scope: str, proofs: Mapping[str, int]) -> None:
        for key, proof in proofs.items():
            held = self.resources.drop(scope, key)
            self.touched.add((scope, key))
            if proof:
                self._forget_kept(key)
            elif held is not None and key.startswith("localport/"):
                self._keep(key, held)
            elif held is not None:
                self._lost.setdefault(scope, {})[key] = held

    def _keep(self, key: str, held: Held) -> None:
        self._forget_kept(key)
        self.resources.hold(KEPT, key, held)
        self.touched.add((KEPT, key))

    def _forget_kept(self, key: str) -> None:
        if self.resources.drop(KEPT, key) is not None:
            self.touched.add((KEPT, key))
            if key.startswith("localport/"):
                self._forget_kept(_endpoint_of(key))

    def _before(self, key: str) -> Held | None:
        return next((lost[key] for lost in self._lost.values() if key in lost), None)

    def _port(self, port_key: str) -> LocalPort | None:
        held = self.resources.find(port_key)
        try:
            port = decode(port_key, held.used) if held is not None and held.used is not None else None
        except BadResource:
            return None
        return port if isinstance(port, LocalPort) else None


def _endpoint_of(port_key: str) -> str:
    return endpoint_key(port_key.partition("/")[2])


def _origin_of(record: pbc.Checkpoint) -> Origin:
    return Origin(
        cluster_uid=record.cluster_uid,
        lineage_number=record.lineage.number,
        lineage_id=record.lineage.id,
        host_uid=record.host_uid,
        host_number=record.host_number,
        vtep=record.vtep,
    )
