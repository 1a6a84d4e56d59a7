from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from controller.etcd import Compacted, Etcd, HistoryLost, OutcomeUnknown, StoreError, StoreUnavailable, links
from controller.etcd.embedded import Durability, EmbeddedEtcd, Options
from controller.etcd.types import Batch, EventKind, Previous, delete, put
from tests.controller.etcd.helpers import Relay, eventually
from tests.samples import samples

START, END = b"w/", b"w0"


async def collect(watch: AsyncGenerator[Batch, None], last: int) -> list[Batch]:
    """Batches up to revision `last`."""
    batches: list[Batch] = []
    async with asyncio.timeout(60), aclosing(watch):
        async for batch in watch:
            batches.append(batch)
            if batch.revision >= last:
                break
    return batches


def revisions(batches: list[Batch]) -> list[int]:
    """The distinct revisions in the order told; fails if one is in two batches."""
    told = [list(dict.fromkeys(e.kv.mod_revision for e in batch.events)) for batch in batches]
    assert all(before[-1] < after[0] for before, after in pairwise(told))
    assert [batch.revision for batch in batches] == [inside[-1] for inside in told]
    return [revision for inside in told for revision in inside]


async def test_events(etcd: Etcd) -> None:
    first = (await etcd.txn((), [put(b"w/a", b"1"), put(b"x", b"outside")])).revision
    await etcd.txn((), [put(b"y", b"outside")])
    lease = await etcd.grant(60)
    await etcd.txn((), [put(b"w/a", b"2", lease=lease)])
    last = (await etcd.txn((), [delete(b"w/a"), put(b"w/b", b"3")])).revision
    batches = await collect(etcd.watch(START, END, from_revision=1, previous=Previous.INCLUDE), last)
    assert revisions(batches) == [first, first + 2, last]
    events = [event for batch in batches for event in batch.events]
    assert [(e.kind, e.kv.key, e.kv.value) for e in events] == [
        (EventKind.PUT, b"w/a", b"1"),
        (EventKind.PUT, b"w/a", b"2"),
        (EventKind.DELETE, b"w/a", b""),
        (EventKind.PUT, b"w/b", b"3"),
    ]
    assert [e.prev.value if e.prev else None for e in events] == [None, b"1", b"2", None]
    assert (events[1].kv.lease, events[1].kv.create_revision, events[1].kv.version) == (lease, first, 2)
    plain = await collect(etcd.watch(START, END, from_revision=last), last)
    assert [e.prev for batch in plain for e in batch.events] == [None, None]


async def test_a_watch_must_begin_somewhere(etcd: Etcd) -> None:
    with pytest.raises(ValueError, match="revision"):
        await anext(etcd.watch(START, END, from_revision=0))


@pytest.mark.long
async def test_thousands_of_revisions_across_two_kills(tmp_path: Path) -> None:
    """A slow and a live watcher see every revision exactly once although etcd is killed twice meanwhile."""
    options, count = Options(tmp_path / "etcd", durability=Durability.MEMORY), samples(4_000, many=100_000)
    async with EmbeddedEtcd(options) as server, Etcd([server.endpoint]) as etcd, Etcd([server.endpoint]) as watcher:
        done = 0

        async def write(worker: int) -> None:
            nonlocal done
            while done < count:
                try:
                    await etcd.txn((), [put(b"w/%d" % worker, b"%d" % done)])
                    done += 1
                except (OutcomeUnknown, StoreUnavailable):
                    continue

        async def reached(threshold: int) -> bool:
            return done >= threshold

        async def kill() -> None:
            for threshold in (count // 4, 2 * count // 3):
                await eventually(partial(reached, threshold), seconds=60)
                os.kill(server.pid, signal.SIGKILL)

        live: list[Batch] = []

        async def follow() -> None:
            async with aclosing(watcher.watch(START, END, from_revision=1)) as watch:
                async for batch in watch:
                    live.append(batch)  # noqa: PERF401 - it never ends, and is looked at meanwhile

        following = asyncio.create_task(follow())
        async with asyncio.timeout(100), asyncio.TaskGroup() as group:
            group.create_task(kill())
            for worker in range(64):
                group.create_task(write(worker))
        last = await etcd.revision()
        late = await collect(etcd.watch(START, END, from_revision=1), last)
        async with asyncio.timeout(10):
            while not live or live[-1].revision < last:
                assert not following.done()
                await asyncio.sleep(0.01)
        following.cancel()
        assert server.restarts == 2
        assert last > count
        assert revisions(live) == revisions(late) == list(range(2, last + 1))


async def test_a_revision_is_never_split_and_fragments_are_joined(etcd: Etcd) -> None:
    """60 revisions of 40 keys and 120 kB come as answers of more than etcd's 1.5 MiB, which it cuts anywhere."""
    for _ in range(60):
        last = (await etcd.txn((), [put(b"w/%d" % i, bytes(3000)) for i in range(40)])).revision
    batches = await collect(etcd.watch(START, END, from_revision=1), last)
    assert revisions(batches) == list(range(2, last + 1))
    count = Counter(event.kv.mod_revision for batch in batches for event in batch.events)
    assert set(count.values()) == {40}


async def test_it_goes_on_over_another_endpoint(relays: tuple[Relay, Relay], etcd: Etcd) -> None:
    first, second = relays
    async with (
        asyncio.timeout(10),
        Etcd([first.endpoint, second.endpoint]) as watcher,
        aclosing(watcher.watch(START, END, from_revision=1)) as watch,
    ):
        told: list[int] = []
        for turn in range(6):
            expected = [(await etcd.txn((), [put(b"w/a", b"")])).revision for _ in range(3)]
            while not told or told[-1] < expected[-1]:
                told.extend(revisions([await anext(watch)]))
            await (first if turn % 2 == 0 else second).cut()
    assert told == list(range(2, 2 + 18))
    assert first.connections >= 2 and second.connections >= 2


async def test_it_leaves_an_endpoint_that_falls_silent(
    relays: tuple[Relay, Relay], etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection is closed, nothing comes any more: what a cut cable or a stopped member looks like."""
    pings = {"grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"}
    sooner = [(name, value // 6 if name in pings else value) for name, value in links._OPTIONS]
    monkeypatch.setattr(links, "_OPTIONS", sooner)
    first, second = relays
    async with (
        asyncio.timeout(5),
        Etcd([first.endpoint, second.endpoint]) as watcher,
        aclosing(watcher.watch(START, END, from_revision=1)) as watch,
    ):
        await etcd.txn((), [put(b"w/a", b"")])
        assert (await anext(watch)).revision == 2
        first.answers.clear()
        await etcd.txn((), [put(b"w/a", b"")])
        assert (await anext(watch)).revision == 3
        assert second.connections == 1


async def test_compaction_ends_it_at_the_start_and_in_the_middle(relays: tuple[Relay, Relay], etcd: Etcd) -> None:
    relay, _ = relays
    async with Etcd([relay.endpoint]) as watcher:
        watch = watcher.watch(START, END, from_revision=1)
        await etcd.txn((), [put(b"w/a", b"")])
        assert (await anext(watch)).revision == 2
        await relay.close()  # the watch must resume at 3, which is compacted meanwhile
        for _ in range(5):
            last = (await etcd.txn((), [put(b"w/a", b"")])).revision
        await etcd.compact(last)
        await relay.open()
        async with asyncio.timeout(10):
            with pytest.raises(Compacted) as resumed:
                await anext(watch)
            with pytest.raises(Compacted) as begun:
                await anext(watcher.watch(START, END, from_revision=1))
    assert resumed.value.compact_revision == begun.value.compact_revision == last
    assert (await collect(etcd.watch(START, END, from_revision=last), last))[0].revision == last


async def test_a_store_that_went_back_is_noticed_not_waited_for(tmp_path: Path, relays: tuple[Relay, Relay]) -> None:
    """The same endpoint, but behind it another etcd, whose revisions are lower."""
    relay, _ = relays
    async with Etcd([relay.endpoint]) as etcd:
        watch = etcd.watch(START, END, from_revision=1)
        for _ in range(3):
            await etcd.txn((), [put(b"w/a", b"")])
        while (await anext(watch)).revision < 4:
            pass
        async with EmbeddedEtcd(Options(tmp_path / "other", durability=Durability.MEMORY)) as other:
            await relay.cut()
            relay.upstream = other.endpoint
            async with asyncio.timeout(10):
                with pytest.raises(HistoryLost):
                    await anext(watch)
                with pytest.raises(HistoryLost) as ahead:
                    await anext(etcd.watch(START, END, from_revision=500))
            assert (ahead.value.revision, ahead.value.expected) == (1, 499)


async def test_a_watch_from_the_next_revision_waits(etcd: Etcd) -> None:
    async with aclosing(etcd.watch(START, END, from_revision=await etcd.revision() + 1)) as watch:
        following = asyncio.create_task(anext(watch))
        revision = (await etcd.txn((), [put(b"w/a", b"")])).revision
        async with asyncio.timeout(5):
            assert (await following).revision == revision


async def test_closing_it_ends_it_at_etcd_too(etcd: Etcd, server: EmbeddedEtcd) -> None:
    async def watchers() -> int:
        return await metric(server, "etcd_debugging_mvcc_watcher_total")

    await etcd.txn((), [put(b"w/a", b"")])
    async with aclosing(etcd.watch(START, END, from_revision=1)) as watch:
        await anext(watch)
        assert await watchers() == 1

    async def none() -> bool:
        return await watchers() == 0

    await eventually(none)


async def metric(server: EmbeddedEtcd, name: str) -> int:
    """A figure that etcd tells on its client socket by HTTP."""
    reader, writer = await asyncio.open_unix_connection(server.endpoint.removeprefix("unix:"))
    writer.write(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))


async def test_errors_have_one_base() -> None:
    assert issubclass(Compacted, StoreError) and issubclass(HistoryLost, StoreError)
