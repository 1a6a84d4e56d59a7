from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from controller.etcd import (
    Compacted,
    Etcd,
    HistoryLost,
    LeaseNotFound,
    OutcomeUnknown,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    TxnTooLarge,
)
from controller.etcd.embedded import Durability, EmbeddedEtcd, Options
from controller.etcd.limits import max_txn_ops
from controller.etcd.types import (
    AlarmKind,
    Compare,
    Deleted,
    Fetch,
    Page,
    Put,
    PutDone,
    TxnResult,
    absent,
    created,
    delete,
    empty,
    get,
    modified,
    nested,
    prefix_end,
    present,
    put,
    value_is,
)
from tests.controller.etcd.helpers import Relay, eventually


async def holds(etcd: Etcd, *compares: Compare) -> bool:
    return (await etcd.txn(compares, ())).succeeded


async def test_compares(etcd: Etcd) -> None:
    first = (await etcd.txn((), [put(b"a", b"1")])).revision
    second = (await etcd.txn((), [put(b"a", b"2")])).revision
    true = [
        absent(b"b"),
        present(b"a"),
        created(b"a", first),
        modified(b"a", second),
        modified(b"b", 0),
        value_is(b"a", b"2"),
        empty(b"b", b"c"),
    ]
    false = [
        absent(b"a"),
        present(b"b"),
        created(b"a", second),
        modified(b"a", first),
        modified(b"a", 0),
        value_is(b"a", b"1"),
        value_is(b"b", b""),
        empty(b"a", b"b"),
        empty(b"a", b"c"),
    ]
    assert await holds(etcd, *true)
    for compare in false:
        assert not await holds(etcd, compare), compare


async def test_empty_range_notices_one_key_among_none_and_no_neighbour(etcd: Etcd) -> None:
    prefix = b"r/net/1/"
    await etcd.txn((), [put(b"r/net/1", b""), put(b"r/net/10", b""), put(b"r/net/2/x", b"")])
    assert await holds(etcd, empty(prefix, prefix_end(prefix)))
    await etcd.txn((), [put(prefix + b"\xff\xff", b"")])
    assert not await holds(etcd, empty(prefix, prefix_end(prefix)))
    await etcd.txn((), [delete(prefix, prefix_end(prefix))])
    assert await holds(etcd, empty(prefix, prefix_end(prefix)))


async def test_txn_answers_in_order_with_nested_ones(etcd: Etcd) -> None:
    await etcd.txn((), [put(b"a1", b"x"), put(b"a2", b"y")])
    result = await etcd.txn(
        [absent(b"b")],
        [
            put(b"b", b"1"),
            get(b"b"),
            nested([absent(b"nothing")], [put(b"c", b"2"), delete(b"a1", b"a9")], [get(b"a1")]),
            get(b"a", b"d", limit=1, fetch=Fetch.KEYS),
        ],
    )
    wrote, read, inner, after = result.responses
    assert result.succeeded and wrote == PutDone()
    assert isinstance(read, Page) and read.kvs[0].value == b"1"
    assert isinstance(inner, TxnResult) and inner.succeeded and inner.responses == (PutDone(), Deleted(2))
    assert isinstance(after, Page) and (after.kvs[0].key, after.kvs[0].value) == (b"b", b"")
    assert (after.more, after.count) == (True, 2)
    assert {read.revision, inner.revision, after.revision, read.kvs[0].mod_revision} == {result.revision}


async def test_else_branch_reads_what_failed(etcd: Etcd) -> None:
    before = (await etcd.txn((), [put(b"a", b"1")])).revision
    result = await etcd.txn([absent(b"a")], [put(b"a", b"2")], [get(b"a")])
    (found,) = result.responses
    assert not result.succeeded and result.revision == before
    assert isinstance(found, Page) and found.kvs[0].value == b"1" and found.kvs[0].create_revision == before


async def test_range(etcd: Etcd) -> None:
    await etcd.txn((), [put(b"k%d" % i, b"old") for i in range(5)])
    old = await etcd.revision()
    await etcd.txn((), [put(b"k0", b"new"), delete(b"k4")])
    page = await etcd.range(b"k", b"l", limit=3)
    assert [kv.key for kv in page.kvs] == [b"k0", b"k1", b"k2"] and page.more and page.count == 4
    assert page.kvs[0].value == b"new" and page.kvs[0].version == 2
    assert {kv.value for kv in (await etcd.range(b"k", b"l", revision=old)).kvs} == {b"old"}
    count = await etcd.range(b"k", b"l", fetch=Fetch.COUNT)
    assert (count.kvs, count.count) == ((), 4)
    assert (await etcd.range(b"none")).kvs == ()


async def test_scan_is_one_revision_while_others_write(etcd: Etcd) -> None:
    keys = [b"s/%05d" % i for i in range(5000)]
    for start in range(0, 5000, 2500):
        await etcd.txn((), [put(key, b"0") for key in keys[start : start + 2500]])
    stop = asyncio.Event()

    async def write() -> int:
        round_ = 0
        while not stop.is_set():
            round_ += 1
            # first and last key always change together
            await etcd.txn((), [put(keys[0], b"%d" % round_), put(keys[-1], b"%d" % round_)])
        return round_

    writer = asyncio.create_task(write())
    try:
        for _ in range(3):
            revision, found = await etcd.scan(b"s/", b"s0")
            assert [kv.key for kv in found] == keys
            assert found[0].value == found[-1].value
            assert max(kv.mod_revision for kv in found) <= revision
    finally:
        stop.set()
    assert await writer > 3


async def test_refusals_are_typed(etcd: Etcd) -> None:
    with pytest.raises(LeaseNotFound):
        await etcd.txn((), [put(b"a", b"", lease=4711)])
    with pytest.raises(StoreRefused) as duplicate:
        await etcd.txn((), [put(b"a", b"1"), put(b"a", b"2")])
    assert not isinstance(duplicate.value, TxnTooLarge)
    too_large: list[list[Put]] = [
        [put(b"a%d" % i, b"") for i in range(4097)],
        [put(b"a", bytes(1_600_000))],
        [put(b"a", bytes(5_000_000))],
    ]
    for operations in too_large:
        with pytest.raises(TxnTooLarge) as refused:
            await etcd.txn((), operations)
        assert refused.value.operations == len(operations)
    with pytest.raises(TxnTooLarge):
        await etcd.txn((), [nested((), [put(b"a%d" % i, b"") for i in range(4097)])])
    assert (await etcd.range(b"a", b"b")).count == 0


async def test_compacted_and_future_revisions_are_told_apart(etcd: Etcd) -> None:
    for i in range(5):
        await etcd.txn((), [put(b"a", b"%d" % i)])
    await etcd.compact(5)
    await etcd.compact(4)  # done already
    assert (await etcd.range(b"a", revision=5)).kvs[0].value == b"3"
    with pytest.raises(Compacted):
        await etcd.range(b"a", revision=4)
    with pytest.raises(HistoryLost) as lost:
        await etcd.range(b"a", revision=1000)
    assert (lost.value.revision, lost.value.expected) == (6, 1000)
    with pytest.raises(HistoryLost):
        await etcd.compact(1000)


@pytest.mark.parametrize("limit", [100, 128, 1000, 4096])
async def test_the_limit_of_a_transaction_is_found(tmp_path: Path, limit: int) -> None:
    options = Options(tmp_path / "etcd", durability=Durability.MEMORY, max_txn_ops=limit)
    async with EmbeddedEtcd(options) as server, Etcd([server.endpoint]) as etcd:
        assert await max_txn_ops(etcd) == limit
        assert await etcd.revision() == 1  # nothing was written


async def test_a_write_without_an_answer_is_unknown_because_it_may_be_done(
    relays: tuple[Relay, Relay], etcd: Etcd
) -> None:
    relay, _ = relays
    async with Etcd([relay.endpoint]) as behind:
        await behind.revision()
        relay.answers.clear()
        write = asyncio.create_task(behind.txn((), [put(b"a", b"mine")]))

        async def written() -> bool:
            return bool((await etcd.range(b"a")).kvs)

        await eventually(written)
        await relay.cut()
        with pytest.raises(OutcomeUnknown):
            await write
        relay.answers.set()
        assert (await behind.range(b"a")).kvs[0].value == b"mine"


def _stop(pid: int) -> None:
    """All its threads have stopped when this returns."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


async def test_a_stopped_etcd_is_reported_within_the_deadline(server: EmbeddedEtcd) -> None:
    async with Etcd([server.endpoint], timeout=0.3) as etcd:
        await etcd.revision()
        _stop(server.pid)
        try:
            async with asyncio.timeout(2):
                with pytest.raises(OutcomeUnknown):
                    await etcd.txn((), [put(b"a", b"mine")])
                with pytest.raises(StoreUnavailable):
                    await etcd.txn((), [get(b"a")])
                with pytest.raises(StoreUnavailable):
                    await etcd.range(b"a")
        finally:
            os.kill(server.pid, signal.SIGCONT)


async def test_reads_fail_over_and_writes_too_once_the_connection_is_known_to_be_gone(
    relays: tuple[Relay, Relay],
) -> None:
    first, second = relays
    async with Etcd([first.endpoint, second.endpoint]) as etcd:
        await etcd.txn((), [put(b"a", b"0")])
        assert etcd.endpoint == first.endpoint and second.connections == 0
        await first.close()
        assert (await etcd.range(b"a")).kvs[0].value == b"0"
        assert etcd.endpoint == second.endpoint
        await etcd.txn((), [put(b"a", b"1")])
        await first.open()
        await second.close()
        assert (await etcd.range(b"a")).kvs[0].value == b"1"
        assert etcd.endpoint == first.endpoint


async def test_a_write_that_never_left_is_unavailable_within_the_deadline(tmp_path: Path) -> None:
    async with Etcd([f"unix:{tmp_path}/nobody"], timeout=0.3) as etcd, asyncio.timeout(2):
        with pytest.raises(StoreUnavailable, match="nobody"):
            await etcd.txn((), [put(b"a", b"")])


async def test_a_full_store_says_so_and_can_be_repaired(tmp_path: Path) -> None:
    options = Options(tmp_path / "etcd", durability=Durability.MEMORY, quota_bytes=4 << 20)
    async with EmbeddedEtcd(options) as server, Etcd([server.endpoint]) as etcd:
        with pytest.raises(StoreFull):
            for _ in range(100):
                await etcd.txn((), [put(b"a", bytes(500_000))])
        (alarm,) = await etcd.alarms()
        assert alarm.kind is AlarmKind.NOSPACE
        await etcd.compact(await etcd.revision())
        await etcd.defragment()
        await etcd.disarm(alarm)
        assert await etcd.alarms() == ()
        await etcd.txn((), [put(b"a", b"")])


async def test_status_and_members(server: EmbeddedEtcd, etcd: Etcd) -> None:
    status = await etcd.status()
    assert status.endpoint == server.endpoint and status.version.startswith("3.") and status.errors == ()
    assert status.leader == status.member_id and status.revision == 1
    assert 0 < status.db_size_in_use <= status.db_size
    (member,) = await etcd.members()
    assert (member.member_id, member.name) == (status.member_id, "tealnet")


async def test_a_snapshot_can_be_restored(etcd: Etcd, tmp_path: Path) -> None:
    await etcd.txn((), [put(b"a", b"kept")])
    path = tmp_path / "backup.db"
    size = await etcd.snapshot(path)
    assert path.stat().st_size == size and stat.S_IMODE(path.stat().st_mode) == 0o600
    restored = tmp_path / "restored"
    restored.mkdir()
    peer = ("--name=tealnet", "--initial-cluster=tealnet=unix://peer:0", "--initial-advertise-peer-urls=unix://peer:0")
    command = ("etcdctl", "snapshot", "restore", str(path), f"--data-dir={restored / 'data'}", *peer)
    await asyncio.to_thread(
        subprocess.run, command, check=True, capture_output=True, env={**os.environ, "ETCDCTL_API": "3"}
    )
    options = Options(restored, durability=Durability.MEMORY)
    async with EmbeddedEtcd(options) as server, Etcd([server.endpoint]) as second:
        assert (await second.range(b"a")).kvs[0].value == b"kept"


async def test_a_snapshot_that_cannot_be_taken_leaves_no_file(tmp_path: Path) -> None:
    async with Etcd([f"unix:{tmp_path}/nobody"], timeout=0.2) as etcd:
        with pytest.raises(StoreError):
            await etcd.snapshot(tmp_path / "backup.db")
    assert os.listdir(tmp_path) == []
