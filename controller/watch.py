"""Watch for users: what there is, then every change in commit order, from a ring of the last 50,000 (A23).

A watcher holds at most one pending change per object; one that lags by more than 1,000 objects is cut. What a resumed
watch has missed does not count: it is at most the ring, and who was cut must be able to go on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from controller.decode_status import INTENTS
from controller.errors import OutOfRange, ResourceExhausted
from controller.names import split_of
from controller.rows import Intent, Labels
from controller.store import Change, Store
from tealnet.v1 import system_pb2

KEPT = 50_000
PENDING = 1000
BOOKMARK = 10.0  # seconds
_KINDS = {table: kind for kind, table in INTENTS.items()}
_Type = system_pb2.WatchResponse.Type
Responses = AsyncGenerator[system_pb2.WatchResponse, None]
Render = Callable[[str, Intent[Any]], system_pb2.Object]
"""The API message of an object: (kind, row)."""


class Entry(NamedTuple):
    """One change of one object; equal `old` and `new` = of its status alone."""

    revision: int
    kind: str
    old: Intent[Any] | None
    new: Intent[Any] | None

    @property
    def row(self) -> Intent[Any]:
        """The newest there is."""
        row = self.new or self.old
        assert row is not None
        return row


@dataclass(frozen=True, slots=True)
class Interest:
    """What a watcher wants: objects under `parent` ("" = all), of `kinds`, whose labels match."""

    parent: str
    kinds: frozenset[str]
    matches: Callable[[Labels], bool]
    sees: Callable[[str, Intent[Any]], bool]  # may the caller
    spec_only: bool

    def wants(self, kind: str, row: Intent[Any] | None) -> bool:
        """Whether a row is of interest."""
        if row is None or (self.kinds and kind not in self.kinds) or not self.sees(kind, row):
            return False
        under = not self.parent or row.name == self.parent or row.name.startswith(self.parent + "/")
        return under and self.matches(row.labels)


class Watches:
    """The ring, and all watchers of this replica."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._ring: deque[Entry] = deque(maxlen=KEPT)
        self._floor = 0  # everything after this revision is in the ring
        self._loads = 0
        self._watchers: set[_Watcher] = set()
        store.subscribe(self._follow)

    def _follow(self, revision: int, changes: list[Change]) -> None:
        if self._loads != self.store.loads:  # read anew: what lay between is not known change by change
            self._loads, self._floor = self.store.loads, revision
            self._ring.clear()
            entries = list(self._entries(changes)) if self._watchers else []
        else:
            entries = list(self._entries(changes))
            for entry in entries:
                if len(self._ring) == KEPT:
                    self._floor = self._ring[0].revision
                self._ring.append(entry)
        for watcher in self._watchers:
            watcher.add(entries)

    def _entries(self, changes: Iterable[Change]) -> Iterable[Entry]:
        world = self.store.world
        for change in changes:
            if kind := _KINDS.get(change.table):
                yield Entry(change.revision, kind, change.old, change.new)
                if kind == "network":
                    yield from self._colored(change)
            elif change.table in ("rollout_reports", "rollout_steps"):
                for name in world.rollouts_by_uid.keys(change.key[0]):  # type: ignore[index]
                    yield Entry(change.revision, "rollout", world.rollouts.rows[name], world.rollouts.rows[name])
            elif change.table == "port_status":
                for name in world.ports_by_uid.keys(change.key):
                    yield Entry(change.revision, "port", world.ports.rows[name], world.ports.rows[name])
            elif change.table in ("host_status", "sessions"):
                for name in world.hosts_by_uid.keys(change.key):
                    yield Entry(change.revision, "host", world.hosts.rows[name], world.hosts.rows[name])
                    if change.table == "sessions" and (change.old is None) != (change.new is None):
                        for port in world.ports_by_host.keys(name):
                            yield Entry(change.revision, "port", world.ports.rows[port], world.ports.rows[port])

    def _colored(self, change: Change) -> Iterable[Entry]:
        """A port's color is its segment's, and a split shows all colors of its network."""
        world, old, new = self.store.world, change.old, change.new
        if old is None or new is None or old.uid != new.uid or old.spec.segments == new.spec.segments:
            return
        if split := world.splits.rows.get(split_of(new.name)):
            yield Entry(change.revision, "split", split, split)
        for segment in old.spec.segments:
            if old.spec.color_of(segment.uid) != new.spec.color_of(segment.uid):
                for port in world.ports_by_segment.keys(segment.uid):
                    yield Entry(change.revision, "port", world.ports.rows[port], world.ports.rows[port])

    async def watch(self, interest: Interest, resume: int, render: Render) -> Responses:
        """What there is (unless `resume` says from where), then changes for ever. Raises ApiError."""
        if resume > self.store.revision:
            await self.store.barrier()
        if resume > self.store.revision:
            text = f"the store is at revision {self.store.revision}, before {resume}: is it the same cluster?"
            raise OutOfRange(text, reason="REVISION_AHEAD")
        if resume and resume < self._floor:
            raise OutOfRange("changes since then are no longer kept; list again", reason="RESUME_EXPIRED")
        watcher = _Watcher(interest)
        if resume:
            watcher.catch_up(entry for entry in self._ring if entry.revision > resume)
        revision = self.store.revision
        snapshot = [] if resume else list(self._present(interest))
        backlog = watcher.take()
        self._watchers.add(watcher)
        try:
            for kind, row in snapshot:
                added = system_pb2.WatchResponse.TYPE_ADDED
                yield system_pb2.WatchResponse(type=added, revision=row.mod_revision, object=render(kind, row))
            for change, entry in backlog:
                yield _response(change, entry, render)
            yield system_pb2.WatchResponse(type=system_pb2.WatchResponse.TYPE_SYNCED, revision=revision)
            while True:
                async for response in self._changes(watcher, render):
                    yield response
        finally:
            self._watchers.discard(watcher)

    async def _changes(self, watcher: _Watcher, render: Render) -> Responses:
        try:
            async with asyncio.timeout(BOOKMARK):
                await watcher.wake.wait()
        except TimeoutError:
            bookmark = system_pb2.WatchResponse.TYPE_BOOKMARK
            yield system_pb2.WatchResponse(type=bookmark, revision=self.store.revision)
            return
        for change, entry in watcher.take():
            yield _response(change, entry, render)

    def _present(self, interest: Interest) -> Iterable[tuple[str, Intent[Any]]]:
        for kind, table in INTENTS.items():
            rows = getattr(self.store.world, table).rows
            for name in sorted(rows):
                if interest.wants(kind, rows[name]):
                    yield kind, rows[name]


def _response(change: _Type, entry: Entry, render: Render) -> system_pb2.WatchResponse:
    shown = render(entry.kind, entry.row)
    return system_pb2.WatchResponse(type=change, revision=entry.revision, object=shown)


class _Watcher:
    """What one watcher has not been told yet."""

    def __init__(self, interest: Interest) -> None:
        self.interest = interest
        self.wake = asyncio.Event()
        self._pending: dict[str, tuple[_Type, Entry]] = {}  # by uid
        self._lags = False

    def catch_up(self, entries: Iterable[Entry]) -> None:
        """What it has missed before it began, however much."""
        for entry in entries:
            before = self.interest.wants(entry.kind, entry.old)
            after = self.interest.wants(entry.kind, entry.new)
            if not (before or after) or (self.interest.spec_only and entry.old == entry.new):
                continue
            self._put(entry, _type_of(before=before, after=after))

    def add(self, entries: Iterable[Entry]) -> None:
        """What happens while it lives."""
        self.catch_up(entries)
        if self._pending:
            self._lags = self._lags or len(self._pending) > PENDING
            if self._lags:
                self._pending.clear()
            self.wake.set()

    def _put(self, entry: Entry, change: _Type) -> None:
        """Collapse with what is pending of the object; the later place in the order counts."""
        earlier = self._pending.pop(entry.row.uid, None)
        if earlier and earlier[0] == system_pb2.WatchResponse.TYPE_ADDED:
            if change == system_pb2.WatchResponse.TYPE_DELETED:
                return
            change = system_pb2.WatchResponse.TYPE_ADDED
        self._pending[entry.row.uid] = (change, entry)

    def take(self) -> list[tuple[_Type, Entry]]:
        self.wake.clear()
        if self._lags:
            raise ResourceExhausted(
                f"more than {PENDING} changes wait for this watcher; list again", subject="watch", reason="SLOW_WATCHER"
            )
        taken, self._pending = list(self._pending.values()), {}
        return taken


def _type_of(*, before: bool, after: bool) -> _Type:
    if before and after:
        return system_pb2.WatchResponse.TYPE_MODIFIED
    return system_pb2.WatchResponse.TYPE_ADDED if after else system_pb2.WatchResponse.TYPE_DELETED
