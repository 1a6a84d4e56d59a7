"""Watch: what there is, changes in order, collapse, resuming."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from controller.decode_status import INTENTS
from controller.errors import OutOfRange, ResourceExhausted
from controller.rows import Intent
from controller.store import Change
from controller.watch import PENDING, Entry, Interest, Watches, _Watcher
from tealnet.v1 import system_pb2, tenant_pb2

Type = system_pb2.WatchResponse.Type


def row(name: str, revision: int = 1, labels: tuple[tuple[str, str], ...] = ()) -> Intent[Any]:
    return Intent(name, name, labels, None, b"", revision, revision)


def interest(
    parent: str = "", kinds: Iterable[str] = (), label: tuple[str, str] | None = None, **more: Any
) -> Interest:
    return Interest(
        parent=parent,
        kinds=frozenset(kinds),
        matches=lambda labels: label is None or label in labels,
        sees=more.get("sees", lambda kind, found: True),
        spec_only=more.get("spec_only", False),
    )


def told(watcher: _Watcher) -> list[tuple[str, str]]:
    return [(Type.Name(kind).removeprefix("TYPE_"), entry.row.name) for kind, entry in watcher.take()]


A, B = "tenants/a/ports/p", "tenants/b/ports/p"


def test_only_what_is_of_interest() -> None:
    watcher = _Watcher(interest("tenants/a", ["port"]))
    watcher.add(
        [Entry(2, "port", None, row(A)), Entry(2, "port", None, row(B)), Entry(3, "network", None, row(A + "x"))]
    )
    assert told(watcher) == [("ADDED", A)]
    assert told(_with(interest("tenants/a"), Entry(2, "tenant", None, row("tenants/ab")))) == []
    assert told(_with(interest(sees=lambda kind, found: found.name == B), Entry(2, "port", None, row(B)))) == [
        ("ADDED", B)
    ]


def _with(what: Interest, *entries: Entry) -> _Watcher:
    watcher = _Watcher(what)
    watcher.add(entries)
    return watcher


def test_collapse_by_object() -> None:
    changes = [Entry(n, "port", row(A, n - 1), row(A, n)) for n in range(2, 9)]
    assert told(_with(interest(), *changes)) == [("MODIFIED", A)]
    assert told(_with(interest(), Entry(2, "port", None, row(A, 2)), *changes)) == [("ADDED", A)]
    gone = Entry(9, "port", row(A, 8), None)
    assert told(_with(interest(), Entry(2, "port", None, row(A, 2)), gone)) == []
    assert told(_with(interest(), *changes, gone)) == [("DELETED", A)]
    order = [
        Entry(2, "port", row(A), row(A, 2)),
        Entry(3, "port", row(B), row(B, 3)),
        Entry(4, "port", row(A), row(A, 4)),
    ]
    assert told(_with(interest(), *order)) == [("MODIFIED", B), ("MODIFIED", A)]


def test_a_label_that_goes_is_a_deletion() -> None:
    red = (("color", "red"),)
    watcher = _with(interest(label=red[0]), Entry(2, "port", row(A, 1, red), row(A, 2)))
    assert told(watcher) == [("DELETED", A)]
    watcher.add([Entry(3, "port", row(A, 2), row(A, 3, red))])
    assert told(watcher) == [("ADDED", A)]


def test_status_alone() -> None:
    same = row(A)
    assert told(_with(interest(), Entry(2, "port", same, same))) == [("MODIFIED", A)]
    assert told(_with(interest(spec_only=True), Entry(2, "port", same, same))) == []


def test_a_slow_watcher_is_cut() -> None:
    watcher = _with(interest(), *(Entry(2, "port", None, row(f"tenants/a/ports/p{n}")) for n in range(PENDING + 1)))
    with pytest.raises(ResourceExhausted):
        watcher.take()


class FakeStore:
    """What Watches needs of a store."""

    def __init__(self) -> None:
        self.loads, self.revision, self.subscriber = 1, 10, None
        self.world = type("World", (), {name: type("T", (), {"rows": {}})() for name in TABLES})()

    def subscribe(self, subscriber: Any) -> None:
        self.subscriber = subscriber

    def change(self, revision: int, *changes: Change) -> None:
        self.revision = revision
        for change in changes:
            getattr(self.world, change.table).rows[change.key] = change.new
        assert self.subscriber
        self.subscriber(revision, list(changes))


TABLES = tuple(INTENTS.values())


async def test_snapshot_synced_changes_and_resume() -> None:
    store: Any = FakeStore()
    watches = Watches(store)

    def render(kind: str, found: Intent[Any]) -> system_pb2.Object:
        return system_pb2.Object(tenant=tenant_pb2.Tenant(name=found.name))

    store.change(10, Change("ports", A, None, row(A, 9), 10))
    stream = watches.watch(interest(), 0, render)

    async def some(count: int) -> list[tuple[str, str, int]]:
        got = [await anext(stream) for _ in range(count)]
        return [(Type.Name(r.type).removeprefix("TYPE_"), r.object.tenant.name, r.revision) for r in got]

    assert await some(2) == [("ADDED", A, 9), ("SYNCED", "", 10)]
    store.change(12, Change("ports", B, None, row(B, 12), 12), Change("ports", A, row(A, 9), row(A, 12), 12))
    assert await some(2) == [("ADDED", B, 12), ("MODIFIED", A, 12)]
    await stream.aclose()

    stream = watches.watch(interest(), 11, render)
    assert await some(3) == [("ADDED", B, 12), ("MODIFIED", A, 12), ("SYNCED", "", 12)]
    await stream.aclose()
    with pytest.raises(OutOfRange) as expired:
        await anext(watches.watch(interest(), 9, render))
    assert expired.value.reason == "RESUME_EXPIRED"
    store.loads = 2
    store.change(20)
    with pytest.raises(OutOfRange):
        await anext(watches.watch(interest(), 12, render))


async def test_what_was_missed_is_told_however_much_it_is() -> None:
    store: Any = FakeStore()
    watches = Watches(store)
    store.change(10)
    names = [f"tenants/a/ports/p{n}" for n in range(3 * PENDING)]
    store.change(12, *(Change("ports", name, None, row(name, 12), 12) for name in names))
    stream = watches.watch(interest(), 10, lambda kind, found: system_pb2.Object())
    told_of = [(await anext(stream)).type for _ in range(len(names) + 1)]
    assert told_of == [Type.TYPE_ADDED] * len(names) + [Type.TYPE_SYNCED]
    # From now on it is a reader like any other.
    store.change(13, *(Change("ports", name, row(name, 12), row(name, 13), 13) for name in names))
    with pytest.raises(ResourceExhausted):
        await anext(stream)
